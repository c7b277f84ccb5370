"""The records of a run directory: their types, their reader and writer, and their JSON schema.

    directory = RunDirectory.start(path, invocation)     # or RunDirectory(path) for an existing one
    directory.write(Timing(...), Timing(...))            # flushed to timings.jsonl on return
    directory.read(Timing)                               # list[Timing]; a torn last line is in .remarks
    directory.finished(Timing)                           # {(case, impl), ...}: what --resume leaves out

This package imports no other part of the harness, so whoever only reads runs needs nothing else of it.
`schema.json` describes every file for readers in other languages.
"""

from zipfmax_reference.records.base import FORMAT, CaseFields, Part, Record, Status, Verdict
from zipfmax_reference.records.checks import Conformance, Metamorphic, Mutant, Stability, TimingFault
from zipfmax_reference.records.directory import RUN_FILE, RunDirectory
from zipfmax_reference.records.meta import Invocation, Machine, RunMeta
from zipfmax_reference.records.parity import Parity, ParityPart
from zipfmax_reference.records.plan import (
    CurvePoint,
    Partition,
    Plan,
    PlanAgreement,
    PlanError,
    PlanProof,
)
from zipfmax_reference.records.rank_timing import RankTiming
from zipfmax_reference.records.selftest import Finding, Outcome, SelfTest, SelfTestRun
from zipfmax_reference.records.study import (
    StudyBand,
    StudyLayer,
    StudyMap,
    StudyPoint,
    StudyRun,
    StudyText,
    StudyTrunk,
)
from zipfmax_reference.records.timing import Timing

RECORDS: dict[str, type[Record]] = {
    kind.FILE: kind
    for kind in (
        *(Parity, Timing, RankTiming, Plan, PlanProof, PlanError, PlanAgreement),
        *(SelfTest, SelfTestRun, Mutant, Conformance, Stability, Metamorphic, TimingFault),
        *(StudyText, StudyLayer, StudyPoint, StudyRun, StudyMap, StudyTrunk),
    )
}
"""Every type of record by the name of its file."""

__all__ = [
    "FORMAT",
    "RECORDS",
    "RUN_FILE",
    "CaseFields",
    "Conformance",
    "CurvePoint",
    "Finding",
    "Invocation",
    "Machine",
    "Metamorphic",
    "Mutant",
    "Outcome",
    "Parity",
    "ParityPart",
    "Part",
    "Partition",
    "Plan",
    "PlanAgreement",
    "PlanError",
    "PlanProof",
    "RankTiming",
    "Record",
    "RunDirectory",
    "RunMeta",
    "SelfTest",
    "SelfTestRun",
    "Stability",
    "Status",
    "StudyBand",
    "StudyLayer",
    "StudyMap",
    "StudyPoint",
    "StudyRun",
    "StudyText",
    "StudyTrunk",
    "Timing",
    "TimingFault",
    "Verdict",
]
