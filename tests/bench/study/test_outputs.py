from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_bench.study import outputs
from zipfmax_bench.study.batches import TextBatches
from zipfmax_bench.study.corpus import read_corpus
from zipfmax_bench.study.full import choice
from zipfmax_bench.study.trunk import Recurrent, Transformer, build, forward_flops

COUNTS = (1e6 / np.arange(1, 10_001)).astype(np.int64)


def layout(name, counts=COUNTS):
    return outputs.parsed(name).layout(counts, 256, 64, "cpu", "float32")


@pytest.mark.parametrize(
    ("name", "cutoffs", "sizes"),
    [
        ("zipfmax", (1_000, 4_000), (64, 16)),
        ("torch", (1_000, 4_000), (64, 16)),
        ("zipfmax:div=1", (1_000, 4_000), (256, 256)),
        ("zipfmax:least=32", (1_000, 4_000), (64, 32)),
        ("zipfmax:cutoffs=fine", (200, 800, 3_700), (64, 16, 4)),
        ("zipfmax:cutoffs=fine,least=8", (200, 800, 3_700), (64, 16, 8)),
        ("zipfmax:cutoffs=50/600,div=2", (50, 600), (128, 64)),
    ],
)
def test_a_name_says_the_partition(name, cutoffs, sizes):
    found = layout(name)
    assert (found.cutoffs, found.projection_sizes) == (cutoffs, sizes)


def test_a_planned_partition_is_the_planners():
    from zipfmax import plan_cutoffs

    assert layout("zipfmax:cutoffs=plan").cutoffs == plan_cutoffs(COUNTS, 256, 64).cutoffs
    planned = layout("zipfmax:cutoffs=plan,least=64")
    assert planned.projection_sizes == (64,)


@pytest.mark.parametrize(
    "name", ["full:nothing", "zipfmax:div=x", "zipfmax:cutoffs", "paddle", "zipfmax:eager"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError):
        outputs.parsed(name)


@pytest.mark.parametrize("name", ["full", "full:chunked"])
def test_full_softmax_is_cross_entropy_whatever_computes_it(name):
    chosen = choice(name, 500, 32, 64, "cpu", "float32")
    torch.manual_seed(0)
    layer = outputs.build(outputs.parsed(name), 32, 500, None, chosen)
    hidden, target = torch.randn(64, 32), torch.randint(500, (64,))
    expected = torch.nn.functional.cross_entropy(hidden @ layer.weight.T, target, reduction="none")
    torch.testing.assert_close(layer(hidden, target), expected.mean())
    torch.testing.assert_close(layer.nll(hidden, target), expected)
    assert choice(name, 500, 32, 64, "cpu", "float32", known=chosen.text).text == chosen.text


def test_targets_follow_their_ids_in_the_text_and_windows_follow_each_other(options):
    corpus = read_corpus(options.text, processes=1)
    batches = TextBatches(corpus, options)
    train, stream = torch.from_numpy(corpus.train.astype(np.int64)), (len(corpus.train) - 1) // 4
    starts = []
    for step in range(3):
        batch = batches.at(0, step)
        at = int((train.unfold(0, 16, 1) == batch.ids[0]).all(1).nonzero()[0])
        starts.append(at)
        for row in range(4):
            begin = at + row * stream
            assert torch.equal(batch.ids[row], train[begin : begin + 16])
            assert torch.equal(batch.targets[row], train[begin + 1 : begin + 17])
    assert [batches.at(0, step).is_start for step in range(3)] == [True, False, False]
    assert starts == [starts[0], starts[0] + 16, starts[0] + 32]
    valid = torch.from_numpy(corpus.valid.astype(np.int64))
    assert torch.equal(batches.valid_ids[0], valid[:16])
    assert torch.equal(batches.valid_targets[0], valid[1:17])


def test_a_text_too_short_for_a_window_is_refused(options):
    corpus = read_corpus(options.text, processes=1)
    with pytest.raises(UsageError, match="too few for windows of 4 x 9999"):
        TextBatches(corpus, replace(options, length=9999))


def test_a_transformer_sees_no_later_token_and_an_lstm_carries_its_state():
    torch.manual_seed(0)
    transformer, lstm = build("transformer", 128, 2, 16), build("lstm", 128, 1, 16)
    assert isinstance(transformer, Transformer)
    assert isinstance(lstm, Recurrent)
    given = torch.randn(2, 16, 128)
    changed = given.clone()
    changed[:, 9:] = torch.randn(2, 7, 128)
    for trunk in (transformer, lstm):
        first, second = trunk(given, None)[0], trunk(changed, None)[0]
        torch.testing.assert_close(first[:, :9], second[:, :9])
        assert (first[:, 9:] - second[:, 9:]).abs().max() > 0.01
    whole, _ = lstm(given, None)
    begun, state = lstm(given[:, :8], None)
    torch.testing.assert_close(torch.cat([begun, lstm(given[:, 8:], state)[0]], 1), whole)
    with pytest.raises(UsageError, match="multiple of 64"):
        build("transformer", 100, 1, 16)


def test_flops_of_the_forward_pass_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    trunk = build("transformer", 128, 2, 16)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        trunk(torch.randn(2, 16, 128), None)
    attention = 2 * 2 * 16 * 128  # half of it is masked, which the counter does not know
    assert counter.get_total_flops() / 32 == forward_flops("transformer", 128, 2, 16) + attention
