"""Lines of former formats, translated to the present one. They are read, never gone on with."""

from __future__ import annotations

import re
from typing import Any

from zipfmax_reference.records.base import Part
from zipfmax_reference.records.parity import Parity
from zipfmax_reference.records.timing import Timing

OLDEST = 1
"""The oldest format that is read."""

_INEXACT = ("full:cce", "sampled")
_OPTION_OF_VERIFY = re.compile(r"zipfmax verify --(mutants|conformance|metamorphic)\b")
_DTYPE = re.compile(r"-(float64|float32|bfloat16|float16)-")


def upgraded(kind: type[Part], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a format 1 object as the present type has them; fields that it lacks are left out.

    Format 1 counted the throttled samples in `throttled`; at first its timings did not say whether gradients
    are exact, nor its comparisons their dtype, which the case's id holds. What are commands now were options of
    `zipfmax verify` then.
    """
    if isinstance(count := fields.get("throttled"), int) and not isinstance(count, bool):
        fields = {**fields, "throttled": count > 0, "throttled_samples": count}
    if kind is Timing and fields.get("exact") is None:
        fields = {**fields, "exact": fields.get("impl") not in _INEXACT}
    if kind is Parity and "dtype" not in fields and (found := _DTYPE.search(str(fields.get("case")))):
        fields = {**fields, "dtype": found.group(1)}
    if isinstance(command := fields.get("command"), str):
        fields = {**fields, "command": _OPTION_OF_VERIFY.sub(r"zipfmax \1", command)}
    return {name: value for name, value in fields.items() if name in kind.model_fields}
