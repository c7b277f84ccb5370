"""The timing line of one cell, made from what was measured of its case."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from zipfmax_bench import ratios
from zipfmax_bench.engine import Measurement
from zipfmax_bench.messages import LIMIT
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case

# Every speedup is against one of these, measured in the same rounds.
REFERENCES = ("full", "torch")
# What a gate holds times against: those, and the bare matrix products, which allocate nothing and vary least.
STEADY = (*REFERENCES, LIMIT)

FINDINGS = {"parity_failed": "parity failed", "failed": "failed", "implausible": "implausible"}
"""Statuses that are a fault of the implementation, in words."""

Record = dict[str, Any]


def timing_line(
    case: Case, name: str, found: Mapping[str, Measurement], limit: Measurement | None, threads: int
) -> Record:
    """The line of `timings.jsonl` for an implementation on a case.

    Args:
        case: the case.
        name: the implementation; a key of `found`.
        found: everything that was measured in the case's rounds.
        limit: the bare products of the same shapes, for adaptive implementations.
        threads: of every worker.
    """
    own, gradients = found[name], registry.gradients(name)
    line: Record = {
        **case.to_fields(),
        "case": case.id,
        "impl": name,
        "status": own.status,
        "reason": own.reason,
        "threads": threads,
        "exact": gradients.exact,
        "exact_why": gradients.why,
        "settings": " | ".join(sorted(own.settings)) or None,
        "processes": len({sample.process for sample in own.samples}),
        "occupancy": occupancy(case, own),
        **_times(own),
        **_work(own),
    }
    for reference in REFERENCES:
        line |= _speedup(f"speedup_vs_{reference}", found.get(reference), own)
    line |= _speedup(f"speedup_vs_{LIMIT}", limit, own)
    limit_s = _median(limit) if limit is not None and limit.ok and own.ok else None
    line["limit_s"] = limit_s
    line |= _parts(own, limit)
    line["efficiency"] = limit_s / line["median_s"] if limit_s and line["median_s"] else None
    return line


def occupancy(case: Case, measurement: Measurement) -> list[float] | None:
    """Share of the shortlist and of each tail in the batches that were timed; None if none was."""
    if not measurement.rows:
        return None
    rows = np.sum(measurement.rows, axis=0)
    return [float(share) for share in rows / max(rows.sum(), 1)]


def seconds_by_round(measurement: Measurement) -> dict[ratios.Key, float]:
    """What the statistics pair by."""
    return {(sample.process, sample.round): sample.seconds for sample in measurement.samples}


def measured_ratio(reference: Measurement | None, own: Measurement) -> ratios.Ratio | None:
    """How many times faster than the reference, from the rounds of both; None if either did not run."""
    if reference is None or not (reference.ok and own.ok):
        return None
    return ratios.speedup(seconds_by_round(reference), seconds_by_round(own))


def precise(found: Mapping[str, Measurement], precision: float) -> bool:
    """Whether every ratio that will be told is known to within `precision`, relative, on either side."""
    references = [found[name] for name in REFERENCES if name in found and found[name].ok]
    for reference in references:
        for own in found.values():
            ratio = measured_ratio(reference, own) if own is not reference else None
            if ratio is not None and (ratio.half_width is None or ratio.half_width > precision):
                return False
    return bool(references)


def _times(own: Measurement) -> Record:
    timed = own.ok
    return {
        "median_s": _median(own) if timed else None,
        "wall_s": median(sample.wall_s for sample in own.samples) if timed and own.samples else None,
        "warm_up_s": own.warm_up_s,
        "samples_s": [sample.seconds for sample in own.samples],
        "samples_round": [sample.round for sample in own.samples],
        "samples_process": [sample.process for sample in own.samples],
        "n_rounds": len(own.samples),
        "runs_per_sample": own.runs_per_sample,
        "throttled": own.was_throttled,
        "throttled_samples": own.throttled,
        "replayed": own.replayed,
        "verified_samples": own.verified,
    }


def _work(own: Measurement) -> Record:
    return {
        "peak_bytes": own.work.peak_bytes,
        "flops": own.work.flops,
        "launches": own.work.launches,
        "synchronisations": own.work.synchronisations,
        "delegates": own.work.delegates,
        "uncounted": own.work.uncounted,
    }


def _parts(own: Measurement, limit: Measurement | None) -> Record:
    """The time split by head and tails, of one batch; `limit_parts_s` are the bare products' of the same."""
    parts = own.parts if own.ok else None
    bare = limit.parts if parts is not None and limit is not None and limit.ok else None
    return {
        "parts_s": list(parts.parts_s) if parts else None,
        "parts_whole_s": parts.whole_s if parts else None,
        "parts_rows": list(parts.rows) if parts else None,
        "parts_passes": parts.passes if parts else None,
        "limit_parts_s": list(bare.parts_s) if bare else None,
    }


def _speedup(field: str, reference: Measurement | None, own: Measurement) -> Record:
    ratio = measured_ratio(reference, own)
    return {
        field: ratio.estimate if ratio else None,
        f"{field}_low": ratio.low if ratio else None,
        f"{field}_high": ratio.high if ratio else None,
        f"{field}_smallest_effect": ratio.smallest_effect if ratio else None,
        f"{field}_floor": ratio.floor if ratio else None,
        f"{field}_verdict": ratio.verdict() if ratio else None,
    }


def _median(measurement: Measurement) -> float | None:
    return median(sample.seconds for sample in measurement.samples) if measurement.samples else None
