"""A user's class in a process of its own: what it does there harms nothing but its own verdict."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, cast

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import registry, surroundings
from zipfmax_reference.contestants.child import Child, ChildDiedError, ChildError, ChildRunner
from zipfmax_reference.contestants.implementation import Family, Implementation
from zipfmax_reference.contestants.torch_nn import missing_device
from zipfmax_reference.contestants.use import Use
from zipfmax_reference.runs.arrays import Inputs
from zipfmax_reference.runs.case import Case

LIMIT = 300.0
"""Seconds within which a call has to be answered, the import of the user's module included."""
MARGIN_BYTES = 1 << 20
"""Of an answer, beyond what its arrays may have."""


def implementation(name: str) -> Implementation:
    """The implementation of that name, a user's class in a process of its own.

    Raises:
        UsageError: an unknown name, or a class that is not there or cannot be imported.
    """
    if not registry.runs_code_of_others(name):
        return registry.implementation(name)
    registry.check_place(name)
    layer = IsolatedLayer(name)
    layer.start()
    return layer


class IsolatedLayer:
    """A torch module class with torch.nn's constructor, behind a `Child`."""

    family: Family = "adaptive"

    def __init__(self, name: str) -> None:
        self.name = name
        self._child = Child("zipfmax_reference.contestants.isolated:make", LIMIT)

    def start(self) -> None:
        """Import the user's module.

        Raises:
            UsageError: the module is not there, has no such class or cannot be imported: nothing can be judged.
        """
        try:
            self._child.build(self.name)
        except ChildDiedError as error:
            raise UsageError(f"{self.name} cannot be imported: {error}") from error
        except ChildError as error:
            raise UsageError(str(error)) from error

    def unsupported_reason(self, case: Case) -> str | None:
        """The device is absent."""
        return missing_device(case)

    def build(self, case: Case, inputs: Inputs) -> ChildRunner:
        """A runner in the child."""
        return self._made("build", case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """A module in use in the child."""
        return cast(Use, _RemoteUse(self._made("use", case, inputs)))

    def _made(self, how: str, case: Case, inputs: Inputs) -> ChildRunner:
        return self._child.build(self.name, how, case, inputs, most_bytes=largest_answer(case, inputs))


class _RemoteUse:
    """Every method of `Use`, passed on."""

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._runner.call, name)


def largest_answer(case: Case, inputs: Inputs) -> int:
    """Bytes of everything that a case can compute, in float64, and twice that for a dtype or shape that is wrong."""
    n_values = case.batch_size * (case.n_classes + case.in_features) + sum(
        weight.size for weight in inputs.weights.values()
    )
    return 2 * 8 * n_values + MARGIN_BYTES


def make(name: str, how: str | None = None, *of: Any) -> Any:
    """What the child keeps: a runner by "build", a module in use by "use", or what makes them."""
    made = _made(name)
    if how is None:
        return made
    _around.close()  # what the last module changed of this process is not the next one's
    _around.enter_context(surroundings.kept())
    return getattr(made, how)(*of)


_made = cache(registry.implementation)
_around = ExitStack()
