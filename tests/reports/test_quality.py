"""The section on quality, on made-up curves whose answers are known."""

import math
import re

import pytest

from zipfmax_reference.records import (
    RunDirectory,
    StudyBand,
    StudyLayer,
    StudyMap,
    StudyPoint,
    StudyRun,
    StudyText,
    StudyTrunk,
)
from zipfmax_reference.records.study_readings import Curve, Interval, Readings
from zipfmax_reference.runs.invocation import invocation
from zipfmax_reports.page import Page
from zipfmax_reports.quality import quality, times_to_reach, verdict
from zipfmax_reports.quality_map import map_rows, measured_rows
from zipfmax_reports.runs import read_run

BANDS = ((0, 10, 60), (10, 70, 30), (70, 100, 6), (100, 1000, 4))
SEED_NOISE = (0.0, 0.002, -0.002)


def band_losses(loss, rare):
    """Losses by band whose mean over the tokens is `loss`; the rare bands' are `rare` higher than the rest."""
    total = sum(tokens for _, _, tokens in BANDS)
    shift = rare * sum(tokens for *_, tokens in BANDS[2:]) / total
    return [loss - shift + (rare if start >= 70 else 0) for start, _, _ in BANDS]


def curve_records(layer, seed, step_s, gain, steps, rare=0.0):
    """A run of so many steps, whose loss falls from 7 towards 5 - `gain`, with a point each 10 steps."""
    losses = {
        step: 5 - gain + 2 * math.exp(-step / 50) + SEED_NOISE[seed] for step in range(10, steps + 1, 10)
    }
    points = [
        StudyPoint(
            layer=layer,
            seed=seed,
            step=step,
            seconds=step * step_s,
            train_loss=loss,
            valid_loss=loss,
            band_losses=band_losses(loss, rare),
        )
        for step, loss in losses.items()
    ]
    bands = [
        StudyBand(start=start, stop=stop, tokens=tokens, loss=loss, gradient_error=1e-3)
        for (start, stop, tokens), loss in zip(BANDS, points[-1].band_losses, strict=True)
    ]
    run = StudyRun(
        layer=layer,
        seed=seed,
        n_steps=steps,
        seconds=steps * step_s,
        tokens_per_s=100,
        valid_loss=points[-1].valid_loss,
        bands=bands,
    )
    return [*points, run]


def layer_record(layer, step_s, **more):
    return StudyLayer(
        layer=layer,
        computes=layer,
        n_classes=1000,
        in_features=64,
        rows=128,
        trunk="lstm, 1 layer, d 64",
        trunk_flops=500_000,
        step_s=step_s,
        bare_step_s=0.01,
        output_share=1 - 0.01 / step_s,
        parameters=64_000,
        **more,
    )


def study_of(path, seeds=(0, 1, 2), gain=-0.02, adaptive_s=0.02):
    """zipfmax's steps take `adaptive_s`, full softmax's 0.1 s; at equal steps it is 0.02 nats behind."""
    directory = RunDirectory.start(path, invocation({}, "zipfmax study --out made-up"))
    directory.write(
        StudyText(
            tokens="tokens:made-up",
            kind="words",
            split="by file",
            n_files=9,
            n_valid_files=1,
            n_train=10**6,
            n_valid=10**4,
            n_distinct=2000,
            n_classes=1000,
            min_count=1,
            coverage=0.9,
            valid_coverage=0.9,
            zipf_slope=1.0,
            checksum="0",
            read_s=1.0,
        ),
        layer_record("full", 0.1),
        layer_record("zipfmax", adaptive_s, cutoffs=[70, 250], projection_sizes=[16, 4]),
    )
    for seed in seeds:
        directory.write(*curve_records("full", seed, 0.1, 0.0, 100))
        directory.write(*curve_records("zipfmax", seed, adaptive_s, gain, round(10 / adaptive_s), rare=0.5))
    return read_run(path).study


@pytest.fixture
def study(tmp_path):
    return study_of(tmp_path / "run")


def test_a_study_is_read_as_curves(study):
    readings = study.readings
    assert readings.layers == ["full", "zipfmax"]
    assert readings.equal_steps == 100
    assert readings.equal_seconds == pytest.approx(10)
    time = readings.difference("zipfmax", "full", readings.at_equal_time)
    steps = readings.difference("zipfmax", "full", readings.at_equal_steps)
    assert steps.mean == pytest.approx(0.02)
    assert time.mean == pytest.approx(0.02 + 2 * math.exp(-10) - 2 * math.exp(-2))
    assert steps.told_apart
    assert steps.low == pytest.approx(0.02)  # the seeds' noise is common to both


def test_the_verdict_says_what_the_numbers_say(study):
    words = " ".join(verdict(study))
    assert "After 10 s of training, zipfmax's perplexity is 22.2 %" in words
    assert re.search(r"After the same 100 steps it is 2\.0 % \[\+2\.0, \+2\.0\] above", words)
    assert "A whole step takes 20 ms instead of 100 ms (5.00× as fast)" in words
    assert "the better choice on this text and hardware" in words
    assert "Where text and not time is scarce, full softmax is the better choice" in words


def test_a_slower_layer_is_not_recommended(tmp_path):
    words = " ".join(verdict(study_of(tmp_path / "run", adaptive_s=0.2)))
    assert "full softmax is the better choice here" in words
    assert "does not reach the perplexity" in words
    assert "0.50× as fast" in words


def test_a_difference_below_the_seeds_interval_is_called_so(tmp_path):
    study = study_of(tmp_path / "run", gain=0.0, adaptive_s=0.1)
    for seed in (0, 1, 2):  # noise of its own
        RunDirectory(tmp_path / "run").write(
            *curve_records("zipfmax", seed, 0.1, (0.01, -0.01, 0.005)[seed], 100)
        )
    study = read_run(tmp_path / "run").study
    words = " ".join(verdict(study))
    assert words.count("not told apart from (") == 2
    assert "these seeds tell no difference" in words


def test_one_seed_makes_no_claim(tmp_path):
    words = " ".join(verdict(study_of(tmp_path / "run", seeds=(0,))))
    assert "One seed has no interval" in words
    assert "better choice" not in words


def test_time_to_reach_full_softmaxs_perplexity_is_read_between_points(study):
    (own, full), *_, (own_5, full_5) = times_to_reach(study, "zipfmax")
    assert full == pytest.approx(10)
    # 5.02 + 2 exp(-x / 50) = 5 + 2 exp(-2), on the line between points 10 steps apart
    assert own == pytest.approx(0.02 * -50 * math.log(math.exp(-2) - 0.01), abs=0.02)
    assert own_5 < own
    assert full_5 < full


def test_rare_words_stand_out_in_the_figure_of_frequency(study):
    (picture,) = [one for one in quality(study).figures if one.name == "quality-frequency"]
    rows = picture.figure.rows.set_index(["panel", "ranks"])
    shift = 0.5 * 10 / 100
    assert rows.loc[("at equal steps", "0 to 9"), "difference"] == pytest.approx(0.02 - shift)
    assert rows.loc[("at equal steps", "100 to 999"), "difference"] == pytest.approx(0.02 - shift + 0.5)
    both = (30 * (0.02 - shift) + 6 * (0.02 - shift + 0.5)) / 36
    assert rows.loc[("at equal steps", "10 to 99"), "difference"] == pytest.approx(both)


def test_the_page_holds_section_tables_figures_and_statement(tmp_path, study):
    page = Page.of([read_run(tmp_path / "run")])
    html = page.html()
    assert 'id="quality"' in html
    assert 'href="#quality"' in html
    for name in ("quality-curves", "quality-frequency"):
        assert f'id="figure-{name}"' in html
    assert "zipfmax study --out made-up" in html
    assert "-22.2 %" in html
    assert "+2.0 % [+2.0, +2.0]" in html
    assert "What does it cost in quality?" in page.markdown()


def test_a_page_without_a_study_says_nothing_of_it(run_directory, no_figure_is_drawn):
    assert 'id="quality"' not in Page.of([read_run(run_directory)]).html()


def test_points_of_a_killed_attempt_beyond_the_end_do_not_count():
    records = curve_records("full", 0, 0.1, 0.0, 100)
    late = records[0].model_copy(update={"step": 500, "seconds": 50.0, "valid_loss": 1.0})
    readings = Readings.of([*records[:-1], late], [records[-1]])
    assert readings.curves[0].steps == 100


def test_an_interval_is_students():
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-3)
    assert not Interval.of([-1.0, 2.0, 3.0]).told_apart
    assert Interval.of([1.0]).low == -math.inf
    assert not Interval.of([1.0]).told_apart


def test_bands_that_are_not_cut_at_a_rank_give_no_loss():
    *points, run = curve_records("full", 0, 0.1, 0.0, 20)
    curve = Curve("full", 0, tuple(points), tuple(run.bands))
    assert curve.band_loss(0, 70) is not None
    assert curve.band_loss(0, 50) is None


CELL = {"device": "cpu", "dtype": "float32", "in_features": 64, "rows": 128, "cutoffs": [70, 250]}
TRUNK = {"device": "cpu", "dtype": "float32", "trunk": "transformer", "in_features": 64, "rows": 128}


def test_the_map_adds_up_the_parts():
    cells = [StudyMap(n_classes=1000, full_s=0.5, adaptive_s=0.1, inputs_s=0.05, **CELL)]
    trunks = [
        StudyTrunk(depth=depth, flops=depth * 10**6, step_s=0.1 * depth + 0.05, **TRUNK) for depth in (1, 2)
    ]
    rows = map_rows(cells, trunks)
    assert rows["mflops"].tolist() == [1, 2, 4, 8, 16]
    trunk = [0.15, 0.25, 0.45, 0.85, 1.65]  # the last three on the line of the first two
    assert rows["trunk_s"].tolist() == pytest.approx(trunk)
    assert rows["speedup"].tolist() == pytest.approx([(t + 0.55) / (t + 0.15) for t in trunk])


def test_the_map_leaves_out_cells_without_a_time_and_lays_measured_steps_over_it(study):
    cells = [
        StudyMap(n_classes=1000, full_s=0.5, adaptive_s=0.1, inputs_s=0.05, **CELL),
        StudyMap(n_classes=5000, adaptive_s=0.1, inputs_s=0.05, full_computes="no memory", **CELL),
    ]
    rows = map_rows(cells, [StudyTrunk(depth=1, flops=10**6, step_s=0.2, **TRUNK)])
    assert set(rows["classes"]) == {"V 1,000"}
    measured = measured_rows(list(study.layers.values()), rows)
    assert measured["speedup"].tolist() == pytest.approx([5.0])
    assert measured["mflops"].tolist() == [0.5]
