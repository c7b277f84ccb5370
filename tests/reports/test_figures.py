"""What the static figures draw, read back from their axes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from zipfmax_reports import figures, tables
from zipfmax_reports.parts import parts_of
from zipfmax_reports.runs import read_run
from zipfmax_reports.static import draw
from zipfmax_reports.style import DARK, LIGHT, factor, percent, seconds, size
from zipfmax_reports.svg import inline_svg


@pytest.fixture
def rows(run_directory: Path) -> pd.DataFrame:
    table = tables.cells(read_run(run_directory))
    found = tables.under(tables.ratios(table, "full"), tables.main_condition(table))
    return found[found["impl"] == "zipfmax"]


def test_lines_against_vocabulary_are_the_ratios_with_their_intervals(rows: pd.DataFrame) -> None:
    axes = draw(figures.speedup_by_vocabulary(rows, "full softmax")).axes[0]
    train = rows[rows["task"] == "train"]
    for container, name in zip(axes.containers, tables.label_order(rows), strict=True):
        line = train[train["labels_name"] == name].sort_values("n_classes")
        assert container.get_label() == name
        assert container[0].get_xydata().tolist() == line[["n_classes", "speedup"]].to_numpy().tolist()
        ends = np.array([segment[:, 1] for segment in container[2][0].get_segments()])
        assert ends == pytest.approx(line[["low", "high"]].to_numpy())
    assert any(list(line.get_ydata()) == [1.0, 1.0] for line in axes.get_lines())


def test_real_frequencies_stand_beyond_the_largest_exponent_under_their_name(rows: pd.DataFrame) -> None:
    axes = draw(figures.speedup_by_skew(rows, "full softmax")).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.8", "1", "1.3", "words,\nen"]
    beside = [bars for bars in axes.containers if bars[0].get_xdata()[0] > 1.3]
    assert len(beside) == rows["n_classes"].nunique()
    for container in beside:
        assert container[0].get_linestyle() == "None"


@pytest.mark.parametrize(
    ("speedups", "side"),
    [([8.0, 16.0, 32.0], "faster"), ([0.125, 0.25], "slower"), ([0.5, 4.0], "both"), ([8.0, 8.0], "faster")],
)
def test_the_colours_are_fitted_to_the_values_and_none_is_on_the_wrong_side(
    speedups: list[float], side: str
) -> None:
    logs = pd.Series([math.log2(speedup) for speedup in speedups])
    low, middle, high = figures.fitted(logs)
    assert low < middle < high
    assert low <= logs.min() <= logs.max() <= high
    assert high - middle == pytest.approx(middle - low)
    if side == "both":
        assert middle == 0
    else:
        assert (logs > middle).all() == (side == "faster")
        deepest = logs.iloc[-1] if side == "faster" else logs.iloc[0]
        assert abs(deepest - middle) / (high - middle) > 0.2
        assert abs(middle) <= abs(logs).min()


def test_the_heat_map_writes_each_speedup_in_its_cell(rows: pd.DataFrame) -> None:
    axes = draw(figures.speedup_heat_map(rows)).axes[0]
    train = rows[rows["task"] == "train"]
    written = {
        (round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts
    }
    labels, sizes = tables.label_order(rows)[::-1], sorted(rows["n_classes"].unique())
    assert len(written) == len(train) == 15
    for row in train.itertuples():
        assert written[sizes.index(row.n_classes), labels.index(row.labels_name)] == factor(row.speedup)


def test_a_cell_that_was_not_measured_is_left_blank(rows: pd.DataFrame) -> None:
    missing = rows.drop(rows.index[(rows["task"] == "train") & (rows["labels"] == "uniform")][0])
    texts = [text.get_text() for text in draw(figures.speedup_heat_map(missing)).axes[0].texts]
    assert texts.count("–") == 1


def test_the_parity_strip_draws_a_failure_right_of_the_budget(run_directory: Path) -> None:
    parity = tables.with_used_budget(read_run(run_directory).parity)
    parity.loc[parity.index[0], "used"] = 40.0
    axes = draw(figures.parity_strip(tables.binned(parity))).axes[0]
    drawn = np.concatenate([line.get_xdata() for line in axes.get_lines()])
    assert drawn.max() == 40.0
    assert list(axes.get_lines()[-1].get_xdata()) == [1.0, 1.0]


def test_infinite_errors_are_drawn_at_the_edge(run_directory: Path) -> None:
    parity = tables.with_used_budget(read_run(run_directory).parity)
    parity.loc[parity.index[0], "used"] = np.inf
    drawn = np.concatenate(
        [line.get_xdata() for line in draw(figures.parity_strip(tables.binned(parity))).axes[0].get_lines()]
    )
    assert np.isfinite(drawn).all()
    assert drawn.max() > 1e5


def test_inline_svg_takes_the_page_s_colours_and_escapes_its_words(rows: pd.DataFrame) -> None:
    hostile = rows.assign(labels_name=rows["labels_name"].replace("words, en", "<script>alert(1)</script>"))
    svg = inline_svg(draw(figures.speedup_by_vocabulary(hostile, "x")), "one", "<i>title</i>", "described")
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
    assert "var(--series-1)" in svg
    for colour in (LIGHT.ink, *LIGHT.series[:5]):
        assert colour not in svg


def test_the_dark_theme_draws_with_the_dark_colours(rows: pd.DataFrame) -> None:
    axes = draw(figures.speedup_by_vocabulary(rows, "full softmax"), DARK).axes[0]
    assert axes.get_lines()[0].get_color() == DARK.series[0]
    assert axes.figure.get_facecolor()[:3] == pytest.approx(
        [int(DARK.surface[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )


def test_products_of_a_cell_add_up_to_its_flops() -> None:
    cell = pd.Series(
        {
            "cutoffs": [1000, 4000], "occupancy": [0.5, 0.25, 0.25], "in_features": 256, "batch_size": 1024,
            "n_classes": 10_000, "div_value": 4.0, "task": "train", "dtype": "float32",
        }
    )  # fmt: skip
    head, first, second = parts_of(cell)
    assert head.flops == 3 * 2 * 1024 * 256 * 1002
    assert first.flops == 3 * 2 * 256 * 64 * (256 + 3000)
    assert second.flops == 3 * 2 * 256 * 16 * (256 + 6000)
    assert head.bytes == 3 * 4 * (1024 * 256 + 256 * 1002 + 1024 * 1002)
    assert parts_of(cell.replace({"train": "forward"}))[0].flops == head.flops / 3
    assert parts_of(cell.drop("cutoffs").reindex(cell.index)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (factor(0.5), "0.50×"),
        (factor(12.34), "12.3×"),
        (factor(float("nan")), "–"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(4.2e-5), "42 µs"),
        (size(3 * 2**20), "3 MiB"),
        (size(100), "100 B"),
        (percent(0.412), "41 %"),
        (percent(0.0412), "4.1 %"),
    ],
)
def test_numbers_are_written_in_the_unit_that_suits_them(text: str, expected: str) -> None:
    assert text == expected


def test_the_strip_begins_no_lower_than_four_digits_below_the_budget(run_directory: Path) -> None:
    parity = tables.with_used_budget(read_run(run_directory).parity)
    parity.loc[parity.index[:5], "used"] = 1e-45
    axes = draw(figures.parity_strip(tables.binned(parity))).axes[0]
    drawn = np.concatenate([line.get_xdata() for line in axes.get_lines() if len(line.get_xdata()) > 2])
    assert drawn.min() == 1e-4
    assert drawn.max() == pytest.approx(parity["used"].max())
