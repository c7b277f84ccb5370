"""Faults that people make in a vocabulary that is split over ranks, each planted in zipfmax's own code.

A fault replaces one name of `zipfmax.parallel` while a rank does what it is asked, in every rank's process.
The traps of `truth.rank_traps` have to catch each of them (`zipfmax mutants --world 2`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from zipfmax.parallel import backend, decoding, functions
from zipfmax.parallel.backend import ShardedBackend
from zipfmax_reference.checks.faults import scaled_gradient
from zipfmax_reference.contestants import ranked_layer

Plant = Callable[[], Any]

FAULTS: dict[str, tuple[str, Plant]] = {}
"""What is wrong, in words, and a context in which it is."""
PLACE = "zipfmax_reference.checks.faults_ranks:make"
CONTROL = "control"


def planted(fault: str) -> Callable[[Plant], Plant]:
    """Enter what plants a fault under its name in kebab case."""

    def enter(plant: Plant) -> Plant:
        FAULTS[plant.__name__.replace("_", "-")] = fault, plant
        return plant

    return enter


def _replaced(owner: Any, name: str, wrong: Callable[..., Any]) -> Any:
    """A context in which a function is one that is given the right one first."""
    right = getattr(owner, name)
    return patch.object(owner, name, lambda *a, **k: wrong(right, *a, **k))


@planted("the loss is off by log(world), as from logits that were gathered and summed again")
def log_of_world() -> Any:
    def wrong(right: Any, shard: Any, log_sum_exp: Any, terms: Any) -> Any:
        joined, summed = right(shard, log_sum_exp, terms)
        return joined + math.log(shard.world), summed

    return _replaced(backend, "joined", wrong)


@planted("the log-sum-exp is over a rank's own classes")
def softmax_of_own_classes() -> Any:
    return _replaced(
        backend, "joined", lambda right, shard, lse, terms: (lse, right(shard, lse.detach(), terms)[1])
    )


@planted("a label of another rank hits a rank's last column")
def label_of_another_rank() -> Any:
    def wrong(right: Any, part: Any) -> Any:
        return right(part._replace(target=part.target.clamp(0, part.weight.shape[0] - 1)))

    return _own_statistics(wrong)


@planted("the columns that pad a shorter rank count, with logits of 0")
def padding_counts() -> Any:
    def wrong(right: Any, part: Any) -> Any:
        log_sum_exp, logit = right(part)
        return torch.logaddexp(log_sum_exp, torch.zeros_like(log_sum_exp)), logit

    return _own_statistics(wrong)


@planted("where a cluster's size is odd, the last rank drops a class")
def odd_class_lost() -> Any:
    def wrong(right: Any, part: Any) -> Any:
        return right(
            part._replace(weight=part.weight[:-1], bias=None if part.bias is None else part.bias[:-1])
        )

    return _own_statistics(wrong)


@planted("the gradient of the hidden states is not summed over the ranks")
def input_gradient_not_summed() -> Any:
    return _replaced(
        backend,
        "shared",
        lambda right, shard, hidden, tensors: (hidden, right(shard, hidden.detach(), tensors)[1]),
    )


@planted("the gradients of the projections, which all ranks hold, are not summed")
def projection_gradients_not_summed() -> Any:
    return _replaced(
        backend, "shared", lambda right, shard, hidden, tensors: (right(shard, hidden, [])[0], tensors)
    )


@planted("the gradients of the projections count world times")
def projection_gradients_count_world_times() -> Any:
    def wrong(right: Any, shard: Any, hidden: Any, tensors: Any) -> Any:
        hidden, held = right(shard, hidden, tensors)
        return hidden, [scaled_gradient(tensor, float(shard.world)) for tensor in held]

    return _replaced(backend, "shared", wrong)


@planted("label smoothing is over a rank's own classes")
def smoothing_of_own_classes() -> Any:
    def wrong(right: Any, *arguments: Any) -> Any:
        return [
            part if part.coefficients is None else part._replace(coefficient_sum=part.coefficients.sum())
            for part in right(*arguments)
        ]

    return _replaced(ShardedBackend, "_parts", wrong)


@planted("the mean is over a rank's share of the rows")
def counts_of_own_rows() -> Any:
    def wrong(right: Any, output: Any, counted: Any, reduction: str) -> Any:
        rank = torch.distributed.get_rank()
        mine = slice(rank, None, torch.distributed.get_world_size())
        if reduction != "mean":
            return right(output, counted, reduction)
        return -output.sum() / len(output[mine])

    return _replaced(backend, "reduce_loss", wrong)


@planted("with ignored rows only the loss is 0")
def nothing_counted_is_zero() -> Any:
    def wrong(right: Any, output: Any, counted: Any, reduction: str) -> Any:
        if counted is None or reduction != "mean":
            return right(output, counted, reduction)
        return -output.sum() / counted.sum().clamp(min=1)

    return _replaced(backend, "reduce_loss", wrong)


@planted("a rank that holds no label does not come to the collective")
def rank_without_labels_stays_away() -> Any:
    def wrong(right: Any, shard: Any, log_sum_exp: Any, terms: Any) -> Any:
        if not terms.any():
            return log_sum_exp, terms
        return right(shard, log_sum_exp, terms)

    return _replaced(backend, "joined", wrong)


@planted("the z-loss squares log-sum-exps that were averaged over the ranks")
def z_loss_of_averages() -> Any:
    def wrong(right: Any, self: Any, *arguments: Any) -> Any:
        scores = right(self, *arguments)
        return scores._replace(squared_lse=scores.squared_lse / self._shard.world**2)

    return _replaced(ShardedBackend, "_of_counted", wrong)


@planted("each rank picks samples by its own random numbers")
def own_random_numbers() -> Any:
    def wrong(right: Any, tensors: Any, group: Any) -> Any:
        found = right(tensors, group)
        if len(found) == 3:  # the head's, and the chances
            found[2][0] = tensors[2]
        return found

    return _replaced(decoding, "gather_together", wrong)


@planted("samples are drawn from a rank's own classes as often as from another's")
def ranks_are_equally_likely() -> Any:
    return _replaced(decoding, "_chosen", lambda right, lse, *rest: right(torch.zeros_like(lse), *rest))


@planted("a rank's gradients are divided by world, as data parallelism does")
def gradients_are_averaged() -> Any:
    def wrong(right: Any, tensor: Any, group: Any) -> Any:
        return right(tensor.div_(torch.distributed.get_world_size(group)), group)

    return _replaced(functions, "start_sum", wrong)


def _own_statistics(wrong: Callable[..., Any]) -> Any:
    """Replace what a rank says of its own classes."""
    right = ShardedBackend._statistics

    def on_the_last(self: Any, part: Any) -> Any:
        last = self._shard.rank == self._shard.world - 1
        return wrong(lambda p: right(self, p), part) if last else right(self, part)

    return patch.object(ShardedBackend, "_statistics", on_the_last)


# --------------------------------------------------------------------------- in a rank's process


class _Faulty:
    """What a rank holds, with a fault while it does something."""

    def __init__(self, made: Any, fault: str) -> None:
        self._made, self._fault = made, fault

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            with _planted(self._fault):
                return getattr(self._made, name)(*arguments, **keywords)

        return call


@contextmanager
def _planted(fault: str) -> Iterator[None]:
    if fault == CONTROL:
        yield
        return
    with FAULTS[fault][1]():
        yield


def make(
    store: str, rank: int, world: int, layer: str, how: str, case: Any, inputs: Any, fault: str
) -> _Faulty:
    """What a rank keeps; see `contestants.ranked_layer.make`. It does not wait long for a rank that stays away."""
    ranked_layer.COLLECTIVE_LIMIT = 5.0
    return _Faulty(ranked_layer.make(store, rank, world, layer, how, case, inputs), fault)
