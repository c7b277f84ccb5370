"""`zipfmax conformance`: feature by implementation, each entry backed by a run; and stability.

The peers are run live; where one has no such feature, or is not run, the entry says so. A layer of the user's own
runs in processes of its own: `own_layer` asks it there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from zipfmax.errors import UsageError
from zipfmax_reference.checks import probes, stability
from zipfmax_reference.checks.probes import Probe, ProbeResult
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants import isolated, registry
from zipfmax_reference.contestants.child import Child, ChildError, told
from zipfmax_reference.contestants.implementation import Implementation
from zipfmax_reference.contestants.sources import digests
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


def run(out: Path | None = None, resume: bool = False, own: Sequence[str] = ()) -> int:
    """Probe every feature of every implementation and examine their stability; show both tables.

    Leaves `conformance.jsonl` (feature, impl, verdict, detail) and `stability.jsonl` (impl, change, tensor,
    verdict, difference) in `out`.

    Args:
        out: a run directory.
        resume: go on with the run in `out`.
        own: layers of the user's own, which are probed beside torch.nn's alone.

    Returns:
        1 where zipfmax itself, or a layer of the user's own, differs from the definition, cannot do what torch.nn
        can, or is beyond its budget; otherwise 0: what its peers do is their own.

    Raises:
        UsageError: a layer that is not there, or a built-in name in place of one.
    """
    names = (*own, "torch") if own else IMPLEMENTATIONS
    layers = {name: OwnLayer(name) for name in own}
    called = invocation({"conformance": list(own) or True}, sources=digests(own, ()))
    directory = RunDirectory.optional(out, called, resume)
    entries, changes = _known(directory, names)
    if not entries:
        entries, changes = _examined(names, layers)
        if directory is not None:
            directory.write(*(Stability(**change) for change in changes))
            directory.write(*(Conformance(**entry) for entry in entries))
    _show(entries, changes, names)
    judged = own or ("zipfmax",)
    torchs = {e["feature"]: e["verdict"] for e in entries if e["impl"] == "torch"}
    worse = [
        e for e in entries if e["impl"] in judged and _is_worse(e, torchs.get(e["feature"]) if own else None)
    ]
    beyond = [c for c in changes if c["impl"] in judged and c["verdict"] == stability.BEYOND]
    for entry in worse:
        print(f"FAILED {entry['impl']}: {entry['feature']}: {entry['verdict']}, {entry['detail']}")
    for change in beyond:
        what = f"{change['change']}, {change['tensor']}: off by {change['difference']:.3g}"
        print(f"FAILED {change['impl']}: {what}")
    sys.stdout.flush()
    return 1 if worse or beyond else 0


def _is_worse(entry: Record, torchs: str | None) -> bool:
    """Whether an entry is a finding; of a user's layer what torch.nn's does not do either is none."""
    return entry["verdict"] in ("differs", "cannot") and entry["verdict"] != torchs


def _known(directory: RunDirectory | None, names: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """What a resumed run already holds; nothing where it was cut off before its last entry."""
    if directory is None:
        return [], []
    entries = directory.rows(Conformance)
    last = R_NAME if names == IMPLEMENTATIONS else names[-1]
    complete = bool(entries) and entries[-1]["impl"] == last and len(entries) >= len(FEATURES) * len(names)
    return (entries, directory.rows(Stability)) if complete else ([], [])


def _examined(names: Sequence[str], layers: Mapping[str, OwnLayer]) -> tuple[list[Record], list[Record]]:
    entries: list[Record] = []
    for feature, probe in FEATURES.items():
        for name in names:
            found = layers[name].probed(feature) if name in layers else probed(probe, name)
            entries.append({"feature": feature, "impl": name, **asdict(found)})
    if names == IMPLEMENTATIONS:
        entries.append({"feature": CALLABLE, "impl": R_NAME, **asdict(R_TORCH)})
    changes: list[Record] = []
    for name in names:
        implementation = layers[name].implementation if name in layers else registry.implementation(name)
        if implementation.unsupported_reason(stability.CASE) is None:
            changes += _changes(implementation)
    return entries, changes


def _changes(implementation: Implementation) -> list[Record]:
    """The lines on an implementation's stability; none of one that raises, which the features tell."""
    try:
        return [asdict(entry) for entry in stability.examine(implementation)]
    except ChildError:
        return []


class OwnLayer:
    """A layer of the user's own, whose code runs in other processes only.

    Raises:
        UsageError: a built-in name, or a class that is not there.
    """

    def __init__(self, name: str) -> None:
        if not registry.runs_code_of_others(name):
            raise UsageError(f"conformance probes every built-in name without --impl: {name} is one")
        self.implementation = isolated.implementation(name)
        self._child = Child("zipfmax_reference.checks.own_layer:OwnProbes", isolated.LIMIT)
        self._name = name

    def probed(self, feature: str) -> ProbeResult:
        """What came of a feature's probe: numbers are judged here, the rest is what the other process found."""
        probe = FEATURES[feature]
        try:
            if isinstance(probe, probes.parity):
                return probe.of(self.implementation)
            answer = self._child.build(self._name).call("probe", feature)
            return ProbeResult(*map(str, answer))  # type: ignore[arg-type]
        except Exception as error:  # a finding about the layer
            return _raised(error)


def probed(probe: Probe, name: str) -> ProbeResult:
    """What came of a probe; an implementation that raises what no probe expects is told, not traced."""
    if not probes.installed(name):
        return ProbeResult("not run", f"{name} is not installed")
    try:
        return probe(name)
    except Exception as error:  # a finding about the implementation
        return _raised(error)


def _raised(error: Exception) -> ProbeResult:
    return ProbeResult("cannot", told(error))


def _show(entries: list[Record], changes: list[Record], names: Sequence[str]) -> None:
    console = terminal()
    table = Table("feature", *names, title="conformance", title_justify="left", show_lines=True)
    for feature in FEATURES:
        cells = {e["impl"]: f"{e['verdict']}: {e['detail']}" for e in entries if e["feature"] == feature}
        table.add_row(feature, *(cells[name] for name in names))
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
