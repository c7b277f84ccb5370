from dataclasses import replace

import numpy as np
import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.saved import save
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth import oracle

CASE = Case(60, 12, 9, (7, 20), head_bias=True)


@pytest.fixture
def carried(tmp_path):
    save(tmp_path / "there", CASE, registry.implementation("torch"), draw_inputs(CASE))
    return f"saved:{tmp_path / 'there'}"


def test_saved_results_are_a_reference_like_the_implementation_itself(carried):
    records = oracle.check(CASE, "zipfmax:eager", (carried, "torch"))
    assert {record["status"] for record in records} == {"pass"}
    inputs = draw_inputs(CASE)
    kept = registry.implementation(carried).build(CASE, inputs).results()
    runner = registry.implementation("torch").build(CASE, inputs)
    runner.run()
    for name, expected in runner.results().items():
        np.testing.assert_allclose(kept[name], expected, rtol=1e-6, atol=1e-7)
    assert {record["tensor"] for record in records} == kept.keys() >= {"grad.tail.1.1.weight"}


def test_saved_results_that_are_wrong_are_found_wrong(carried):
    [file] = registry.implementation(carried)._directory.iterdir()
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in saved.files}
    arrays["output"] = arrays["output"] + np.float32(0.01)
    np.savez_compressed(file, **arrays)
    records = oracle.check(CASE, carried, ("definition",))
    assert [record["tensor"] for record in records if record["status"] == "fail"] == ["output"]


def test_results_of_one_device_serve_another_and_other_cases_are_lacking(carried):
    saved = registry.implementation(carried)
    assert saved.unsupported_reason(replace(CASE, device="cuda")) is None
    assert "not among" in saved.unsupported_reason(replace(CASE, seed=1))


def test_results_of_other_inputs_are_refused(carried):
    other = draw_inputs(replace(CASE, seed=1))
    with pytest.raises(ValueError, match="other inputs"):
        registry.implementation(carried).build(CASE, other)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--save-results"):
        registry.implementation(f"saved:{tmp_path}")


def test_verify_keeps_results_and_compares_with_them(tmp_path):
    from typer.testing import CliRunner

    from zipfmax.command import application

    app = application("verify")
    cells = ["--cells", "V60-*-div4-bias-float32*", "--dtype", "float32", "--against", "definition"]
    kept = str(tmp_path / "kept")
    assert CliRunner().invoke(app, [*cells, "--impl", "torch", "--save-results", kept]).exit_code == 0
    done = CliRunner().invoke(app, [*cells, "--impl", "zipfmax:eager", "--against", f"saved:{kept}"])
    assert done.exit_code == 0, done.output
    assert "not among" not in done.output
    both = CliRunner().invoke(app, [*cells, "--impl", "torch", "--impl", "zipfmax", "--save-results", kept])
    assert both.exit_code == 2 or isinstance(both.exception, UsageError)
