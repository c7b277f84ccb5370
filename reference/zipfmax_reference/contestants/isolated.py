"""A user's class in a process of its own: what it does there harms nothing but its own verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.child import Child, ChildRunner
from zipfmax_reference.contestants.implementation import Family, Implementation
from zipfmax_reference.contestants.torch_nn import missing_device
from zipfmax_reference.contestants.use import Use
from zipfmax_reference.runs.arrays import Inputs
from zipfmax_reference.runs.case import Case

LIMIT = 300.0
"""Seconds within which a call has to be answered, the import of the user's module included."""


def implementation(name: str) -> Implementation:
    """The implementation of that name, a user's class in a process of its own.

    Raises:
        UsageError: an unknown name, or a file that is not there.
    """
    if not registry.runs_code_of_others(name):
        return registry.implementation(name)
    registry.check_place(name)
    return IsolatedLayer(name)


class IsolatedLayer:
    """A torch module class with torch.nn's constructor, behind a `Child`."""

    family: Family = "adaptive"

    def __init__(self, name: str) -> None:
        self.name = name
        self._child = Child("zipfmax_reference.contestants.isolated:make", LIMIT)

    def unsupported_reason(self, case: Case) -> str | None:
        """The device is absent."""
        return missing_device(case)

    def build(self, case: Case, inputs: Inputs) -> ChildRunner:
        """A runner in the child."""
        return self._child.build(self.name, False, case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """A module in use in the child."""
        return cast(Use, _RemoteUse(self._child.build(self.name, True, case, inputs)))


class _RemoteUse:
    """Every method of `Use`, passed on."""

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._runner.call, name)


def make(name: str, in_use: bool, case: Case, inputs: Inputs) -> Any:
    """What the child keeps: a runner, or a module in use."""
    made = _imported(name)
    return made.use(case, inputs) if in_use else made.build(case, inputs)  # type: ignore[attr-defined]


_imported = cache(registry.implementation)
