"""The fastest setting that is exact is taken, by rule, and what is inexact is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from zipfmax_reference.contestants import full
from zipfmax_reference.contestants.full import Full
from zipfmax_reference.contestants.implementation import GradientSupport
from zipfmax_reference.contestants.padding import Padding
from zipfmax_reference.contestants.settings import (
    ALIKE,
    MUCH_SLOWER,
    SEARCH_S,
    TIMED_RUNS,
    ExactnessCheck,
    NoExactSettingError,
    Setting,
    choose,
    linear_cross_entropy,
    seconds_of,
)
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth import definition

CASE = Case(1001, 24, 96, (7,), dtype="float32")


def settings(*texts):
    return [Setting(text, lambda: linear_cross_entropy) for text in texts]


def found(times, faults=None):
    """The choice where each setting takes so many seconds, or raises."""

    def seconds(setting, best):
        taken = times[setting.text]
        if isinstance(taken, Exception):
            raise taken
        return taken

    return choose(settings(*times), lambda setting: (faults or {}).get(setting.text), seconds)


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=9))
def test_the_setting_taken_is_the_first_of_those_as_fast_as_the_fastest(times):
    named = {f"s{i}": seconds for i, seconds in enumerate(times)}
    taken = found(named).setting.text
    limit = min(times) * (1 + ALIKE)
    assert named[taken] <= limit
    assert all(seconds > limit for text, seconds in list(named.items())[: list(named).index(taken)])
    assert found(named).setting.text == taken


def test_a_faster_setting_that_is_inexact_is_left_out_and_said():
    choice = found({"slow": 2.0, "wrong": 0.1, "fast": 1.0}, {"wrong": "inexact: half is missing"})
    assert choice.setting.text == "fast"
    assert choice.text(10) == "fast (fastest of 2 that are exact; left out: wrong: inexact: half is missing)"


def test_a_setting_that_raises_is_left_out_and_said():
    choice = found({"huge": MemoryError("no more"), "small": 1.0})
    assert choice.setting.text == "small"
    assert "left out: huge: MemoryError: no more" in choice.text(10)


def test_where_every_setting_raises_the_first_error_is_raised():
    with pytest.raises(MemoryError, match="first"):
        found({"a": MemoryError("first"), "b": ValueError("second")})


def test_where_no_setting_is_exact_that_is_the_error():
    with pytest.raises(NoExactSettingError, match=r"a: inexact: x; b: inexact: y"):
        found({"a": 1.0, "b": 1.0}, {"a": "inexact: x", "b": "inexact: y"})


def test_an_only_setting_is_not_timed_but_has_to_be_exact():
    choice = found({"only": RuntimeError("should not run")})
    assert choice.text(10) == "only"
    with pytest.raises(NoExactSettingError, match="inexact: half is missing"):
        found({"only": 1.0}, {"only": "inexact: half is missing"})


def test_a_search_ends_when_its_time_is_over():
    now = [0.0]

    def seconds(setting, best):
        now[0] += SEARCH_S + 1
        return 1.0

    choice = choose(settings("a", "b"), lambda setting: None, seconds, clock=lambda: now[0])
    assert choice.setting.text == "a"
    assert "b: not tried within 60 s" in choice.text(10)


@pytest.mark.parametrize(("best", "runs"), [(float("inf"), 1 + TIMED_RUNS), (0.0, 2)])
def test_a_setting_that_is_much_slower_than_the_best_is_run_no_more(best, runs):
    assert MUCH_SLOWER > 1
    calls = []
    seconds_of(lambda: calls.append(1), torch.device("cpu"), best)
    assert len(calls) == runs


def faulty(kind):
    """A loss with an error of a kind that fused losses have had."""

    def loss(hidden, weight, target, bias):
        logits = F.linear(hidden, weight, bias)
        if kind == "filtered":
            gradient = torch.zeros_like(logits)

            def filter_small(grad):
                return torch.where(grad.abs() < 1e-3 / len(target), gradient, grad)

            logits.register_hook(filter_small)
        value = F.cross_entropy(logits, target)
        if kind == "scaled loss":
            return value * 1.05
        if kind == "sum":
            return value * len(target)
        if kind == "hidden":
            return value + 0.0 * hidden.sum() + (hidden - hidden.detach()).sum() * 1e-3
        if kind == "chunk dropped":
            half = len(target) // 2
            return F.cross_entropy(logits[:half], target[:half])
        if kind == "nan":
            return value * float("nan")
        return value

    return loss


FAULTS = ["filtered", "scaled loss", "sum", "hidden", "chunk dropped", "nan"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_an_exact_setting_passes_padded_or_not(dtype):
    check = ExactnessCheck(replace(CASE, dtype=dtype))
    for padding in (Padding(), Padding(64, "bias"), Padding(384, "feature")):
        assert check.fault(Setting("", lambda: linear_cross_entropy, padding)) is None


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_inexact_setting_is_found_out(kind, dtype):
    check = ExactnessCheck(replace(CASE, dtype=dtype))
    fault = check.fault(Setting("", lambda: faulty(kind)))
    assert fault is not None
    assert fault.startswith("inexact: ")


def test_gradients_that_are_missing_only_for_absent_classes_are_found_out():
    def loss(hidden, weight, target, bias):
        present = torch.zeros(len(weight), 1).index_fill(0, target, 1.0)
        seen = weight.detach() + (weight - weight.detach()) * present
        return linear_cross_entropy(hidden, seen, target, bias)

    fault = ExactnessCheck(CASE).fault(Setting("", lambda: loss))
    assert "the weight's gradient of absent classes" in fault


def test_a_large_vocabulary_is_checked_on_a_small_one_that_is_padded_alike():
    case = replace(CASE, n_classes=267_735, cutoffs=(20_000,))
    check = ExactnessCheck(case)
    n_classes = len(check._weight)
    assert n_classes < 5000
    assert n_classes % 384 == 267_735 % 384
    fault = check.fault(Setting("", lambda: linear_cross_entropy, Padding(64, "bias")))
    assert fault is None


class TwoSettings(Full):
    """Full softmax with an exact setting, an inexact one and another exact one."""

    name = "two"
    built = 0

    def settings(self, case):
        def cheat(hidden, weight, target, bias):
            return linear_cross_entropy(hidden[:2], weight, target[:2])

        def make_slow():
            TwoSettings.built += 1
            return linear_cross_entropy

        return [
            Setting("slow", make_slow),
            Setting("cheat", lambda: cheat),
            Setting("fast", lambda: linear_cross_entropy, Padding(64)),
        ]


def test_a_runner_is_built_with_the_fastest_exact_setting_and_the_search_is_kept(monkeypatch):
    monkeypatch.setattr(full, "_CHOICES", {})
    times = iter([3.0, 1.0] * 2)
    monkeypatch.setattr(full, "seconds_of", lambda run, device, best: run() or next(times))
    case = replace(CASE, n_classes=5001, batch_size=256, dtype="float64")
    inputs = draw_inputs(case, full=True)
    runner = TwoSettings().build_fastest(case, inputs)
    assert runner.settings.startswith(
        "fast, classes padded to 5,056 and masked by a bias of -inf (fastest of 2"
    )
    assert "left out: cheat: inexact" in runner.settings
    runner.run()
    truth = definition.evaluate(case, inputs, "full")
    for name, values in runner.results().items():
        assert values == pytest.approx(truth[name], rel=1e-9, abs=1e-14), name
    searched = TwoSettings.built
    again = TwoSettings().build_fastest(case, inputs)
    assert again.settings == runner.settings
    assert TwoSettings.built == searched
    TwoSettings().build_fastest(
        replace(case, batch_size=255), draw_inputs(replace(case, batch_size=255), full=True)
    )
    assert TwoSettings.built > searched


@pytest.mark.parametrize("exact", [True, False])
def test_only_what_says_that_it_is_inexact_is_timed_inexactly(monkeypatch, exact):
    monkeypatch.setattr(full, "_CHOICES", {})

    class Wrong(Full):
        name = "wrong"
        gradients = GradientSupport(exact, "for a test")

        def settings(self, case):
            return [Setting("", lambda: faulty("sum"))]

    if not exact:
        assert Wrong().build_fastest(CASE, draw_inputs(CASE, full=True)).settings == ""
        return
    with pytest.raises(NoExactSettingError, match="error of the loss"):
        Wrong().build_fastest(CASE, draw_inputs(CASE, full=True))


def test_built_for_no_timing_it_takes_the_first_setting_untried(monkeypatch):
    monkeypatch.setattr(full, "seconds_of", lambda run, device, best: pytest.fail("was tried"))
    assert TwoSettings().build(CASE, draw_inputs(CASE, full=True)).settings == "slow"
