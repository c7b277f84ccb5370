"""A user's class in a process of its own: what it does there harms nothing but its own verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.child import Child, ChildError, ChildRunner
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
        self._refused: ChildError | None = None
        self._asked = False

    def unsupported_reason(self, case: Case) -> str | None:
        """The device is absent."""
        return missing_device(case)

    def build(self, case: Case, inputs: Inputs) -> ChildRunner:
        """A runner in the child."""
        return self._imported().build(self.name, "build", case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """A module in use in the child."""
        return cast(Use, _RemoteUse(self._imported().build(self.name, "use", case, inputs)))

    def _imported(self) -> Child:
        """The child, which has imported the user's module once; an import that failed is not tried again."""
        if not self._asked:
            self._asked = True
            try:
                self._child.build(self.name)
            except ChildError as error:
                self._refused = error
        if self._refused is not None:
            raise type(self._refused)(str(self._refused))
        return self._child


class _RemoteUse:
    """Every method of `Use`, passed on."""

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._runner.call, name)


def make(name: str, how: str | None = None, *of: Any) -> Any:
    """What the child keeps: a runner by "build", a module in use by "use", or what makes them."""
    made = _made(name)
    return made if how is None else getattr(made, how)(*of)


_made = cache(registry.implementation)
