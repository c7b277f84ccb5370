from dataclasses import replace

import pytest

from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import TASKS, Case
from zipfmax_reference.truth.oracle import check

CASE = Case(203, 24, 33, (7, 30, 202), 2.0, True, "float64")


@pytest.fixture(scope="module", autouse=True)
def _installed():
    reason = registry.implementation("tensorflow").unsupported_reason(CASE)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("task", TASKS)
def test_it_agrees_with_the_definition_torch_and_paddle_where_they_meet(task):
    records = check(replace(CASE, task=task), "tensorflow", ("definition", "torch", "paddle"))
    judged = [r for r in records if r["status"] != "skipped"]
    assert judged
    assert {r["status"] for r in judged} == {"pass"}


def test_a_projection_of_width_0_is_another_function_there():
    assert "at least 1" in registry.implementation("tensorflow").unsupported_reason(
        replace(CASE, div_value=1000.0)
    )
