"""What the operator's tests share: layouts, round and awkward, and the definition written out in NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from zipfmax import AdaptiveLogSoftmaxWithLoss, backends

# in_features, n_classes, cutoffs, div_value
LAYOUTS = {
    "round": (16, 20, (5, 10, 15), 2.0),
    "one tail": (16, 64, (16,), 4.0),
    "awkward": (13, 101, (7, 30, 99), 1.7),
    "a shortlist of one, a tail of one": (9, 12, (1, 11), 1),
    "uniform tails": (8, 40, (4, 12, 25), 6.0),  # projection sizes 1, 0, 0
    "widening tails": (6, 30, (3, 20), 0.5),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request):
    return request.param


@pytest.fixture(params=["eager", "auto"])
def backend(request):
    return request.param


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="session")
def definition() -> Callable[[AdaptiveLogSoftmaxWithLoss, torch.Tensor], np.ndarray]:
    """log p(every class | hidden), [N, n_classes] float64: section 4 of the paper, with any biases."""

    def log_prob(layer, hidden):
        state = {name: tensor.double().numpy() for name, tensor in layer.state_dict().items()}
        rows = hidden.detach().double().numpy()
        head = _log_softmax(rows @ state["head.weight"].T + state.get("head.bias", 0.0))
        shortlist = layer.cutoffs[0]
        parts = [head[:, :shortlist]]
        for i in range(len(layer.cutoffs) - 1):
            projected = rows @ state[f"tail.{i}.0.weight"].T + state.get(f"tail.{i}.0.bias", 0.0)
            logits = projected @ state[f"tail.{i}.1.weight"].T + state.get(f"tail.{i}.1.bias", 0.0)
            parts.append(head[:, shortlist + i, None] + _log_softmax(logits))
        return np.concatenate(parts, axis=1)

    return log_prob


@pytest.fixture
def pair(layout):
    """torch.nn's layer and ours with the same float64 weights, a batch, and targets in every cluster."""

    def make(head_bias=False, dtype=torch.float64, n=37, **options):
        torch.manual_seed(0)
        theirs = nn.AdaptiveLogSoftmaxWithLoss(*layout[:3], layout[3], head_bias, dtype=dtype)
        ours = AdaptiveLogSoftmaxWithLoss(*layout[:3], layout[3], head_bias, dtype=dtype, **options)
        ours.load_state_dict(theirs.state_dict())
        hidden = torch.randn(n, layout[0], dtype=dtype) * 3
        target = torch.randint(0, layout[1], (n,))
        edges = torch.tensor([0, *layout[2], *(c - 1 for c in layout[2]), layout[1] - 1])
        target[: len(edges)] = edges[:n]
        return theirs, ours, hidden, target

    return make


@pytest.fixture(autouse=True)
def tiles_at_any_size(monkeypatch):
    """`auto` takes tiles for the few logits of a test too, where it would take the plain operations."""
    monkeypatch.setattr(backends, "SMALL_LOSS", -1)
    monkeypatch.setattr(backends, "SMALL_CLASSES", -1)
