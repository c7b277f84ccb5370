import gc
import os
import signal

import numpy as np
import pytest

from zipfmax_reference.contestants import child as child_module
from zipfmax_reference.contestants.child import Child, ChildDiedError
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_inputs
from zipfmax_reference.truth import definition

CASE = Case(60, 12, 9, (7, 20), dtype="float64")


@pytest.fixture(scope="module")
def child():
    # The definition's own runner, so that the process and not a framework is what is tested.
    return Child("zipfmax_reference.truth.definition:DefinitionRunner")


def test_a_runner_in_a_child_gives_what_it_gives_here(child):
    inputs = draw_inputs(CASE)
    runner = child.build(CASE, inputs)
    runner.run()
    for name, values in definition.evaluate(CASE, inputs).items():
        assert np.array_equal(runner.results()[name], values)
    assert runner.mismatches() == {}


def test_two_runners_of_a_child_do_not_mix(child):
    runners = [child.build(CASE, draw_inputs(CASE)) for _ in range(2)]
    hidden, target = draw_batch(CASE, 1)
    runners[1].load(hidden, target)
    for runner in runners:
        runner.run()
    first, second = (runner.results()["loss"] for runner in runners)
    assert first == definition.evaluate(CASE, draw_inputs(CASE))["loss"]
    assert first != second


def test_a_runner_that_is_let_go_is_let_go_in_the_child(child):
    runner = child.build(CASE, draw_inputs(CASE))
    number = runner._number
    del runner
    gc.collect()
    child.build(CASE, draw_inputs(CASE))
    with pytest.raises(RuntimeError, match="KeyError"):
        child.call("run", number, {})


def test_what_a_runner_raises_is_raised_here_and_the_child_lives_on(child):
    runner = child.build(CASE, draw_inputs(CASE))
    runner.load(np.zeros((9, 5)), np.zeros(9, dtype=np.int64))
    with pytest.raises(RuntimeError, match="ValueError"):
        runner.run()
    child.build(CASE, draw_inputs(CASE)).run()


def test_a_child_that_is_killed_is_an_error_and_the_next_call_starts_another():
    child = Child("zipfmax_reference.truth.definition:DefinitionRunner")
    runner = child.build(CASE, draw_inputs(CASE))
    os.kill(child._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="died with status -9"):
        runner.run()
    child.build(CASE, draw_inputs(CASE)).run()


@pytest.mark.parametrize(
    ("limit", "most", "how"), [(None, "MOST_DEATHS", "died"), (0.2, "MOST_LATE", "no answer")]
)
def test_a_child_that_ends_again_and_again_is_not_started_for_ever(monkeypatch, limit, most, how):
    monkeypatch.setattr(child_module, most, 1)
    child = Child("os:_exit", limit)
    reasons = []
    for _ in range(2):
        with pytest.raises(ChildDiedError, match=how) as raised:
            child.build(3)
        reasons.append(str(raised.value))
    assert reasons[0] == reasons[1]
    assert child._deaths == reasons[:1]
