"""What surrounds a call and is not a layer's to change: the process's modes, defaults, threads, random numbers."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import pickle
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.modules import module as torch_module

RANDOM = "the random numbers"
"""How the names of random states begin: a constructor may draw from them."""
IMPORTED = "the number of imported modules"
"""What may change, and with it what `BY_IMPORT` names."""


@dataclass(frozen=True)
class State:
    """A part of the process's state: how it is read and put back."""

    read: Callable[[], Any]
    put: Callable[[Any], object]


def _attribute(holder: object, name: str) -> State:
    return State(partial(getattr, holder, name), partial(setattr, holder, name))


def _contents(holder: MutableMapping[Any, Any]) -> State:
    def put(values: Mapping[Any, Any]) -> None:
        for key in [*holder]:
            if key not in values:
                del holder[key]
        holder.update({key: value for key, value in values.items() if holder.get(key) is not value})

    return State(lambda: dict(holder), put)


def _flushes_denormals() -> bool:
    smallest, one = 5e-324, random.Random(1).randint(1, 1)  # nothing that is folded before it runs
    return smallest * one == 0


def _put_filters(filters: list[Any]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    warnings.simplefilter("ignore", append=True)  # which also has what was decided by the filters forgotten
    del warnings.filters[-1]  # type: ignore[attr-defined]


def _put_environment(variables: Mapping[Any, Any]) -> None:
    decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
    _contents(os.environ).put(decoded)


def _put_autocast_dtypes(dtypes: list[torch.dtype]) -> None:
    for kind, dtype in zip(("cpu", "cuda"), dtypes, strict=True):
        torch.set_autocast_dtype(kind, dtype)


_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and "hooks" in name]

_STATES: dict[str, State] = {
    "the default dtype": State(torch.get_default_dtype, torch.set_default_dtype),
    "the default device": State(torch.get_default_device, torch.set_default_device),
    "the number of threads": State(torch.get_num_threads, torch.set_num_threads),
    "the precision of products": State(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "whether algorithms are deterministic": State(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda modes: torch.use_deterministic_algorithms(modes[0], warn_only=modes[1]),
    ),
    "anomaly detection": State(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast's dtypes": State(
        lambda: [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        _put_autocast_dtypes,
    ),
    "autocast's cache": State(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "flushing of denormal numbers": State(_flushes_denormals, torch.set_flush_denormal),
    **{
        f"torch.backends.cudnn.{name}": _attribute(torch.backends.cudnn, name)
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    },
    "torch.backends.mkldnn.enabled": _attribute(torch.backends.mkldnn, "enabled"),
    "hooks of all modules": State(
        lambda: [dict(getattr(torch_module, name)) for name in _HOOKS],
        lambda hooks: [
            _contents(getattr(torch_module, n)).put(of) for n, of in zip(_HOOKS, hooks, strict=True)
        ],
    ),
    "torch's printing": State(
        lambda: vars(torch._tensor_str.PRINT_OPTS).copy(), vars(torch._tensor_str.PRINT_OPTS).update
    ),
    "NumPy's error handling": State(lambda: np.geterr(), lambda modes: np.seterr(**modes)),
    "NumPy's error function": State(np.geterrcall, np.seterrcall),
    "NumPy's printing": State(np.get_printoptions, lambda options: np.set_printoptions(**options)),
    "garbage collection": State(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "the thresholds of garbage collection": State(
        gc.get_threshold, lambda numbers: gc.set_threshold(*numbers)
    ),
    "the working directory": State(os.getcwd, os.chdir),
    "the recursion limit": State(sys.getrecursionlimit, sys.setrecursionlimit),
    "standard output": _attribute(sys, "stdout"),
    "standard error": _attribute(sys, "stderr"),
    "the level of logging": _attribute(logging.root, "level"),
    "whether logging is disabled": _attribute(logging.root.manager, "disable"),
    "the handler of interrupts": State(
        partial(signal.getsignal, signal.SIGINT), partial(signal.signal, signal.SIGINT)
    ),
}
_IMPORTS: dict[str, State] = {
    "the filters of warnings": State(lambda: [*warnings.filters], _put_filters),
    "the environment": State(lambda: dict(vars(os.environ)["_data"]), _put_environment),  # undecoded: faster
    "the search path of modules": State(
        lambda: [*sys.path], lambda folders: sys.path.__setitem__(slice(None), folders)
    ),
}
_FUNCTIONS: dict[str, State] = {
    "torch.nn.functional": _contents(vars(F)),
    "torch": _contents(vars(torch)),
}
BY_IMPORT = (*_IMPORTS, *_FUNCTIONS)
"""What an import may change, which a first call may need."""


def read() -> dict[str, str]:
    """The present state, each part as text under a name for messages."""
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": pickle.dumps(np.random.get_state()),
        "Python": pickle.dumps(random.getstate()),
    }
    if torch.cuda.is_available():
        states["the GPU"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {
        "the grad mode": str(torch.is_grad_enabled()),
        "inference mode": str(torch.is_inference_mode_enabled()),
        "autocast": str([torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]),
        **{name: _text(state.read()) for name, state in _STATES.items()},
        **{name: _digest(repr(state.read()).encode()) for name, state in _IMPORTS.items()},
        **{name: _digest(_identities(state.read())) for name, state in _FUNCTIONS.items()},
        IMPORTED: str(len(sys.modules)),
        **{f"{RANDOM} of {of}": _digest(state) for of, state in states.items()},
    }


class InThisProcess:
    """What a module that is in use in this process says of its surroundings.

    Args:
        before: what `read` gave before the module was made.
    """

    def __init__(self, before: dict[str, str]) -> None:
        self._before = before

    def surroundings(self, stirred: bool = False) -> dict[str, str]:
        """The process's global state."""
        if stirred:
            stir()
        return read()

    def surroundings_before(self) -> dict[str, str]:
        """What was read before the module was made."""
        return self._before


def modes() -> tuple[bool, ...]:
    """Whether gradients are recorded, in inference mode, and what is autocast, in this thread."""
    autocast = (torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


@contextmanager
def other_defaults() -> Iterator[None]:
    """While torch makes tensors without memory, in float64, or in float32 where that is what it does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if before == torch.float64 else torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What the call returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def _text(value: Any) -> str:
    return f"{value} {id(value)}" if hasattr(value, "write") else str(value)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _identities(functions: Mapping[str, Any]) -> bytes:
    return str([(name, id(one)) for name, one in functions.items() if callable(one)]).encode()


def stir() -> None:
    """Leave nothing that a layer may set as it sets it: for what puts it there again to show.

    Every generator draws a number, and the states that harm no layer are changed.
    """
    torch.rand(1)
    np.random.random()
    random.random()
    if torch.cuda.is_available():
        torch.rand(1, device="cuda")
    torch.set_num_threads(torch.get_num_threads() + 1)
    (gc.disable if gc.isenabled() else gc.enable)()
    np.seterr(under="warn")
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)
    warnings.filterwarnings("ignore", message=f"nobody warns of this {len(warnings.filters)}")
    os.environ["ZIPFMAX_VERIFIES"] = os.environ.get("ZIPFMAX_VERIFIES", "") + "1"


@contextmanager
def kept() -> Iterator[None]:
    """Put back what a layer must not change of the process's global state.

    Within, gradients are recorded and nothing is autocast, whatever the caller's modes are.
    """
    states = _STATES | _IMPORTS | _FUNCTIONS
    before = {name: state.read() for name, state in states.items()}
    n_modules = len(sys.modules)
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            yield
    finally:
        for name, state in states.items():
            if name in _FUNCTIONS and len(sys.modules) != n_modules:
                continue  # a submodule that was imported stays where it is found
            if state.read() != before[name]:
                with suppress(Exception):  # a state that cannot be put back harms no more than it did
                    state.put(before[name])
        np.random.set_state(of_numpy)
        random.setstate(of_python)
