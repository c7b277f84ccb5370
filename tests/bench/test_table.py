"""The table that a sweep ends with keeps every column and every name."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from zipfmax_bench.table import headings, show, timing_tables
from zipfmax_reference.records import Timing
from zipfmax_reference.runs.case import Case

NAMES = [
    "full",
    "torch",
    "a/long/path/of/folders/layer.py:Layer",
    "a/long/path/of/others/layer.py:Layer",
    "b.c:Layer",
]


def test_a_pipe_gets_every_column_in_one_line_each():
    case = Case(267_735, 256, 512, (20_000, 60_000))
    base = {**case.to_fields(), "case": case.id}
    timings = [
        Timing(
            **base,
            impl=name,
            status="implausible" if position == 4 else "ok",
            median_s=0.001 * position,
            speedup_vs_full=1000.0 + position,
        )
        for position, name in enumerate(NAMES, 1)
    ]
    out = io.StringIO()
    show(Console(file=out, width=40), timing_tables(timings, NAMES))
    (header,) = [line for line in out.getvalue().splitlines() if "labels" in line]
    assert header.split() == [
        "labels",
        "full",
        "torch",
        "folders/layer.py:Layer",
        "others/layer.py:Layer",
        "b.c:Layer",
    ]
    (row,) = [line for line in out.getvalue().splitlines() if "zipf:1.0" in line]
    assert row.split() == ["zipf:1.0", "1", "2", "(1e+03x)", "3", "(1e+03x)", "implausible", "5", "(1e+03x)"]
    assert "…" not in out.getvalue()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x/y/a.py:L"], ["a.py:L"]),
        (["x/y/a.py:L", "z/y/a.py:L"], ["x/y/a.py:L", "z/y/a.py:L"]),
        (["a.py:L", "z/a.py:L"], ["a.py:L", "z/a.py:L"]),
        (["/x/a.py:L", "/y/a.py:M"], ["a.py:L", "a.py:M"]),
    ],
)
def test_different_implementations_have_different_headings(names, expected):
    assert headings(names) == expected
    assert len(set(headings(names))) == len(names)
