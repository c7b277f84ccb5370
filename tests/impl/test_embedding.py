from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from zipfmax import AdaptiveEmbedding, AdaptiveLogSoftmaxWithLoss, LabelRanks

# words, width, cutoffs, div_value
SHAPES = [(20, 16, (5, 10, 15), 2.0), (41, 13, (1, 7, 40), 1.7), (9, 4, (3,), 4)]


def by_the_papers_formula(embedding, ids):
    """Each word on its own: its band's row times its band's projection."""
    rows = []
    bounds = embedding.layout.bounds
    for word in ids.reshape(-1).tolist():
        band = sum(word >= bound for bound in bounds[1:-1])
        row = embedding.embeddings[band][word - bounds[band]]
        if embedding.shortlist_projection:
            row = row @ embedding.projections[band]
        elif band > 0:
            row = row @ embedding.projections[band - 1]
        rows.append(row)
    return torch.stack(rows).reshape(*ids.shape, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shortlist_projection", [False, True])
@pytest.mark.parametrize("leading", [(), (50,), (3, 4)])
def test_every_word_and_its_gradients_are_the_papers_formula(shape, shortlist_projection, leading):
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(*shape, dtype=torch.float64, shortlist_projection=shortlist_projection)
    ids = torch.randint(0, shape[0], leading)
    found, expected = embedding(ids), by_the_papers_formula(embedding, ids)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, embedding.parameters(), upstream, allow_unused=True)
    again = torch.autograd.grad(expected, embedding.parameters(), upstream, allow_unused=True)
    for mine, other in zip(gradients, again, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other)


def test_no_words_give_no_rows():
    embedding = AdaptiveEmbedding(20, 16, (5, 10))
    assert embedding(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, 16)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("projections", [False, True])
@pytest.mark.parametrize("shortlist_projection", [False, True])
def test_a_tied_weight_gets_the_gradients_of_both_its_uses(backend, projections, shortlist_projection):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "tail_bias": True, "backend": backend}
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, (5, 10), 2.0, **options)
    tied = AdaptiveEmbedding.tied_to(
        layer, projections=projections, shortlist_projection=shortlist_projection
    )
    assert tied.embeddings[1] is layer.tail[0][1].weight
    assert (tied.projections[-1] is layer.tail[1][0].weight) == projections
    ids, target = torch.randint(0, 20, (60,)), torch.randint(0, 20, (60,))
    layer(tied(ids), target).loss.backward()

    # The same model with every use on a tensor of its own.
    free, alone = deepcopy(layer), deepcopy(tied)
    assert alone.embeddings[1] is not free.tail[0][1].weight
    free.zero_grad()
    alone.zero_grad()
    free(alone(ids), target).loss.backward()
    uses = [(layer.head.weight, free.head.weight, alone.embeddings[0])]
    for i in range(2):
        uses.append((layer.tail[i][1].weight, free.tail[i][1].weight, alone.embeddings[i + 1]))
        if projections:
            uses.append((layer.tail[i][0].weight, free.tail[i][0].weight, alone.projections[i - 2]))
    for shared, output_use, input_use in uses:
        assert output_use.grad.abs().sum() > 0
        assert input_use.grad.abs().sum() > 0
        torch.testing.assert_close(shared.grad, output_use.grad + input_use.grad)


def test_tied_weights_stay_tied_in_a_copied_model_and_are_counted_once():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, (5, 10), 2.0)
    model = torch.nn.ModuleDict({"input": AdaptiveEmbedding.tied_to(layer), "output": layer})
    copied = deepcopy(model)
    assert copied["input"].embeddings[2] is copied["output"].tail[1][1].weight
    assert copied["input"].projections[2] is copied["output"].tail[1][0].weight
    own = 16 * 16  # the shortlist's projection
    assert sum(p.numel() for p in copied.parameters()) == layer.layout.parameter_count() + own
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied["input"](torch.arange(20)), model["input"](torch.arange(20)))


def test_words_that_are_not_sorted_keep_their_ids():
    ranks = LabelRanks(torch.randperm(20))
    plain = AdaptiveEmbedding(20, 16, (5, 10), 2.0)
    users = AdaptiveEmbedding(20, 16, (5, 10), 2.0, label_ranks=ranks)
    users.load_state_dict(plain.state_dict() | {"label_ranks.rank_of_label": ranks.rank_of_label})
    assert torch.equal(users(torch.arange(20)), plain(ranks.rank_of_label))
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, (5, 10), 2.0, label_ranks=ranks)
    tied = AdaptiveEmbedding.tied_to(layer, shortlist_projection=False)
    frequent = int(ranks.label_of_rank[0])
    assert torch.equal(tied(torch.tensor(frequent)), layer.head.weight[0])


def test_it_compiles_without_a_graph_break():
    embedding = AdaptiveEmbedding(20, 16, (5, 10), 2.0, dtype=torch.float64)
    ids = torch.randint(0, 20, (4, 6))
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), embedding(ids))
    found = torch.autograd.grad(compiled(ids).square().sum(), embedding.parameters())
    for mine, expected in zip(
        found, torch.autograd.grad(embedding(ids).square().sum(), embedding.parameters()), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_autocast_computes_in_its_dtype():
    embedding = AdaptiveEmbedding(20, 16, (5, 10), 2.0)
    ids = torch.arange(20)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding(ids)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), embedding(ids), rtol=2e-2, atol=2e-2)


def test_initial_weights_have_unit_norm_rows_on_average():
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(4000, 64, (1000, 2000), 2.0)
    for weight in embedding.embeddings:
        assert 0.95 < weight.norm(dim=1).mean() < 1.05
    assert F.linear(embedding(torch.arange(4000)), torch.eye(64)).std() > 0.05


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (
            torch.tensor([3, 20]),
            IndexError,
            r"ids should be in \[0, 19\], but values in range \[3, 20\] were found",
        ),
        (torch.tensor([-1]), IndexError, r"in range \[-1, -1\]"),
        (torch.tensor([1.0]), RuntimeError, "ids should be int64 or int32, but found torch.float32"),
    ],
)
def test_ids_that_are_none_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        AdaptiveEmbedding(20, 16, (5, 10))(ids)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((20, 4, (5, 10), 4.0), {}, r"at least 1 wide, but div_value=4.0 gives \(4, 1, 0\)"),
        ((20, 4, (10, 5)), {}, "cutoffs should be a sequence of unique"),
        (
            (20, 16, (5, 10)),
            {"label_ranks": LabelRanks([0])},
            "label_ranks is of 1 labels, but num_embeddings is 20",
        ),
    ],
)
def test_what_makes_no_embedding_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveEmbedding(*arguments, **options)


def test_a_tied_embedding_takes_the_layers_own_projection_sizes():
    layer = AdaptiveLogSoftmaxWithLoss(16, 100, [10, 30, 60], projection_sizes=[8, 8, 5])
    embedding = AdaptiveEmbedding.tied_to(layer)
    assert embedding.layout == layer.layout
    ids = torch.tensor([0, 10, 30, 60, 99])
    tails = layer.weights().tails
    expected = tails[2].output[[0, 39]] @ tails[2].projection
    torch.testing.assert_close(embedding(ids)[3:], expected)
