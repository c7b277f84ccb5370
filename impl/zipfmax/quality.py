"""What layouts cost in perplexity, as studies found it: the planner's default bounds, and its warnings.

`quality.json` holds the studies' evidence; `python -m zipfmax_bench.study.evidence RUN` writes it. A layout is
compared with the widest one of the same cutoffs, whose tails are as wide as the hidden state, after the same
steps of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zipfmax.clusters import ClusterLayout

FILE = Path(__file__).with_name("quality.json")


@dataclass(frozen=True)
class Measured:
    """A layout of a study, and the relative change of perplexity against the widest with its cutoffs."""

    layer: str
    """Its name in the study."""
    projection_sizes: tuple[int, ...]
    shortlist_share: float
    """Of the labels of the study's text."""
    change: float
    """0.01 is one percent more perplexity: the mean over seeds, with its 95 % interval."""
    low: float
    high: float

    @property
    def least(self) -> int:
        """Width of the narrowest tail."""
        return min(self.projection_sizes)

    def __str__(self) -> str:
        return f"{self.change:+.1%} [{self.low:+.1%}, {self.high:+.1%}]"


@dataclass(frozen=True)
class Evidence:
    """A study: on what text and hardware, and what its layouts cost."""

    hardware: str
    command: str
    text: str
    n_classes: int
    in_features: int
    steps: int
    """At which the layouts are compared."""
    layouts: tuple[Measured, ...]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Evidence:
        """As `quality.json` holds it."""
        layouts = tuple(
            Measured(**{**one, "projection_sizes": tuple(one["projection_sizes"])})
            for one in record["layouts"]
        )
        return cls(**{**record, "layouts": layouts})

    def nearest(self, least: int) -> Measured | None:
        """Of the layouts whose narrowest tail is at most `least` wide, the one where it is widest; None for none."""
        narrower = (one for one in self.layouts if one.least <= least)
        return max(narrower, key=lambda one: (one.least, -one.change), default=None)


@dataclass(frozen=True)
class Quality:
    """The bounds that a plan keeps unless told otherwise, and what they rest on."""

    margin: float
    """Relative change of perplexity, against the widest layout, that the bounds are to keep within."""
    min_projection: int
    min_shortlist_share: float
    studies: tuple[Evidence, ...]

    def sentences(self, layout: ClusterLayout) -> list[str]:
        """What the studies say of a layout: the evidence, and a warning where they found it costly."""
        least = min(layout.projection_sizes)
        found = []
        for study in self.studies:
            place = (
                f"{study.text}, {study.n_classes:,} words, d = {study.in_features}, {study.steps:,} steps, "
                f"{study.hardware}"
            )
            nearest = study.nearest(least)
            if nearest is None:
                narrowest = min(study.layouts, key=lambda one: one.least, default=None)
                if narrowest is not None:
                    found.append(
                        f"Warning: this plan's narrowest tail is {least} wide, narrower than any that was studied; "
                        f"tails of {narrowest.least} cost {narrowest} of perplexity against the widest ({place})."
                    )
                continue
            costly = nearest.change > self.margin
            found.append(
                f"{'Warning: tails' if costly else 'Tails'} as narrow as {nearest.least} changed perplexity by "
                f"{nearest} against the widest with the same cutoffs ({place}; {study.command}); this plan's "
                f"narrowest is {least}."
            )
        return found


@cache
def bundled() -> Quality:
    """What is bundled."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return Quality(**{**content, "studies": tuple(map(Evidence.from_record, content["studies"]))})
