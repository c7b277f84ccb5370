"""What cannot be is a finding, and noise is none."""

from __future__ import annotations

import pytest

from zipfmax_bench import messages, plausibility
from zipfmax_bench.engine import Measurement, Sample
from zipfmax_reference.runs.case import Case

CASE = Case(60, 8, 16, (10, 30), task="train")


def measured(*seconds: float, untimed_s: float = 1e-4, **work) -> Measurement:
    samples = [Sample(0, round, s, s, untimed_s) for round, s in enumerate(seconds)]
    return Measurement(samples=samples, work=messages.Work(**work), empty_trips_s=[1e-4, 2e-4])


def fault(own: Measurement, name: str = "users.py:Layer", case: Case = CASE) -> str | None:
    return plausibility.fault(case, name, own, measured(0.010, 0.011, 0.010, 0.012, 0.010))


@pytest.mark.parametrize("seconds", [0.0075, 0.010, 0.1])
def test_a_time_near_or_above_the_products_is_none(seconds):
    assert fault(measured(*[seconds] * 5)) is None


def test_a_time_far_below_the_products_is_implausible_with_the_ratio():
    assert fault(measured(0.001, 0.001, 0.001, 0.001, 0.001)).startswith(
        "faster than its matrix products, 10"
    )


@pytest.mark.parametrize(("share", "implausible"), [(0.5, True), (2, False)])
def test_on_a_gpu_only_a_rate_that_no_gpu_reaches_is_implausible(share, implausible):
    case = Case(100_000, 256, 4096, (7_000, 25_000), dtype="bfloat16", device="cuda")
    least_s = plausibility.least_flops(case) / plausibility.FASTEST_GPU_FLOPS["bfloat16"]
    found = fault(measured(*[share * least_s] * 5), case=case)
    assert (found is not None) == implausible


def test_one_fast_sample_among_slow_ones_convicts_nobody():
    assert fault(measured(0.001, 0.012, 0.011, 0.001, 0.010)) is None


def test_microseconds_convict_nobody():
    own, limit = measured(*[1e-5] * 5), measured(*[4e-5] * 5)
    assert plausibility.fault(CASE, "users.py:Layer", own, limit) is None


@pytest.mark.parametrize(("task", "name"), [("predict", "x.py:L"), ("train", "full"), ("train", "limit")])
def test_what_has_no_bound_is_not_judged_by_one(task, name):
    case = Case(60, 8, 16, (10, 30), task=task)
    assert fault(measured(*[1e-6] * 5), name, case) is None


@pytest.mark.parametrize(
    ("share", "all_counted", "implausible"),
    [(0, True, True), (0.5, True, True), (1, True, False), (0, False, False)],
)
def test_fewer_flops_than_the_products_need_are_implausible_where_all_are_counted(
    share, all_counted, implausible
):
    flops = int(share * plausibility.least_flops(CASE))
    found = fault(measured(*[0.02] * 5, flops=flops, all_counted=all_counted))
    assert (found is not None) == implausible
    if implausible:
        assert f"{flops:,} FLOPs counted, fewer than the" in found


def test_the_least_flops_are_those_of_full_softmax_where_there_is_only_a_shortlist():
    case = Case(60, 8, 16, (59,), task="forward", labels="zipf:3")
    assert plausibility.least_flops(case) >= 2 * 16 * 8 * 60


@pytest.mark.parametrize(
    ("claimed_s", "untimed_s", "implausible"),
    [
        (0.010, 1e-4, False),
        (1e-5, 0.010, True),
        (0.010, -0.001, True),
        (0.100, 0.008, False),
        (0.100, 0.02, True),
    ],
)
def test_claimed_times_are_held_against_the_engines_clock(claimed_s, untimed_s, implausible):
    found = plausibility.clock_fault(measured(*[claimed_s] * 5, untimed_s=untimed_s))
    assert (found is not None) == implausible


def test_a_machine_that_delays_empty_answers_as_much_convicts_nobody():
    own = measured(*[0.058] * 5, untimed_s=0.008)
    assert plausibility.clock_fault(own) is not None
    own.empty_trips_s[1] = 0.004
    assert plausibility.clock_fault(own) is None


def test_a_single_prompt_answer_clears_a_process_whose_other_answers_were_delayed():
    own = measured(*[0.01] * 5, untimed_s=0.5)
    own.samples[2] = Sample(0, 2, 0.01, 0.01, 2e-4)
    assert plausibility.clock_fault(own) is None
