"""`zipfmax conformance`: feature by implementation, each entry backed by a run; and stability.

The peers are run live; where one has no such feature, or is not run, the entry says so.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from zipfmax.errors import one_line
from zipfmax_reference.checks import probes, stability
from zipfmax_reference.checks.probes import Probe, ProbeResult
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import Conformance, RunDirectory, Stability
from zipfmax_reference.runs.invocation import invocation
from zipfmax_reference.truth.oracle import Record

IMPLEMENTATIONS = ("zipfmax", "torch", "paddle", "tensorflow")
CALLABLE = "can be called"
R_NAME = "R torch"

R_TORCH = ProbeResult(
    "not run", "by its source, nn_adaptive_log_softmax_with_loss ends in not_implemented_error"
)
"""The one entry that is read and not run."""

FEATURES: dict[str, Probe] = {
    CALLABLE: probes.parity("forward"),
    "values and gradients, float32": probes.parity(),
    "values and gradients, float64": probes.parity(dtype="float64"),
    "bfloat16": probes.parity(dtype="bfloat16"),
    "float16": probes.parity(dtype="float16"),
    "head bias": probes.parity(head_bias=True),
    "div_value that is not whole": probes.parity(div_value=1.5),
    "tails of projection width 0": probes.parity(div_value=1000.0),
    "clusters of one class": probes.parity(n_classes=20, cutoffs=(1, 2, 19), labels="uniform"),
    "a batch of no rows": probes.parity("train", "log_prob", batch_size=0),
    "a batch of one row": probes.parity(batch_size=1),
    "logits of the order of 1000": probes.parity("forward", "log_prob", hidden="scale:1000"),
    "rows beside a row of NaN": probes.parity("train", "log_prob", hidden="nan-rows"),
    "predict's dtype and classes": probes.parity("predict", labels="uniform"),
    "a class index above 2**24": probes.class_above_float32,
    "label 0 is a class like any other": probes.padding_label,
    "parameters() holds every weight": probes.parameters_hold_every_weight,
    "loads a checkpoint of torch.nn": probes.loads_torch_checkpoint,
    "gradient of an absent cluster": probes.absent_cluster,
    "refuses a label that is no class": probes.refuses_bad_target,
    "refuses n_classes among the cutoffs": probes.cutoffs_with_n_classes,
    "no host synchronisation in a step": probes.synchronisations,
    "torch.compile(fullgraph=True)": probes.compiles_whole,
    "ignore_index": probes.keyword("ignore_index", 1),
    "reduction": probes.keyword("reduction", "sum"),
    "bias of the tails": probes.keyword("tail_bias", True),
}


def run(out: Path | None = None, resume: bool = False) -> int:
    """Probe every feature of every implementation and examine their stability; show both tables.

    Leaves `conformance.jsonl` (feature, impl, verdict, detail) and `stability.jsonl` (impl, change, tensor,
    verdict, difference) in `out`.

    Returns:
        1 where zipfmax itself differs from the definition, cannot do what torch.nn can, or is beyond its
        budget; otherwise 0: what its peers do is their own.
    """
    directory = RunDirectory.optional(out, invocation({"conformance": True}), resume)
    entries, changes = _known(directory)
    if not entries:
        entries, changes = _examined()
        if directory is not None:
            directory.write(*(Stability(**change) for change in changes))
            directory.write(*(Conformance(**entry) for entry in entries))
    _show(entries, changes)
    worse = [e for e in entries if e["impl"] == "zipfmax" and e["verdict"] in ("differs", "cannot")]
    beyond = [c for c in changes if c["impl"] == "zipfmax" and c["verdict"] == stability.BEYOND]
    for entry in worse:
        print(f"FAILED zipfmax: {entry['feature']}: {entry['verdict']}, {entry['detail']}")
    for change in beyond:
        print(f"FAILED zipfmax: {change['change']}, {change['tensor']}: off by {change['difference']:.3g}")
    sys.stdout.flush()
    return 1 if worse or beyond else 0


def _known(directory: RunDirectory | None) -> tuple[list[Record], list[Record]]:
    """What a resumed run already holds; nothing where it was cut off before its last entry."""
    if directory is None:
        return [], []
    entries = directory.rows(Conformance)
    complete = bool(entries) and entries[-1]["impl"] == R_NAME
    return (entries, directory.rows(Stability)) if complete else ([], [])


def _examined() -> tuple[list[Record], list[Record]]:
    entries: list[Record] = [
        {"feature": feature, "impl": name, **asdict(probed(probe, name))}
        for feature, probe in FEATURES.items()
        for name in IMPLEMENTATIONS
    ]
    entries.append({"feature": CALLABLE, "impl": R_NAME, **asdict(R_TORCH)})
    changes = [
        asdict(entry)
        for name in IMPLEMENTATIONS
        if registry.implementation(name).unsupported_reason(stability.CASE) is None
        for entry in stability.examine(registry.implementation(name))
    ]
    return entries, changes


def probed(probe: Probe, name: str) -> ProbeResult:
    """What came of a probe; an implementation that raises what no probe expects is told, not traced."""
    if not probes.installed(name):
        return ProbeResult("not run", f"{name} is not installed")
    try:
        return probe(name)
    except Exception as error:  # a finding about the implementation
        return ProbeResult("cannot", f"raised {one_line(error)}")


def _show(entries: list[Record], changes: list[Record]) -> None:
    console = terminal()
    table = Table("feature", *IMPLEMENTATIONS, title="conformance", title_justify="left", show_lines=True)
    for feature in FEATURES:
        cells = {e["impl"]: f"{e['verdict']}: {e['detail']}" for e in entries if e["feature"] == feature}
        table.add_row(feature, *(cells[name] for name in IMPLEMENTATIONS))
    print_table(console, table)
    table = Table("implementation", "change", "verdict by tensor", title="stability", title_justify="left")
    for name, change in dict.fromkeys((c["impl"], c["change"]) for c in changes):
        by_verdict: dict[str, list[str]] = {}
        for c in changes:
            if (c["impl"], c["change"]) == (name, change):
                by_verdict.setdefault(c["verdict"], []).append(c["tensor"])
        words = "; ".join(
            f"{v}: {'all' if len(by_verdict) == 1 else ', '.join(tensors)}"
            for v, tensors in by_verdict.items()
        )
        table.add_row(name, change, words)
    print_table(console, table)
