"""The protocol of calls: whether a layer is right in use, not on its first call only.

A rule (`rules`) drives one fresh module through a few calls (`session.CallSession`) and holds every result and
gradient against the definition, by the budgets of `judgement`. Its name is what is held. What a layer need not do,
such as a second derivative, is skipped where the layer refuses it, and must be right where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.child import told
from zipfmax_reference.contestants.use import NotApplicableError, NotPromisedError, Use
from zipfmax_reference.runs.arrays import Inputs
from zipfmax_reference.runs.case import Case

# Importing these modules enters their rules.
from zipfmax_reference.truth import (  # noqa: F401
    rules_backward,
    rules_batches,
    rules_calls,
    rules_many,
    rules_models,
    rules_surroundings,
    rules_weights,
)
from zipfmax_reference.truth.judgement import Verdict
from zipfmax_reference.truth.rules import RULES, Rule
from zipfmax_reference.truth.session import CallSession

PREFIX = "protocol."
"""Before a rule's name, where records have a tensor's."""
LARGE = 64
"""Rows of a batch above which only the rules of large cases are asked."""


def check(case: Case, make: Callable[[Inputs], Use], rules: Sequence[str] = ()) -> dict[str, Verdict]:
    """The verdict on each rule, by its name: "protocol.later-calls-are-right" and so on.

    Args:
        case: its task is of no matter.
        make: makes a fresh module with the given weights.
        rules: names of those to check; by default all that are asked of the case.
    """
    training = replace(case, task="train")
    return {f"{PREFIX}{name}": _verdict(RULES[name], training, make) for name in rules or names(case)}


def names(case: Case) -> list[str]:
    """Names of the rules that are asked of a case."""
    large = is_large(case)
    return [
        name
        for name, rule in RULES.items()
        if case.dtype in rule.dtypes
        and case.device.partition(":")[0] in rule.devices
        and (rule.large or not large)
    ]


def is_large(case: Case) -> bool:
    """Whether a case is asked the rules of large cases only."""
    return case.batch_size > LARGE


def _verdict(rule: Rule, case: Case, make: Callable[[Inputs], Use]) -> Verdict:
    session: CallSession | None = None
    try:
        with surroundings.kept():
            session = CallSession(case, make)
            rule.steps(session)
    except NotPromisedError as error:
        why = " ".join(str(error).split())[:200]
        if session is not None and (so_far := session.worst()).status == "fail":
            return so_far
        if isinstance(error, NotApplicableError):
            return Verdict("skipped", reason=f"does not apply: {why}")
        if rule.optional:
            return Verdict("skipped", reason=f"not promised: {why}")
        return Verdict("fail", reason=f"refused, though every layer has to do this: {why}")
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever a layer raises is a finding about it
        return Verdict("fail", reason=told(error))
    return session.worst()
