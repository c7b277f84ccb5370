"""The ratio of two implementations and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipfmax_bench import ratios


def series(values, processes=1):
    return {(i % processes, i): float(value) for i, value in enumerate(values)}


def test_the_ratio_is_reference_over_candidate():
    ratio = ratios.speedup(series([3.0, 3.0, 3.0]), series([1.0, 1.0, 1.0]))
    assert ratio is not None
    assert ratio.estimate == pytest.approx(3.0)
    assert (ratio.low, ratio.high) == (pytest.approx(3.0), pytest.approx(3.0))


def test_drift_that_both_share_cancels():
    drift = np.linspace(1.0, 4.0, 20)
    ratio = ratios.speedup(series(2.0 * drift), series(drift))
    assert ratio is not None
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0)


def test_only_rounds_that_both_have_are_paired():
    reference = {(0, 0): 1.0, (0, 1): 100.0, (0, 2): 1.0}
    candidate = {(0, 0): 1.0, (0, 2): 1.0, (0, 3): 50.0}
    ratio = ratios.speedup(reference, candidate)
    assert ratio is not None
    assert ratio.pairs == 2
    assert ratio.estimate == pytest.approx(1.0)


def test_no_shared_round_gives_no_ratio_and_one_gives_no_interval():
    assert ratios.speedup({(0, 0): 1.0}, {(0, 1): 1.0}) is None
    single = ratios.speedup({(0, 0): 2.0}, {(0, 0): 1.0})
    assert single is not None
    assert single.estimate == pytest.approx(2.0)
    assert single.low is None


def test_processes_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    noise = np.exp(0.01 * rng.standard_normal(40))
    process_effect = np.array([1.0, 1.2, 0.85, 1.1])[np.arange(40) % 4]
    alone = ratios.speedup(series(np.ones(40)), series(noise * process_effect))
    clustered = ratios.speedup(series(np.ones(40), 4), series(noise * process_effect, 4))
    assert alone is not None
    assert clustered is not None
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    trials, covered = 400, 0
    for trial in range(trials):
        reference = series(2.0 * np.exp(0.05 * rng.standard_normal(12)))
        candidate = series(np.exp(0.05 * rng.standard_normal(12)))
        ratio = ratios.speedup(reference, candidate, seed=trial)
        assert ratio is not None
        covered += ratio.low <= 2.0 <= ratio.high
    assert covered / trials >= 0.93


@given(st.lists(st.floats(0.001, 1000.0), min_size=2, max_size=12), st.integers(1, 3))
def test_swapping_the_two_inverts_the_ratio(times, processes):
    ones = series(np.ones(len(times)), processes)
    forward = ratios.speedup(series(times, processes), ones)
    backward = ratios.speedup(ones, series(times, processes))
    assert forward is not None
    assert backward is not None
    assert forward.estimate == pytest.approx(1 / backward.estimate)
    assert forward.low <= forward.estimate * (1 + 1e-9)
    assert forward.high >= forward.estimate * (1 - 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.3, 1.5, "FASTER"),
        (0.5, 0.7, "SLOWER"),
        (0.99, 1.01, "SAME"),
        (1.001, 1.01, "SAME"),
        (0.9, 1.01, "UNRESOLVED"),
        (0.99, 1.2, "UNRESOLVED"),
        (1.01, 1.2, "FASTER"),
        (None, None, "UNRESOLVED"),
    ],
)
def test_a_verdict_says_only_what_the_interval_shows(low, high, verdict):
    assert ratios.Ratio(1.0, low, high, 9).verdict(margin=0.02) == verdict


def test_an_effect_as_large_as_the_smallest_one_is_found_four_times_in_five():
    rng = np.random.default_rng(2)
    noise, rounds = 0.03, 20
    effects = []
    for trial in range(60):
        null = ratios.speedup(
            series(np.ones(rounds)), series(np.exp(noise * rng.standard_normal(rounds))), seed=trial
        )
        assert null is not None
        effects.append(null.smallest_effect)
    effect = 1 + np.median(effects)
    found = 0
    for trial in range(200):
        slower = effect * np.exp(noise * rng.standard_normal(rounds))
        ratio = ratios.speedup(series(np.ones(rounds)), series(slower), seed=trial)
        assert ratio is not None
        found += ratio.high < 1
    assert 0.65 < found / 200 < 0.95
