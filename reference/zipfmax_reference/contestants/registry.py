"""Implementations by name, and anyone's own class by where it stands."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from zipfmax.errors import UsageError, one_line, unknown
from zipfmax_reference.contestants.implementation import AS_DEFINED, Family, GradientSupport, Implementation
from zipfmax_reference.contestants.implementation import gradients as own_gradients

# Each adapter is imported when it is asked for; a framework it needs, when it builds.
_FACTORIES: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "zipfmax": ("contestants.torch_nn", "zipfmax_layer", ()),
    "zipfmax:eager": ("contestants.torch_nn", "zipfmax_layer", ("eager",)),
    "zipfmax:tiled": ("contestants.torch_nn", "zipfmax_layer", ("tiled",)),
    "zipfmax:triton": ("contestants.torch_nn", "zipfmax_layer", ("triton",)),
    "torch": ("contestants.torch_nn", "torch_layer", ()),
    "paddle": ("contestants.paddle_nn", "PaddleLayer", ()),
    "tensorflow": ("contestants.tensorflow_layer", "TensorFlowLayer", ()),
    "definition": ("truth.definition", "Definition", ()),
    "full": ("contestants.full", "Full", ()),
    "full:chunked": ("contestants.fused", "Chunked", ()),
    "full:compiled": ("contestants.fused", "Compiled", ()),
    "full:liger": ("contestants.fused", "Liger", ()),
    "full:cce": ("contestants.fused", "CutCrossEntropy", ()),
    "full:cce-exact": ("contestants.fused", "ExactCutCrossEntropy", ()),
    "full:quack": ("contestants.fused", "Quack", ()),
    "sampled": ("contestants.sampled", "Sampled", ()),
}


class NoSuchClassError(UsageError):
    """The name of a user's class leads nowhere."""


USER_FORMS = "saved:DIR, package.module:Class or path/file.py:Class"


def names() -> list[str]:
    """Every built-in name."""
    return list(_FACTORIES)


def implementation(name: str) -> Implementation:
    """The implementation of that name.

    Args:
        name: a built-in name; zipfmax's over ranks, as `zipfmax:tiled@2`; `saved:DIR` for results that
            `contestants.saved` kept; or a torch module class with torch.nn's constructor and parameter names,
            given as `package.module:Class` or `path/file.py:Class`.

    Raises:
        UsageError: unknown name, or a class that cannot be found or imported.
    """
    if name in _FACTORIES:
        module, attribute, arguments = _FACTORIES[name]
        factory = getattr(importlib.import_module(f"zipfmax_reference.{module}"), attribute)
        return cast(Implementation, factory(*arguments))
    if (found := over_ranks(name)) is not None:
        if found[0] not in _FACTORIES:
            raise UsageError(unknown("implementation", name, names()))
        ranks = importlib.import_module("zipfmax_reference.contestants.ranked_layer")
        return cast(Implementation, ranks.RankedLayer(*found))
    if name.startswith("saved:"):
        from zipfmax_reference.contestants.saved import PREFIX, SavedResults

        return SavedResults(Path(name.removeprefix(PREFIX)))
    if name.endswith(".py"):
        raise NoSuchClassError(f"{name} names no class: give it as {name}:Class")
    place, _, attribute = name.rpartition(":")
    if not place or place in {known.partition(":")[0] for known in _FACTORIES}:
        raise UsageError(f"{unknown('implementation', name, names())}, {USER_FORMS}")
    from zipfmax_reference.contestants.torch_nn import users_layer

    return users_layer(name, _users_class(place, attribute))


def users_class(name: str) -> Callable[..., Any]:
    """A user's class itself, for a process that may run its code.

    Raises:
        UsageError: it cannot be found or imported.
    """
    place, _, attribute = name.rpartition(":")
    return _users_class(place, attribute)


def over_ranks(name: str) -> tuple[str, int] | None:
    """The layer and the number of ranks that a name stands for, "zipfmax:tiled@2", or None for other names.

    Raises:
        UsageError: what follows the @ is not a number.
    """
    layer, at, world = name.partition("@")
    if not at or layer.partition(":")[0] != "zipfmax" or "/" in name:
        return None
    if not world.isdigit() or int(world) < 2:
        raise UsageError(f"{name}: after the @ there should be a number of ranks, 2 or more")
    return layer, int(world)


def family(name: str) -> Family:
    """Which function an implementation computes; a user's class, which is adaptive, is not imported."""
    return "adaptive" if runs_code_of_others(name) else implementation(name).family


def runs_code_of_others(name: str) -> bool:
    """Whether a name stands for a user's class, which must not be imported by a process that judges."""
    if name in _FACTORIES or name.startswith("saved:") or over_ranks(name) is not None:
        return False
    place, _, _ = name.rpartition(":")
    return bool(place) and place not in {known.partition(":")[0] for known in _FACTORIES}


def check_place(name: str) -> None:
    """Of a user's class only what can be said without importing it.

    Raises:
        NoSuchClassError: no class is named, or its file or its package is not there.
    """
    place, _, attribute = name.rpartition(":")
    if not attribute:
        raise NoSuchClassError(f"{name} names no class: give it as {place}:Class")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise NoSuchClassError(f"no such file: {place}")
    elif Path(place).is_file():
        raise NoSuchClassError(f"{place} is no Python file: its name should end with .py")
    elif not _is_there(place.partition(".")[0]):
        raise NoSuchClassError(f"no such module: {place}")


def gradients(name: str) -> GradientSupport:
    """What an implementation says of its gradients; a user's class, which says nothing, is not imported."""
    return own_gradients(implementation(name)) if name in _FACTORIES else AS_DEFINED


def _users_class(place: str, attribute: str) -> Callable[..., Any]:
    check_place(f"{place}:{attribute}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for name in attribute.split("."):  # a class may stand in another one
        found = getattr(found, name, None)
    if not callable(found):
        raise NoSuchClassError(f"{place} has no class {attribute!r}")
    return cast(Callable[..., Any], found)


def _import_module(name: str) -> ModuleType:
    _also_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises is told, not traced
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise NoSuchClassError(f"no such module: {name}") from error
        raise UsageError(f"module {name} cannot be imported: {one_line(error)}") from error


def _import_file(file: Path) -> ModuleType:
    name = file.stem
    if not name.isidentifier() or name in sys.modules or _is_there(name):
        name = f"users_{hashlib.sha256(bytes(file.resolve())).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _also_from(file.resolve().parent)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{file} cannot be imported: {one_line(error)}") from error
    return module


def _is_there(module: str) -> bool:
    """Whether a module of no package can be imported, also from the working directory. Nothing is imported."""
    return (
        module in sys.modules
        or importlib.util.find_spec(module) is not None
        or PathFinder.find_spec(module, [str(Path.cwd())]) is not None
    )


def _also_from(folder: Path) -> None:
    """Import from a folder too, but only what is nowhere else: a `queue.py` there hides nobody's module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
