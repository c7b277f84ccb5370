"""The numeric contract: when a computed tensor counts as equal to the truth.

`budgets` gives the standard deviation of what rounding does to each element. An error is held against it at three
grains, each with a threshold of its own, because each sees a kind of fault that the others do not:

    element   |error| / deviation of each element                          one wrong number
    row       rms(error) / rms(deviation) of each row                      one class, one batch row
    group     the same over many rows: shortlist, each tail, targets       a small error of all rare classes
              of the batch, absent classes, each decade of label rank

A mean of n squares is known to about 1 / sqrt(2 n), so a row or group may exceed 1 by a multiple of 1 / sqrt(n).
n is the number of errors that are independent at worst: of a class's row, the smaller one of its width and of the
number of rows that are not rounded alike; of a batch row, whose log-sum-exp all share, one. Values must be finite
where the truth is and does not overflow the dtype, and nowhere else. A class that is picked may be less probable than
the right one by what rounding does to the two log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.arrays import CLASSES, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, full_weight
from zipfmax_reference.truth import budgets, definition
from zipfmax_reference.truth.contract import Values, best_classes, form_fault, gaps
from zipfmax_reference.truth.rounding import ROUNDING

ELEMENT = 6.0
"""Deviations that one element may be off."""
ROW, ROW_SPREAD = 1.5, 3.5
GROUP, GROUP_SPREAD = 0.9, 2.5
MANY = 8
"""A row, or a group of fewer than MANY classes, may be off by ROW + ROW_SPREAD / sqrt(n) deviations, in the root mean
square; a larger group by GROUP + GROUP_SPREAD / sqrt(n)."""

EXTENDED_LIMIT = 1 << 24
"""Multiplications N x d x V up to which a float64 case's truth is evaluated in extended precision."""

Status = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class GroupError:
    """How far off one group of a tensor is."""

    name: str
    """Such as "shortlist", "tail 2", "absent classes", "ranks 1,000 to 9,999"."""
    error: float
    """Root mean square."""
    budget: float
    relative: float
    """Root mean square of the error over that of the truth."""

    @property
    def share(self) -> float:
        """Error over budget."""
        return self.error / self.budget if self.budget > 0 else float(self.error > 0) * np.inf


@dataclass(frozen=True)
class Verdict:
    """What the contract says of one tensor, at the grain where the error is the largest share of its budget."""

    status: Status
    error: float | None = None
    budget: float | None = None
    grain: str | None = None
    """element, row or group."""
    where: str | None = None
    """Which element, row or group that is."""
    parts: tuple[GroupError, ...] = ()
    cause: str | None = None
    """What would explain a failure, where one of the usual mistakes does."""
    reason: str | None = None

    @property
    def share(self) -> float:
        """Error over budget: above 1 it fails."""
        if self.error is None or self.budget is None:
            return np.inf if self.status == "fail" else 0.0
        return self.error / self.budget if self.budget > 0 else (0.0 if self.error == 0 else np.inf)


@dataclass(frozen=True)
class Truth:
    """What a case's task gives, and how far rounding may move each element of it.

    `of` evaluates it; `of_results` takes another implementation's results in place of the definition's.
    """

    case: Case
    target: Values
    values: Results
    deviations: Results
    """Finite wherever the truth is."""
    different_rows: int
    """Rows whose roundings are independent of each other's."""
    overflows: Results = field(default_factory=dict)
    """Masks of the elements that need not be finite, because something on their way may overflow the dtype."""
    labels: Values | None = None
    """Classes of the rows of `full.weight`'s gradient, where it has some only."""
    log_prob: Values | None = None
    """[N, n_classes] for "predict" and "topk", whose ties it settles; None for the other tasks."""
    log_prob_deviation: Values | None = None
    _known_groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, tuple[Any, ...]]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        case: Case,
        inputs: Inputs,
        family: Family = "adaptive",
        row_weight: Values | None = None,
        precision: str | None = None,
        of_weights: bool = True,
    ) -> Truth:
        """Evaluate the definition and its budgets.

        Args:
            case: the cell.
            inputs: its weights and batch.
            family: which function.
            row_weight: [N] gradient of what is differentiated with respect to each row's output; by default
                that of the mean loss, -1/N.
            precision: the key of `rounding.ROUNDING`; by default the case's dtype.
            of_weights: whether the weights' gradients are wanted.
        """
        n_rows = len(inputs.target)
        if row_weight is None:
            row_weight = np.full(n_rows, -1.0 / max(n_rows, 1))
        row_weight = np.asarray(row_weight, dtype=np.float64)
        rounding = ROUNDING[precision or case.dtype]
        affordable = case.batch_size * case.n_classes * case.in_features <= EXTENDED_LIMIT
        dtype = np.longdouble if case.dtype == "float64" and affordable else np.float64
        values = definition.evaluate(
            case, inputs, family, row_weight=row_weight, of_weights=of_weights, dtype=dtype
        )
        head = full_weight(case, inputs) if family == "full" else inputs.weights["head.weight"]
        bias = None if family == "full" else inputs.weights.get("head.bias")
        different = budgets.different_rows(rounding, head, bias, inputs.hidden)
        deviations, overflows = budgets.of_case(
            case, inputs, family, row_weight, rounding, of_weights=of_weights
        )
        if case.task in ("forward", "train"):
            return cls(case, inputs.target, values, deviations, different, overflows)
        if family == "full":
            log_prob = definition.full_log_prob(full_weight(case, inputs), inputs.hidden, dtype)
        else:
            log_prob = definition.adaptive_log_prob(case.layout, inputs.weights, inputs.hidden, dtype)
        of_all = deviations["log_prob"]
        if case.task != "log_prob":
            deviations, overflows = {}, dict(overflows)
        if case.task == "topk":
            classes = values["topk.classes"]
            deviations["topk.values"] = np.take_along_axis(of_all, classes, axis=1)
            if "log_prob" in overflows:
                overflows["topk.values"] = np.take_along_axis(overflows["log_prob"], classes, axis=1)
        return cls(
            case,
            inputs.target,
            values,
            deviations,
            different,
            overflows,
            log_prob=log_prob,
            log_prob_deviation=of_all,
        )

    @classmethod
    def of_classes(
        cls,
        case: Case,
        inputs: Inputs,
        classes: Labels,
        output: Values,
        precision: str | None = None,
    ) -> Truth:
        """The rows of some classes in the gradient of full softmax's weight, for the mean loss.

        Args:
            case: the cell, of the task "train".
            inputs: its batch, and weights with full softmax's.
            classes: [S].
            output: [N] each target's log-probability, in float64.
            precision: as in `of`.
        """
        rounding, weight = ROUNDING[precision or case.dtype], inputs.weights[FULL_WEIGHT]
        row_weight = np.full(case.batch_size, -1.0 / max(case.batch_size, 1))
        value, deviation = budgets.full_classes(
            weight, classes, inputs.hidden, inputs.target, output, row_weight, rounding
        )
        different = budgets.different_rows(rounding, weight, None, inputs.hidden)
        name = f"grad.{FULL_WEIGHT}"
        overflows = {name: ~np.isfinite(deviation)} if rounding.largest < np.inf else {}
        return cls(case, inputs.target, {name: value}, {name: deviation}, different, overflows, classes)

    def of_results(self, results: Results) -> Truth:
        """Another implementation's results as the truth: both may be off, so deviations count twice."""
        doubled = {name: 2.0 * deviation for name, deviation in self.deviations.items()}
        values = {
            name: self.values[name] if name in CLASSES else results[name].astype(np.float64)
            for name in self.values
            if name in results
        }
        return replace(self, values=values, deviations=doubled)

    def verdicts(self, results: Results, mismatches: dict[str, str] | None = None) -> dict[str, Verdict]:
        """The contract's verdict on each tensor of a task's results.

        Args:
            results: what an implementation computed, as `Runner.results` gives it.
            mismatches: tensors whose own dtype or device is wrong, and what it is.
        """
        found = {}
        for tensor in self.values:
            if tensor not in results:
                found[tensor] = Verdict("fail", reason="missing")
            elif fault := (mismatches or {}).get(tensor) or form_fault(
                tensor, results[tensor], self.values[tensor], self.case.dtype
            ):
                found[tensor] = Verdict("fail", reason=fault)
            else:
                found[tensor] = self.judge(tensor, results[tensor])
        for tensor in results.keys() - self.values.keys():
            found[tensor] = Verdict("fail", reason="not a tensor of this task")
        return found

    def judge(self, tensor: str, values: Values) -> Verdict:
        """The verdict on one tensor of the right shape and dtype."""
        if tensor in CLASSES:
            return self._judge_classes(values)
        truth, deviation = self.values[tensor], self.deviations[tensor]
        sound = np.isfinite(truth)
        overflows = self.overflows.get(tensor, np.zeros(truth.shape, dtype=bool))
        spurious = int((np.isfinite(values) & ~sound & ~overflows).sum())
        if spurious:
            return Verdict("fail", reason=f"{spurious} finite values where the truth is not finite")
        overflown = sound & ~np.isfinite(values)
        if (overflown & ~overflows).any():
            return Verdict("fail", reason="not finite where the truth is")
        sound &= ~overflown
        if truth.size == 0 or not sound.any():
            return Verdict("pass", 0.0, 0.0)
        with np.errstate(all="ignore"):
            error = np.where(sound, np.abs(values.astype(truth.dtype) - truth), 0.0).astype(np.float64)
        deviation = np.where(sound, deviation, 0.0)
        rows = (len(error), -1) if error.ndim else (1, 1)
        error, deviation = error.reshape(rows), deviation.reshape(rows)
        size = np.where(sound, truth, 0.0).astype(np.float64).reshape(rows)
        parts = tuple(self._parts(tensor, error, deviation, size))
        grains = [
            ("element", *_element(error, deviation)),
            ("row", *_row(error, deviation, self._independent(tensor, error.shape[1]))),
        ]
        grain, share, off, budget, row = max(grains, key=lambda one: one[1])
        where = self._place(tensor, row, error.shape[1])
        for part in parts:
            if part.share > share:
                grain, share, off, budget, where = "group", part.share, part.error, part.budget, part.name
        return Verdict("pass" if share <= 1 else "fail", float(off), float(budget), grain, where, parts)

    def judge_quickly(self, tensor: str, values: Values) -> Verdict:
        """As `judge`, without rows and groups where no element is off by more than GROUP deviations.

        A root mean square of errors is then at most GROUP times that of the deviations, which every grain allows.
        """
        truth, deviation = self.values.get(tensor), self.deviations.get(tensor)
        if tensor not in CLASSES and truth is not None and deviation is not None and truth.size:
            with np.errstate(all="ignore"):
                error = np.abs(values - truth) if values.shape == truth.shape else np.array(np.inf)
                if (error <= GROUP * deviation).all():
                    at = np.unravel_index(int((error / deviation).argmax()), error.shape)
                    return Verdict("pass", float(error[at]), float(ELEMENT * deviation[at]), "element")
        return self.judge(tensor, values)

    def _judge_classes(self, values: Values) -> Verdict:
        assert self.log_prob is not None
        assert self.log_prob_deviation is not None
        if values.size == 0:
            return Verdict("pass", 0.0, 0.0)
        gap = gaps(values, self.log_prob).reshape(len(values), -1)
        picked = values.reshape(gap.shape)
        chosen = np.where((picked >= 0) & (picked < self.case.n_classes), picked, 0).astype(np.int64)
        right = best_classes(self.log_prob, gap.shape[1])
        with np.errstate(all="ignore"):
            budget = ELEMENT * sum(
                np.take_along_axis(self.log_prob_deviation, classes, axis=1) for classes in (chosen, right)
            )
        # Where one log-probability of a row may overflow, so may those that it is compared with.
        overflows = self.overflows.get("log_prob", np.zeros(self.log_prob.shape, dtype=bool))
        budget = np.where(overflows.any(axis=1, keepdims=True), np.inf, budget)
        excess = np.where(gap > 0, gap / np.maximum(budget, 1e-300), 0.0)
        at = np.unravel_index(int(excess.argmax()), excess.shape)
        status: Status = "pass" if excess[at] <= 1 else "fail"
        return Verdict(status, float(gap[at]), float(budget[at]), "element", f"row {at[0]}")

    def _parts(self, tensor: str, error: Values, deviation: Values, size: Values) -> Iterator[GroupError]:
        within_row = self._independent(tensor, error.shape[1])
        by_class = self.classes(tensor, error.shape)[1] is not None and tensor != "log_prob"
        if (tensor, error.shape) not in self._known_groups:
            self._known_groups[tensor, error.shape] = [
                (name, (np.flatnonzero(mask),) if axis == 0 else (slice(None), np.flatnonzero(mask)))
                for name, mask, axis in self._groups(tensor, error.shape)
                if mask.any()
            ]
        for name, chosen in self._known_groups[tensor, error.shape]:
            e, d, t = error[chosen], deviation[chosen], size[chosen]
            n = within_row if by_class else min(len(e), self.different_rows)
            # A group of a few rows is known no better than a row.
            least, spread = (GROUP, GROUP_SPREAD) if len(e) >= MANY or not by_class else (ROW, ROW_SPREAD)
            budget = float(least + spread / np.sqrt(n)) * _rms(d)
            off, scale = _rms(e), _rms(t)
            yield GroupError(name, off, budget, off / scale if scale > 0 else (0.0 if off == 0 else np.inf))

    def _groups(self, tensor: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Values, int]]:
        """(name, mask, axis) of the groups of a tensor's rows, or of its columns where those are classes."""
        layout = self.case.layout
        axis, classes = self.classes(tensor, shape)
        if classes is None:
            if shape[0] == len(self.target) and tensor in ("output", "grad.input"):
                parts = layout.parts(self.target)
                for part in range(1 + layout.n_clusters):
                    yield f"labels of {_part_name(part)}", parts == part, 0
            else:
                yield "all", np.ones(shape[0], dtype=bool), 0
            return
        real = classes >= 0
        if not real.all():
            yield "cluster slots", ~real, axis
        targets = np.isin(classes, self.target)
        if axis == 1 or tensor == f"grad.{FULL_WEIGHT}":
            parts = layout.parts(np.maximum(classes, 0))
            for part in range(1 + layout.n_clusters):
                yield _part_name(part), real & (parts == part), axis
        else:
            yield "all classes", real, axis
        if axis == 0:
            yield "targets", real & targets, axis
            yield "absent classes", real & ~targets, axis
        for decade in range(len(str(layout.n_classes))):
            low, high = (10**decade if decade else 0), 10 ** (decade + 1)
            member = real & (classes >= low) & (classes < high)
            yield f"ranks {low:,} to {high - 1:,}", member, axis
            if axis == 0:
                yield f"absent, ranks {low:,} to {high - 1:,}", member & ~targets, axis

    def classes(self, tensor: str, shape: tuple[int, ...]) -> tuple[int, Values | None]:
        """Axis of a tensor that runs over classes, and their labels; -1 for a cluster's slot. None if none."""
        layout = self.case.layout
        if tensor == "log_prob":
            return 1, np.arange(shape[1])
        if tensor == f"grad.{FULL_WEIGHT}":
            return 0, np.arange(shape[0]) if self.labels is None else self.labels
        if tensor in ("grad.head.weight", "grad.head.bias"):
            slots = np.arange(layout.head_size)
            return 0, np.where(slots < layout.shortlist_size, slots, -1)
        if tensor.startswith("grad.tail.") and tensor.endswith(".1.weight"):
            tail = layout.tails[int(tensor.split(".")[2])]
            return 0, np.arange(tail.start, tail.stop)
        return 0, None

    def _independent(self, tensor: str, width: int) -> int:
        """Errors within a row that are independent at worst."""
        by_batch_row = tensor in ("output", "loss", "grad.input", "log_prob", "topk.values")
        return 1 if by_batch_row else max(1, min(width, self.different_rows))

    def _place(self, tensor: str, row: int, width: int) -> str:
        rows = self.values[tensor].shape[:1] or (1,)
        axis, classes = self.classes(tensor, (*rows, width))
        if classes is None or axis == 1:
            return f"row {row}"
        label = int(classes[row])
        if label < 0:
            return f"slot of tail {row - self.case.layout.shortlist_size}"
        kind = "a target" if label in self.target else "absent from the batch"
        part = _part_name(int(self.case.layout.parts(np.array([label]))[0]))
        return f"class {label:,} ({part}, {kind})"


def _part_name(part: int) -> str:
    return "shortlist" if part == 0 else f"tail {part - 1}"


def _rms(values: Values) -> float:
    if values.size == 0:
        return 0.0
    absolute = np.abs(values)
    largest = float(np.max(absolute))
    if largest == 0 or not np.isfinite(largest):
        return largest
    shares = (absolute / largest).ravel()
    return largest * float(np.sqrt(np.dot(shares, shares) / shares.size))


def _element(error: Values, deviation: Values) -> tuple[float, float, float, int]:
    """Share of the budget, error, budget and row of the worst element."""
    budget = ELEMENT * deviation
    with np.errstate(all="ignore"):
        share = np.where(error > 0, error / budget, 0.0)
    share = np.where(np.isnan(share), 0.0, share)
    at = np.unravel_index(int(share.argmax()), share.shape)
    return float(share[at]), float(error[at]), float(budget[at]), int(at[0])


def _row(error: Values, deviation: Values, independent: int) -> tuple[float, float, float, int]:
    """The same of the worst row; (0, ...) where a row is an element."""
    width = error.shape[1]
    if width < 2:
        return 0.0, 0.0, 0.0, 0
    with np.errstate(all="ignore"):
        scale = np.maximum(deviation.max(axis=1, keepdims=True), 1e-300)
        off = scale[:, 0] * np.sqrt(np.mean((error / scale) ** 2, axis=1))
        spread = scale[:, 0] * np.sqrt(np.mean((deviation / scale) ** 2, axis=1))
        budget = (ROW + ROW_SPREAD / np.sqrt(independent)) * spread
        share = np.where(off > 0, off / budget, 0.0)
    share = np.where(np.isnan(share), 0.0, share)
    at = int(share.argmax())
    return float(share[at]), float(off[at]), float(budget[at]), at
