"""Random weights, and log-softmax in NumPy: the formulas of the other frameworks are written out on these."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest

from zipfmax_reference.contestants.paddle_nn import import_paddle


class Arrays:
    """Named random float64 arrays, drawn in the order in which they are asked for."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.hidden = self.rng.normal(size=(9, 12))

    def __call__(self, *shape):
        return self.rng.normal(size=shape)

    @staticmethod
    def log_softmax(logits):
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture
def keras():
    """Keras. Triton and Paddle, where they are, are loaded first: after TensorFlow they crash the process."""
    if find_spec("triton"):
        importlib.import_module("triton")
    if find_spec("paddle"):
        import_paddle()
    return pytest.importorskip("tensorflow").keras


@pytest.fixture
def draw():
    return Arrays()
