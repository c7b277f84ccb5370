"""The grid is the one that is documented, and the table says what the records hold."""

import subprocess
import sys

import pytest

from zipfmax_bench import tiled_grid
from zipfmax_bench.tiled_grid import OURS, cases, markdown, rows, summary
from zipfmax_reference.records import Timing

WHOLE = ((10_000, 50_000, 267_735), tiled_grid.SKEWS, ("float32", "bfloat16"), ("train", "forward"))


def lines_of(case, ours_s, torch_s, paddle_s=None, peak=3 * 2**20, verdict=None):
    def line(name, seconds):
        return Timing(
            **case.to_fields(),
            case=case.id,
            impl=name,
            status="ok" if seconds else "over_budget",
            median_s=seconds,
            limit_s=0.004,
            efficiency=0.004 / seconds if seconds else None,
            peak_bytes=peak if name == OURS else 30 * 2**20,
            speedup_vs_torch_verdict=verdict,
        )

    found = [line(OURS, ours_s), line("torch", torch_s)]
    return found + ([line("paddle", paddle_s)] if paddle_s else [])


def some_cases():
    return list(cases((10_000,), (1.0,), ("float32",), ("train",)))


def test_the_whole_grid_has_every_combination_once():
    grid = list(cases(*WHOLE))
    assert len({case.id for case in grid}) == len(grid) == 3 * 3 * 3 * 2 * 2


def test_paddle_takes_part_in_float32_training_only():
    with_paddle = [case for case in cases(*WHOLE) if "paddle" in tiled_grid.implementations(case)]
    assert {(case.dtype, case.task) for case in with_paddle} == {("float32", "train")}
    assert len(with_paddle) == 27


def test_a_row_holds_ratios_against_the_same_cases_rivals():
    case = some_cases()[0]
    text = markdown(rows(lines_of(case, 0.005, 0.010, 0.015)))
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert " ".join(cells) == "train float32 10,000 256 512 1.0 5.0 10.0 2.00 3.00 4.0 2.50 0.80 3 30"


def test_an_unmeasured_rival_leaves_its_cells_empty():
    case = some_cases()[0]
    text = markdown(rows(lines_of(case, 0.005, None)))
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells[7:12] == ["", "", "", "4.0", ""]


def test_the_summary_is_the_geometric_mean_and_the_extremes():
    first, second, third = some_cases()
    lines = lines_of(first, 0.010, 0.010) + lines_of(second, 0.010, 0.040) + lines_of(third, 0.005, 0.010)
    said = summary(rows(lines))
    assert "train float32 against torch: 2.00x in the geometric mean of 3 cells, 1.00x to 4.00x" in said
    assert "train float32 efficiency for d >= 512: 0.40 to 0.80" in said
    assert "train float32, torch / limit: 3.97 in the geometric mean, 2.50 to 10.00" in said


def test_held_out_shapes_are_summed_up_by_themselves_and_slower_cells_are_named():
    tuned = some_cases()[0]
    (held_out,) = cases((33_000,), (1.0,), ("float32",), ("train",))
    assert (held_out.cutoffs, held_out.in_features, held_out.batch_size) == ((1000, 5000, 15_000), 300, 1000)
    found = lines_of(tuned, 0.010, 0.020, verdict="FASTER") + lines_of(
        held_out, 0.010, 0.009, verdict="SLOWER"
    )
    said = summary(rows(found))
    assert "train float32 against torch: 2.00x in the geometric mean of 1 cells, 2.00x to 2.00x" in said
    assert (
        "train float32, held out against torch: 0.90x in the geometric mean of 1 cells, 0.90x to 0.90x"
        in said
    )
    assert said[-2:] == ["slower than torch beyond the 95 % interval: 1 of 2 cells", held_out.id]


def test_an_unknown_vocabulary_is_wrong_use(tmp_path):
    from zipfmax.errors import UsageError

    with pytest.raises(UsageError, match="12345"):
        tiled_grid.main(tmp_path, classes=[12345])


def test_the_command_says_what_it_takes():
    asked = subprocess.run(
        [sys.executable, "-m", "zipfmax_bench.tiled_grid", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--classes" in asked.stdout
