"""The code that builds what a plan says: it runs as pasted, imports included."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from zipfmax.planner import Plan


def plan_code(
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    counts: str | None = None,
    counts_import: str = "",
    options: Mapping[str, str] | None = None,
    adaptive: bool = False,
) -> str:
    """Lines of Python that end in `layer = ...`: the planned layer, or `nn.Linear` where full softmax wins.

    Args:
        plan: what to build.
        device, dtype: of the parameters, where they are not torch's own defaults.
        counts: an expression of the counts by label, where labels are not sorted by falling frequency: the
            layer then carries `LabelRanks` of them. Full softmax needs none.
        counts_import: the import that the expression needs, as a line.
        options: further arguments of the adaptive layer, as expressions.
        adaptive: the planned layer, even where full softmax wins.
    """
    factory = _factory(device, dtype)
    torch_import = ["import torch"] if "dtype" in factory else []
    shape = [str(plan.layout.in_features), str(plan.layout.n_classes)]
    if plan.full_is_better and not adaptive:
        arguments = ", ".join([*shape, "bias=False", *_keywords(factory)])
        return _text(
            [*torch_import, "from torch import nn"],
            [
                f"# Full softmax: predicted {1e3 * plan.full_s:.2g} ms a step, planned cutoffs "
                f"{1e3 * plan.predicted_s:.2g} ms.",
                f"layer = nn.Linear({arguments})",
                "loss_function = nn.CrossEntropyLoss()  # loss = loss_function(layer(hidden), target)",
            ],
        )
    given = {"cutoffs": str(list(plan.cutoffs)), "div_value": f"{plan.layout.div_value!r}"}
    names, own_imports = "AdaptiveLogSoftmaxWithLoss", []
    if counts is not None:
        names += ", LabelRanks"
        own_imports = [counts_import] if counts_import else []
        given["label_ranks"] = f"LabelRanks.from_counts({counts})"
    arguments = ", ".join([*shape, *_keywords({**given, **factory, **(options or {})})])
    return _text(
        [*torch_import, f"from zipfmax import {names}", *own_imports],
        [f"layer = AdaptiveLogSoftmaxWithLoss({arguments})"],
    )


def _factory(device: torch.device | str | None, dtype: torch.dtype | None) -> dict[str, str]:
    found = {}
    if device is not None and torch.device(device) != torch.get_default_device():
        found["device"] = repr(str(device))
    if dtype is not None and dtype != torch.get_default_dtype():
        found["dtype"] = str(dtype)
    return found


def _keywords(arguments: Mapping[str, str]) -> list[str]:
    return [f"{name}={expression}" for name, expression in arguments.items()]


def _text(imports: list[str], lines: list[str]) -> str:
    return "\n".join([*imports, "", *lines])
