"""A layer over two ranks as one implementation: what it is called, what it refuses, what its traps catch."""

import numpy as np
import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.checks import faults_ranks
from zipfmax_reference.checks.mutants import CONTROL, examine_ranks
from zipfmax_reference.checks.verify import Options
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.ranked_layer import RankedLayer, _differences
from zipfmax_reference.runs import grid
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth import rank_traps
from zipfmax_reference.truth.oracle import Oracle


def test_a_name_with_a_number_of_ranks_is_zipfmaxs_layer_over_them():
    assert registry.over_ranks("zipfmax:tiled@4") == ("zipfmax:tiled", 4)
    assert registry.over_ranks("zipfmax") is None
    assert registry.over_ranks("some@2/file.py:Class") is None
    assert not registry.runs_code_of_others("zipfmax@2")
    with pytest.raises(UsageError, match="2 or more"):
        registry.over_ranks("zipfmax@1")
    with pytest.raises(UsageError, match="unknown implementation"):
        registry.implementation("zipfmax:fast@2")
    with pytest.raises(UsageError, match="unknown implementation"):
        registry.implementation("torch@2")


def test_a_cluster_smaller_than_the_group_is_skipped_with_the_reason():
    layer = registry.implementation("zipfmax@4")
    assert layer.unsupported_reason(Case(60, 8, 4, (7, 20))) is None
    assert "tail 1 has 3 rows, fewer than the 4 ranks" in layer.unsupported_reason(Case(23, 8, 4, (7, 20)))


def test_world_takes_the_place_of_one_process_and_compares_with_it():
    options = Options(world=(2, 4))
    assert options.implementations()[:3] == ("zipfmax@2", "zipfmax:tiled@2", "zipfmax:eager@2")
    assert "zipfmax:eager@4" in options.implementations()
    assert "zipfmax" in options.references()
    assert Options().implementations()[0] == "zipfmax"
    assert options.rerun("zipfmax:eager@4", "ID").endswith("--impl zipfmax:eager --cells ID --world 4")


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        ({"a": np.zeros(2)}, {"a": np.zeros(2)}, []),
        ({"a": np.zeros(2)}, {"a": -np.zeros(2)}, ["a"]),
        ({"a": np.full(2, np.nan)}, {"a": np.full(2, np.nan)}, []),
        ({"a": np.zeros(2)}, {"a": np.zeros((1, 2))}, ["a"]),
        ({"a": np.zeros(2)}, {}, ["a"]),
        (None, None, []),
        ("x", "y", [""]),
    ],
)
def test_answers_are_the_same_bit_for_bit(first, other, expected):
    assert _differences(first, other) == expected


def test_over_two_ranks_cells_traps_and_faults():
    """One pair of processes for all: they take seconds to start."""
    caught = examine_ranks(grid.of_ranks()[:1], 2, ("log-of-world", "projection-gradients-count-world-times"))
    assert [(o.mutant, o.caught) for o in caught] == [
        (CONTROL, False),
        ("log-of-world", True),
        ("projection-gradients-count-world-times", True),
    ]
    assert caught[0].cells == 1
    assert caught[1].tensor == "ranks.the-softmax-is-over-all-classes-once"
    assert len(faults_ranks.FAULTS) == 16
    assert len(rank_traps.TRAPS) == 8


def test_a_step_of_ranks_is_judged_like_any_other_and_errors_leave_them_usable():
    layer = RankedLayer("zipfmax:eager", 2)
    case = Case(61, 8, 9, (9, 30), 2.0, True, "float64")
    records = Oracle(case, ("definition", "zipfmax")).check(layer)
    assert {record["status"] for record in records} == {"pass"}
    assert {record["tensor"] for record in records} >= {
        "output",
        "loss",
        "grad.input",
        "grad.tail.0.0.weight",
    }
    inputs = draw_inputs(case)
    runner = layer.build(case, inputs)
    runner.load(inputs.hidden, inputs.target + 60)
    with pytest.raises(RuntimeError, match="Target values should be in"):
        runner.run()
    assert not layer.lost
    runner.load(inputs.hidden, inputs.target)
    runner.run()
    assert runner.mismatches() == {}
