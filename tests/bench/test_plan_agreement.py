"""Whether calibrations plan alike: what is counted, and that the count can fail."""

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from zipfmax import hardware
from zipfmax.cost_model import PartCost
from zipfmax_bench import plan_agreement
from zipfmax_reference.records import PlanAgreement

BUNDLED = hardware.bundled()[0]


def skewed(factor, error=0.05):
    """A calibration whose head is that many times as dear."""
    model = replace(BUNDLED.model, head=PartCost.of(factor * BUNDLED.model.head.coefficients()), error=error)
    return replace(BUNDLED, model=model)


@pytest.fixture
def command(monkeypatch):
    """Runs the command on calibrations that are given, in two cells."""
    given = []

    def calibrate():
        return given.pop(0)

    monkeypatch.setattr(plan_agreement, "calibrate", calibrate)
    monkeypatch.setattr(plan_agreement, "LABELS", ("zipf:1.0",))
    app = typer.Typer()
    app.command()(plan_agreement.main)

    def run(calibrations, *arguments):
        given[:] = calibrations
        return CliRunner().invoke(app, ["--threads", "1", *map(str, arguments)])

    return run


def test_calibrations_that_differ_by_less_than_their_errors_agree_and_are_read_back(command, tmp_path):
    models, out = tmp_path / "models.jsonl", tmp_path / "agreement.jsonl"
    found = [skewed(1 + 0.02 * n) for n in range(3)]
    result = command(found[:2], "--calibrations", 2, "--models", models, "--out", out)
    assert result.exit_code == 0
    assert (
        "In 3 of 3 cells at least 95% of 2 calibrations make the same plan; the least is 100%."
        in " ".join(result.stdout.split())
    )
    assert command(found[2:], "--calibrations", 3, "--models", models, "--out", out).exit_code == 0
    records = [PlanAgreement.model_validate(json.loads(line)) for line in out.read_text().splitlines()]
    assert [len(record.plans) for record in records] == [3, 3, 3]
    assert all(plan == record.bundled for record in records for plan in record.plans)
    assert len(models.read_text().splitlines()) == 3


def test_a_calibration_that_is_sure_of_another_plan_is_counted(command):
    result = command([skewed(1), skewed(60, error=0.001)], "--calibrations", 2)
    assert result.exit_code == 1
    assert "In 0 of 3 cells" in result.stdout
    assert "the least is 50%" in " ".join(result.stdout.split())
