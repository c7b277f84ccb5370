"""What surrounds a call and is not a layer's to change: the process's modes, defaults, threads, random numbers."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

RANDOM = "the random numbers"
"""How the names of random states begin: a constructor may draw from them."""


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
        "anomaly detection": str(torch.is_anomaly_enabled()),
        "the default dtype": str(torch.get_default_dtype()),
        "the default device": str(torch.get_default_device()),
        "the number of threads": str(torch.get_num_threads()),
        "the precision of products": torch.get_float32_matmul_precision(),
        "whether algorithms are deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "NumPy's error handling": str(np.geterr()),
        **{f"{RANDOM} of {of}": hashlib.sha256(state).hexdigest()[:12] for of, state in states.items()},
    }


def stir() -> None:
    """Draw one number from each generator, so that none of them is where a seed puts it."""
    torch.rand(1)
    np.random.random()
    random.random()
    if torch.cuda.is_available():
        torch.rand(1, device="cuda")


@contextmanager
def kept() -> Iterator[None]:
    """Put back what a layer must not change of the process's global state.

    Within, gradients are recorded and nothing is autocast, whatever the caller's modes are.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    anomaly = torch.is_anomaly_enabled()
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.random.fork_rng(devices=[]),
            np.errstate(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.autograd.set_detect_anomaly(anomaly)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
