"""Two revisions of zipfmax are told apart by time only where it is sure, by work always."""

from __future__ import annotations

import pytest

from zipfmax.bench.compare import installed, verdict
from zipfmax.bench.coordinator import Measurement, Sample
from zipfmax.bench.protocol import Work
from zipfmax.errors import UsageError
from zipfmax.reference.case import Case

CASE = Case(60, 8, 16, (10, 30))
WORK = Work(peak_bytes=100, flops=200, launches=10, synchronisations=1)


def measurement(seconds: float, work: Work = WORK) -> Measurement:
    samples = [Sample(i % 4, i, seconds * (1 + 0.001 * (i % 3)), seconds) for i in range(24)]
    return Measurement(samples=samples, work=work)


@pytest.mark.parametrize(("now", "outcome"), [(1.2, "slower"), (1.0, "ok"), (1.03, "ok"), (0.8, "faster")])
def test_time_decides_beyond_the_threshold(now, outcome):
    finding = verdict(CASE, "main", measurement(1.0), measurement(now), threshold=0.05)
    assert finding.outcome == outcome


@pytest.mark.parametrize(
    ("work", "failed"),
    [
        (Work(peak_bytes=101, flops=200, launches=10, synchronisations=1), True),
        (Work(peak_bytes=100, flops=200, launches=10, synchronisations=2), True),
        (Work(peak_bytes=90, flops=200, launches=9, synchronisations=1), False),
    ],
)
def test_more_work_fails_and_less_is_told(work, failed):
    finding = verdict(CASE, "main", measurement(1.0), measurement(1.0, work), threshold=0.05)
    assert finding.failed == failed
    assert "->" in finding.text


def test_a_revision_that_cannot_run_fails_by_name():
    broken = Measurement("failed", "ValueError: no")
    finding = verdict(CASE, "main", broken, measurement(1.0), threshold=0.05)
    assert finding.failed
    assert finding.text == "main: failed: ValueError: no"


def test_an_unknown_revision_is_refused():
    with pytest.raises(UsageError, match="no revision 'nowhere'"), installed("nowhere"):
        raise AssertionError("it has been installed")
