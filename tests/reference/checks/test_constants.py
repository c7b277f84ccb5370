"""Margins are read from the records of `zipfmax verify`."""

from zipfmax_reference.checks import constants
from zipfmax_reference.truth import judgement


def line(error, grain="element", status="pass", against="definition", case="a", tensor="output"):
    return {"impl": "torch", "dtype": "float32", "against": against, "status": status, "case": case,
            "error": error, "budget": 2.0, "grain": grain, "tensor": tensor}  # fmt: skip


def test_the_largest_share_of_each_grain_counts_against_the_definition_only():
    lines = [
        line(0.5),
        line(1.0, tensor="loss"),
        line(1.9, against="paddle"),
        line(0.2, grain="row"),
        line(3.0, grain="group", status="fail", case="b"),
        line(2.0, status="skipped", case="c"),
    ]
    row = constants.margins(lines).splitlines()[-1]
    assert row == "| torch | float32 | 2 | 1 | 0.50 (loss) | 0.10 (output) | 1.50 (output) |"


def test_constants_are_those_of_the_contract(monkeypatch):
    monkeypatch.setattr(judgement, "ELEMENT", 7.25)
    assert "| element | 7.25 |" in constants.constants()
