from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_bench.study import outputs
from zipfmax_bench.study.batches import TextBatches
from zipfmax_bench.study.corpus import read_corpus
from zipfmax_bench.study.full import choice
from zipfmax_bench.study.model import StudyModel
from zipfmax_bench.study.training import TrainingRun, band_losses


def run_of(options, layer, seed=0, checkpoint=None, corpus=None):
    """A training run that is ready to go."""
    corpus = corpus or read_corpus(options.text, processes=1)
    n_classes, name = len(corpus.counts), outputs.parsed(layer)
    layout = chosen = None
    if name.is_adaptive:
        layout = name.layout(corpus.counts, options.features, options.rows, "cpu", "float32")
    else:
        chosen = choice(name.kind, n_classes, options.features, options.rows, "cpu", "float32")
    model = StudyModel(
        options, n_classes, partial(outputs.build, name, options.features, n_classes, layout, chosen), seed
    )
    return TrainingRun(model, options, TextBatches(corpus, options), seed, checkpoint)


def curve(run):
    assert run.train()
    return [(point.step, point.train_loss, point.valid_loss) for point in run.progress.points]


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("layer", ["zipfmax", "zipfmax:div=2", "zipfmax:cutoffs=20/100"])
def test_zipfmax_and_torch_agree_step_by_step_for_a_hundred_steps(options, layer):
    options = replace(options, steps=100, evaluate_every=1, valid_tokens=32)
    found, expected = (
        torch.tensor(curve(run_of(options, name)), dtype=torch.float64)[:, 1:]
        for name in (layer, layer.replace("zipfmax", "torch"))
    )
    assert len(found) == 100
    assert expected[-10:, 0].mean() < expected[0, 0] - 0.5  # it does learn
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("trunk", ["lstm", "transformer"])
def test_full_softmax_reproduces_from_its_seed_bit_for_bit(options, trunk):
    options = replace(options, trunk=trunk)
    first, second, other = (run_of(options, "full", seed) for seed in (0, 0, 1))
    assert curve(first) == curve(second)
    assert curve(first.__class__(other.model, options, first._batches, 1)) != first.progress.points
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


def test_a_seed_gives_every_layer_the_same_inputs_trunk_and_batches(options):
    runs = [run_of(options, layer) for layer in ("full", "zipfmax", "zipfmax:div=1", "torch")]
    first = weights(runs[0])
    for run in runs[1:]:
        for name, value in weights(run).items():
            if not name.startswith("output"):
                assert torch.equal(value, first[name]), name
    batches = [run._batches.at(0, 3) for run in runs]
    assert all(torch.equal(batch.ids, batches[0].ids) for batch in batches)
    assert not torch.equal(batches[0].ids, runs[0]._batches.at(1, 3).ids)


@pytest.mark.parametrize("layer", ["full", "zipfmax"])
@pytest.mark.parametrize("trunk", ["lstm", "transformer"])
def test_a_stopped_run_goes_on_bit_for_bit_as_if_it_was_not(options, tmp_path, layer, trunk):
    options = replace(options, trunk=trunk)
    whole = run_of(options, layer)
    whole.train()
    checkpoint = tmp_path / "run.pt"
    stops = iter([False] * 6 + [True])
    begun = run_of(options, layer, checkpoint=checkpoint)
    assert not begun.train(stop=lambda: next(stops))
    assert begun.progress.step == 6  # between two points
    gone_on = run_of(options, layer, checkpoint=checkpoint)
    assert gone_on.progress.step == 6
    assert gone_on.train()
    assert [(p.step, p.train_loss, p.valid_loss) for p in gone_on.progress.points] == [
        (p.step, p.train_loss, p.valid_loss) for p in whole.progress.points
    ]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(gone_on)[name]), name


def test_a_sampled_run_goes_on_with_the_same_draws(options, tmp_path, monkeypatch):
    from zipfmax_reference.contestants import sampled

    monkeypatch.setattr(sampled, "CANDIDATES", 32)
    whole = curve(run_of(options, "sampled"))
    stops = iter([False] * 6 + [True])
    run_of(options, "sampled", checkpoint=tmp_path / "s.pt").train(stop=lambda: next(stops))
    assert curve(run_of(options, "sampled", checkpoint=tmp_path / "s.pt")) == whole


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(context, logits):
        return logits.view_as(logits)

    @staticmethod
    def backward(context, gradient):
        return gradient / 2


def with_a_halved_tail(run):
    run.model.output.layer.tail[0].register_forward_hook(lambda module, given, logits: Halved.apply(logits))
    return run


@pytest.mark.filterwarnings("ignore:.*submodule")
@pytest.mark.parametrize("layer", ["zipfmax", "torch"])
def test_a_tail_whose_gradient_is_halved_shows_in_losses_and_gradients(options, layer):
    options = replace(options, steps=40)
    right, wrong, torchs = (
        run_of(options, layer),
        with_a_halved_tail(run_of(options, layer)),
        run_of(options, "torch"),
    )
    curves = [np.array(curve(run))[:, 2] for run in (right, wrong, torchs)]
    assert abs(curves[1] - curves[0])[-1] > 1e-4 > 10 * abs(curves[2] - curves[0]).max()
    shortlist, tail, end = 0, *right.model.output.layer.cutoffs[:2]
    found, planted = (run.gradient_errors([shortlist, tail, end]) for run in (right, wrong))
    assert max(found) < 1e-5
    assert planted[0] < 1e-5
    assert planted[1] == pytest.approx(0.5, abs=1e-5)


def test_gradients_are_compared_with_full_softmaxs_too(options, monkeypatch):
    from zipfmax_reference.contestants import sampled

    monkeypatch.setattr(sampled, "CANDIDATES", 32)
    for layer, least, most in (("full", 0, 1e-5), ("sampled", 0.01, 100)):
        run = run_of(options, layer)
        run.train()
        for error in run.gradient_errors([0, 10, 100, run.model.output.weight.shape[0]]):
            assert least <= error < most, layer
        assert run.model.output.weight.grad is None


def test_the_learning_rate_rises_in_a_line_and_then_stays(options):
    run = run_of(replace(options, steps=6, warm_up=4, learning_rate=0.01), "zipfmax")
    rates = []
    for _ in range(6):
        run._advance(1)
        rates.append(run._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_time_and_losses_end_where_they_were_asked_to(options):
    run = run_of(replace(options, steps=None, seconds=0.2, evaluate_every=3), "zipfmax")
    run.train()
    assert run.progress.seconds >= 0.2
    *points, last = [point.step for point in run.progress.points]
    assert all(step % 3 == 0 for step in points)
    assert last == run.progress.step
    assert run.progress.points[-2].seconds < 0.2


def test_a_point_is_the_mean_over_the_sample_of_exact_log_probabilities(options):
    run = run_of(options, "zipfmax")
    run.train()
    nll, targets = run.sampled_nll()
    batches = run._batches
    with torch.no_grad():
        every = run.model.output.layer.log_prob(run.model.hidden(batches.valid_ids))
    torch.testing.assert_close(every.exp().sum(1), torch.ones(len(every)))
    torch.testing.assert_close(nll, -every.gather(1, targets[:, None]).squeeze(1))
    assert run.progress.points[-1].valid_loss == pytest.approx(float(nll.double().mean()), rel=1e-12)


@pytest.mark.parametrize("layer", ["full", "zipfmax", "zipfmax:cutoffs=fine,least=8"])
@pytest.mark.parametrize("inputs", ["adaptive", "tied"])
def test_inputs_may_be_adaptive_or_tied(options, layer, inputs):
    run = run_of(replace(options, inputs=inputs, steps=30, evaluate_every=10), layer)
    points = curve(run)
    assert points[-1][2] < points[0][2]
    if inputs == "tied":
        assert run.model.own_parameters() < 20 * 16 * 16  # but projections and slots, no word's weights
    else:
        assert run.model.own_parameters() == sum(weight.numel() for weight in run.model.output.parameters())


def test_tied_inputs_are_refused_for_torch(options):
    with pytest.raises(UsageError, match=r"not torch\.nn's"):
        run_of(replace(options, inputs="tied"), "torch")


def test_losses_of_bands_are_means_over_their_tokens():
    targets = torch.tensor([0, 3, 9, 10, 10, 99])
    nll = torch.tensor([1.0, 2.0, 6.0, 4.0, 8.0, 5.0])
    assert band_losses(nll, targets, [0, 10, 50, 100, 1000]) == [
        *((0, 10, 3, 3.0), (10, 50, 2, 6.0), (50, 100, 1, 5.0), (100, 1000, 0, None))
    ]
