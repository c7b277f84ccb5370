import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_follow_the_counts_and_ties_keep_the_labels_order(counts):
    ranks = LabelRanks.from_counts(counts)
    by_rank = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    assert ranks.label_of_rank.tolist() == by_rank
    assert ranks.to_labels(ranks.to_ranks(torch.arange(len(counts)))).tolist() == list(range(len(counts)))


@pytest.mark.parametrize(
    "kind", [list, iter, np.array, torch.tensor, lambda labels: torch.tensor(labels).view(2, -1)]
)
def test_from_labels_counts_any_kind_of_labels(kind):
    labels = [3, 1, 3, 0, 3, 1]
    ranks = LabelRanks.from_labels(kind(labels), n_labels=5)
    assert ranks.rank_of_label.tolist() == LabelRanks.from_counts([1, 2, 0, 3, 0]).rank_of_label.tolist()


def test_from_labels_takes_the_largest_label_for_the_last():
    assert len(LabelRanks.from_labels([4, 1])) == 5


def test_what_is_no_label_keeps_its_value():
    ranks = LabelRanks.from_counts([1, 5, 3])
    assert ranks.to_ranks(torch.tensor([[-100, 0], [1, 7]])).tolist() == [[-100, 2], [0, 7]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelRanks([0, 2]), r"permutation of 0 \.\. 1"),
        (lambda: LabelRanks([0, 0, 1]), r"permutation of 0 \.\. 2"),
        (lambda: LabelRanks([[0, 1]]), "1-D tensor of integers"),
        (lambda: LabelRanks([0.0, 1.0]), "1-D tensor of integers"),
        (lambda: LabelRanks.from_counts([1, -1]), "finite and not negative"),
        (lambda: LabelRanks.from_counts([1.0, float("nan")]), "finite and not negative"),
        (lambda: LabelRanks.from_counts([[1, 2]]), "1-D array of numbers"),
        (lambda: LabelRanks.from_counts(["a"]), "1-D array of numbers"),
        (lambda: LabelRanks.from_labels([]), "at least one label"),
        (lambda: LabelRanks.from_labels([0, 5], n_labels=5), r"in \[0, 4\], but values in range \[0, 5\]"),
        (lambda: LabelRanks.from_labels([0, -1]), r"in \[0, 0\], but values in range \[-1, 0\]"),
        (lambda: LabelRanks.from_labels(["a"]), "integers, got 'a'"),
        (lambda: LabelRanks.from_labels(np.array([0.5])), "integers, got float64"),
    ],
)
def test_what_gives_no_ranks_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def permuted():
    """A layer on ranks, the same layer on the user's labels, and the ranks between them."""
    torch.manual_seed(0)
    ranks = LabelRanks(torch.randperm(20))

    def make(backend="eager", **options):
        plain = AdaptiveLogSoftmaxWithLoss(16, 20, [4, 9], 2.0, backend=backend, **options)
        users = AdaptiveLogSoftmaxWithLoss(16, 20, [4, 9], 2.0, label_ranks=ranks, backend=backend, **options)
        users.load_state_dict(plain.state_dict() | {"label_ranks.rank_of_label": ranks.rank_of_label})
        return plain, users, ranks

    return make


@pytest.mark.parametrize("ignore_index", [None, -100, 0, 13])
def test_targets_are_the_users_labels(permuted, backend, ignore_index):
    plain, users, ranks = permuted(backend, ignore_index=ignore_index)
    hidden, labels = torch.randn(40, 16), torch.arange(20).repeat(2)
    output, loss = users(hidden, labels)
    target = ranks.rank_of_label[labels]
    if ignore_index is not None:
        plain.ignore_index = -1
        target[labels == ignore_index] = -1
    expected = plain(hidden, target)
    torch.testing.assert_close(output, expected.output)
    torch.testing.assert_close(loss, expected.loss)
    assert (output == 0).sum() == (2 if ignore_index in (0, 13) else 0)


def test_columns_predictions_topk_and_samples_are_the_users_labels(permuted, backend):
    plain, users, ranks = permuted(backend)
    hidden = torch.randn(30, 16) * 4
    log_prob = users.log_prob(hidden)
    torch.testing.assert_close(log_prob, plain.log_prob(hidden)[:, ranks.rank_of_label])
    assert torch.equal(users.predict(hidden), log_prob.argmax(1))
    values, labels = users.topk(hidden, 6)
    torch.testing.assert_close(values, log_prob.gather(1, labels))
    assert torch.equal(labels, log_prob.topk(6).indices)
    draws = [layer.sample(hidden, 5, torch.Generator().manual_seed(3)) for layer in (plain, users)]
    assert torch.equal(draws[1], ranks.label_of_rank[draws[0]])
    out = torch.empty_like(log_prob)
    with torch.no_grad():
        users.log_prob(hidden, out=out)
    torch.testing.assert_close(out, log_prob)


def test_the_state_dict_carries_the_ranks(permuted):
    _, users, ranks = permuted()
    state = pickle.loads(pickle.dumps(users.state_dict()))
    other = AdaptiveLogSoftmaxWithLoss(16, 20, [4, 9], 2.0, label_ranks=LabelRanks(range(20)))
    other.load_state_dict(state)
    hidden, labels = torch.randn(20, 16), torch.arange(20)
    torch.testing.assert_close(other(hidden, labels).output, users(hidden, labels).output)
    assert torch.equal(other.predict(hidden), users.predict(hidden))
    assert torch.equal(other.label_ranks.label_of_rank, ranks.label_of_rank)
    state["label_ranks.rank_of_label"][:2] = 0
    with pytest.raises(ValueError, match="permutation"):
        other.load_state_dict(state)


@pytest.mark.parametrize(("labels", "span"), [([3, 20], r"\[3, 20\]"), ([-1, 3], r"\[-1, 3\]")])
def test_a_label_out_of_range_is_named_as_the_user_gave_it(permuted, backend, labels, span):
    _, users, _ = permuted(backend)
    with pytest.raises(
        RuntimeError, match=rf"Target values should be in \[0, 19\], but values in range {span}"
    ):
        users(torch.randn(2, 16), torch.tensor(labels))


def test_ranks_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="label_ranks is of 3 labels, but n_classes is 20"):
        AdaptiveLogSoftmaxWithLoss(16, 20, [4, 9], label_ranks=LabelRanks([0, 1, 2]))
