import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zipfmax import ClusterLayout

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


@st.composite
def partitions(draw):
    n_classes = draw(st.integers(2, 60))
    cutoffs = draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=6))
    in_features = draw(st.integers(1, 40))
    div_value = draw(st.sampled_from([0.5, 1, 1.7, 2, 4.0, 9]))
    return in_features, n_classes, tuple(sorted(cutoffs)), div_value


@given(partitions())
def test_sizes_are_those_of_torchs_weights(partition):
    layout = ClusterLayout(*partition)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*partition)
    assert (layout.head_size, layout.in_features) == theirs.head.weight.shape
    assert [(tail.projection_size, tail.size) for tail in layout] == [
        (pair[0].out_features, pair[1].out_features) for pair in theirs.tail
    ]
    assert layout.parameter_count() == sum(p.numel() for p in theirs.parameters())


@given(partitions())
def test_every_label_is_in_exactly_one_part(partition):
    layout = ClusterLayout(*partition)
    labels = np.arange(layout.n_classes)
    parts = layout.parts(labels)
    assert all(
        layout.bounds[p] <= label < layout.bounds[p + 1] for label, p in zip(labels, parts, strict=True)
    )
    assert [np.sum(parts == tail.index + 1) for tail in layout] == [tail.size for tail in layout]


@given(partitions(), st.integers(0, 5))
def test_occupancy_is_the_mass_of_each_part(partition, seed):
    layout = ClusterLayout(*partition)
    counts = np.random.default_rng(seed).integers(1, 9, layout.n_classes)
    expected = np.bincount(layout.parts(np.arange(layout.n_classes)), weights=counts) / counts.sum()
    np.testing.assert_allclose(layout.occupancy(counts), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "cutoffs", [[5, 15, 15], [5, 15, 10], [5, 10, 25], [5, 10, 20], [0, 5], [-1, 5], [1.5, 3]]
)
def test_cutoffs_that_are_no_partition_raise_torchs_text(cutoffs):
    with pytest.raises(ValueError, match="cutoffs should be a sequence") as theirs:
        nn.AdaptiveLogSoftmaxWithLoss(16, 20, cutoffs)
    with pytest.raises(ValueError, match="cutoffs should be a sequence") as ours:
        ClusterLayout(16, 20, tuple(cutoffs))
    assert str(ours.value) == str(theirs.value)


def test_no_cutoffs_raise_torchs_text():
    with pytest.raises(ValueError, match=r"^cutoffs should be a sequence of length larger than 0$"):
        ClusterLayout(16, 20, ())


@pytest.mark.parametrize("div_value", [0, -2, float("inf"), float("nan")])
def test_a_div_value_that_divides_nothing_is_refused(div_value):
    with pytest.raises(ValueError, match=f"div_value should be a positive, finite number, got {div_value}"):
        ClusterLayout(16, 20, (5,), div_value)


@pytest.mark.parametrize("div_value", [5e-324, 1e-300, 1e-19])
def test_a_projection_that_no_tensor_can_have_is_refused(div_value):
    with pytest.raises(ValueError, match=f"div_value {div_value:g} makes a projection too wide"):
        ClusterLayout(16, 20, (5, 9), div_value)


def test_a_power_of_div_value_beyond_floats_leaves_no_width():
    assert ClusterLayout(16, 20, (5, 9), 1e300).projection_sizes == (0, 0)


def test_projection_sizes_override_div_value():
    layout = ClusterLayout(16, 20, (5, 10), 4.0, projection_sizes=(7, 1))
    assert [tail.projection_size for tail in layout] == [7, 1]
    assert ClusterLayout(16, 20, (5, 10), 4.0, projection_sizes=(4, 1)) == ClusterLayout(16, 20, (5, 10), 4.0)


@pytest.mark.parametrize("sizes", [(7,), (7, 3, 1), (7, -1), (7, 1.5)])
def test_projection_sizes_that_do_not_fit_the_tails_are_refused(sizes):
    with pytest.raises(ValueError, match="projection_sizes should be 2 integers, one a tail, none negative"):
        ClusterLayout(16, 20, (5, 10), 4.0, projection_sizes=sizes)


def test_parameter_count_counts_every_bias():
    layout = ClusterLayout(16, 20, (5, 10), 4.0)
    plain = layout.parameter_count()
    assert layout.parameter_count(head_bias=True) == plain + 7
    assert layout.parameter_count(tail_bias=True) == plain + 15
    assert layout.parameter_count(projection_bias=True) == plain + 4 + 1


def test_occupancy_refuses_another_vocabulary():
    with pytest.raises(ValueError, match=r"expected 20 probabilities, got shape \(19,\)"):
        ClusterLayout(16, 20, (5, 10)).occupancy(np.ones(19))
