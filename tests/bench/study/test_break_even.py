import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_bench.study import break_even
from zipfmax_bench.study.break_even import MapOptions, cell_times, measure, run
from zipfmax_bench.whole_step import zipf
from zipfmax_reference.records import RunDirectory, StudyMap, StudyTrunk

SMALL = MapOptions((1_152, 3_840), (16,), (1, 2), sequences=2, length=8, rounds=3, device="cpu")


def test_the_map_holds_every_part_of_a_step_and_measures_none_twice(tmp_path):
    assert run(SMALL, tmp_path / "map") == 0
    directory = RunDirectory(tmp_path / "map")
    cells, trunks = directory.read(StudyMap), directory.read(StudyTrunk)
    assert [cell.n_classes for cell in cells] == [1_152, 3_840]
    assert [trunk.depth for trunk in trunks] == [1, 2]
    for cell in cells:
        assert min(cell.full_s, cell.adaptive_s, cell.inputs_s) > 0
        assert len(cell.full_samples_s) == len(cell.adaptive_samples_s) == 3
        assert cell.full_computes == "full"
        assert cell.cutoffs[0] == round(0.07 * cell.n_classes)
    assert trunks[1].flops == 2 * trunks[0].flops
    run(SMALL, tmp_path / "map", resume=True)
    assert directory.read(StudyMap) == cells


def test_a_call_that_is_over_stops_and_keeps_what_it_has(tmp_path):
    run(SMALL, tmp_path / "map")
    directory = RunDirectory(tmp_path / "map")
    (directory.path / "study_map.jsonl").unlink()
    answers = iter([False, True])
    assert not measure(SMALL, directory, lambda: next(answers))
    assert len(directory.read(StudyMap)) == 1


def test_where_no_full_softmax_runs_the_cell_says_why(monkeypatch):
    def none(*arguments):
        raise UsageError("layer full cannot run here: no memory")

    monkeypatch.setattr(break_even, "choice", none)
    cell = cell_times(SMALL, 1_152, 16)
    assert cell.full_s is None
    assert "no memory" in cell.full_computes
    assert cell.adaptive_s > 0


def test_labels_fall_as_zipf_says():
    labels = zipf(20_000, 1_000, 0, torch.device("cpu"))
    share = 1 / sum(1 / rank for rank in range(1, 1_001))
    assert float((labels == 0).double().mean()) == pytest.approx(share, rel=0.05)
    assert float((labels == 9).double().mean()) == pytest.approx(share / 10, rel=0.2)
