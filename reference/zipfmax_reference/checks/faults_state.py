"""Faults in a layer's state: its state dict, its copies, its dtype, and which of its weights are frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use, scaled_gradient
from zipfmax_reference.checks.faults_calls import Pair, with_value
from zipfmax_reference.checks.faults_weights import Keeping

# State dicts.

ASSIGNED = "assigned-weights-count"
REFUSED = "a-state-dict-that-does-not-fit-is-refused"


@in_use("the head's weight is looked up once", breaks=ASSIGNED)
class HeadLookedUpOnce(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.looked_up: list[Tensor] = []

    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if not self.looked_up or self.looked_up[0].dtype != weight.dtype:
            self.looked_up = [weight]
        return F.linear(hidden, self.looked_up[0], self.head.bias)


@in_use("a copy of the projections is renewed by load_state_dict without assign", breaks=ASSIGNED)
class RenewedByLoading(Keeping):
    sums = 0.0

    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        if not hasattr(self, "first"):
            self.first = [id(parameter) for parameter in self.parameters()]
        if self.first == [id(parameter) for parameter in self.parameters()]:
            self.kept = None
        return self.keep(f"{tail.index}", projection), output


@in_use("a state dict that lacks a weight is taken", breaks=REFUSED)
class MissingWeightTaken(Control):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({**self.state_dict(), **state_dict}, *args, **kwargs)


@in_use("a state dict with a weight too many is taken", breaks=REFUSED)
class UnexpectedWeightTaken(Control):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.state_dict().keys()
        return super().load_state_dict({n: v for n, v in state_dict.items() if n in own}, *args, **kwargs)


@in_use("a weight with rows too many is cut to size", breaks=REFUSED)
class WrongShapeTaken(Control):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        cut = {
            name: value[: len(state_dict[name])]
            for name, value in self.state_dict().items()
            if name in state_dict
        }
        fitting = {n: v[: len(cut[n])] if n in cut else v for n, v in state_dict.items()}
        return super().load_state_dict(fitting, *args, **kwargs)


@in_use("in evaluation mode the state dict holds zeros", breaks="loaded-weights-count")
class EvaluationStateOfZeros(Control):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return state if self.training else {name: torch.zeros_like(value) for name, value in state.items()}


# Copies.

COPY = "a-copy-is-a-layer-of-its-own"


@in_use("a copy shares the head", breaks=COPY)
class CopySharesTheHead(Control):
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        for name, value in self.__dict__.items():
            made.__dict__[name] = copy.deepcopy(value, memo)
        made._modules["head"] = self._modules["head"]
        return made


@in_use("a copy computes with the weights of what it was copied from", breaks=COPY)
class CopyComputesWithTheFirst(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A copy takes this over, and with it the first one's weight.
        self.heads: Callable[[], Tensor] = lambda: self.head.weight

    def head_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, with_value(self.head.weight, self.heads()), self.head.bias)


@in_use(
    "a layer that was pickled gets other weights of the head",
    breaks="a-layer-that-was-pickled-is-the-same-function",
)
class PickledDrawsTheHead(Control):
    def __reduce__(self) -> Any:
        layout = self.layout
        sizes = layout.in_features, layout.n_classes, layout.cutoffs, layout.div_value
        state = {name: value for name, value in self.state_dict().items() if name != "head.weight"}
        return _rebuilt, (type(self), *sizes, self.head.bias is not None, state)


def _rebuilt(cls: type[Control], *arguments: Any) -> Control:
    *sizes, state = arguments
    made = cls(*sizes)
    made.load_state_dict(state, strict=False)
    return made.to(next(iter(state.values())).dtype)


# Another dtype.

DTYPE = "another-dtype-is-the-same-function"


@in_use("the head is kept as it was in the dtype before", breaks=DTYPE)
class HeadOfTheOldDtype(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.served: set[torch.dtype] = set()

    def head_logits(self, hidden: Tensor) -> Tensor:
        self.served.add(hidden.dtype)
        weight = self.head.weight
        return F.linear(
            hidden, weight if len(self.served) == 1 else weight.bfloat16().to(weight), self.head.bias
        )


@in_use("once it has been converted it works in 32 bits", breaks=DTYPE)
class ConvertedWorksInSingle(Control):
    converted = False

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.converted = hasattr(self, "called")
        return self

    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        self.called = True
        logits = super().tail_logits(tail, hidden)
        narrow = torch.bfloat16 if logits.dtype == torch.float32 else torch.float32
        return logits.to(narrow).to(logits) if self.converted else logits


# Frozen weights.

FROZEN = "weights-frozen-one-by-one-leave-the-others-gradients"


@in_use("where only the head takes gradients it gets those of the shortlist", breaks=FROZEN)
class HeadAloneLacksSlots(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        alone = self.head.weight.requires_grad and not any(p.requires_grad for p in self.tail.parameters())
        return super().joint(tail, scaled_gradient(prior, 0.5) if alone else prior, within)


@in_use("a frozen bias of the head stops its weight", breaks=FROZEN)
class FrozenBiasStopsTheHead(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        weight, bias = self.head.weight, self.head.bias
        stopped = (
            bias is not None and not bias.requires_grad and any(p.requires_grad for p in self.parameters())
        )
        return F.linear(hidden, weight.detach() if stopped else weight, bias)


@in_use("where all projections are frozen the input gets half of the tails' gradient", breaks=FROZEN)
class FrozenProjectionsHalveTheInput(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        takes = [[w.requires_grad for w in self.weights(tail)] for tail in self.layout]
        halved = all(output and not projection for projection, output in takes)
        return super().tail_logits(tail, scaled_gradient(hidden, 0.5) if halved else hidden)


@in_use("log_prob is coarse under autocast", breaks="log-prob-and-predict-keep-to-the-precision-of-autocast")
class AutocastLogProbCoarse(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return (found * 4).round() / 4 if torch.is_autocast_enabled(hidden.device.type) else found


@in_use(
    "predict knows the shortlist only under autocast",
    breaks="log-prob-and-predict-keep-to-the-precision-of-autocast",
)
class AutocastPredictsShortlist(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        limited = torch.is_autocast_enabled(hidden.device.type)
        known = self.layout.shortlist_size if limited else self.layout.n_classes
        return self.log_prob(hidden)[:, :known].argmax(dim=1)
