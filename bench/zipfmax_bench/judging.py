"""Judges results that another process computed. No implementation under test is ever imported here.

Small cells are judged by the contract, as parity is. Where the NumPy definition would take too long, results
are compared with torch's own full-precision evaluation in blocks of rows, on the device of the case, within a
share of their size. That is wide enough for any order of summation and narrow enough for a skipped block, a
stale result or a lower precision. It does not see rare classes, so the contract judges a random part too: some
rows of output and grad.input, and of full softmax's weight the gradients of some classes of every decade of rank, of
targets and of classes absent from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipfmax_bench import messages
from zipfmax_bench.prediction import product_flops
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.torch_nn import torch_layer
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_batch, draw_full_weight, draw_weights
from zipfmax_reference.truth.judgement import Truth, Verdict
from zipfmax_reference.truth.oracle import WHOLE, Oracle, precision

REFERENCES = ("definition",)

# What the float64 definition may compute for one check, and for the part of a large one; and elements of the
# gradients of a check, of which it holds ten arrays.
DEFINITION_FLOPS, PART_FLOPS = 2e9, 3e8
DEFINITION_ELEMENTS = 2**24

ALLOWED = {"float64": 1e-9, "float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Of a large cell: root mean square of a tensor's error as a share of the tensor's own, by dtype."""

_BLOCK_ELEMENTS = 1 << 26
"""Logits of a block of rows."""


@dataclass(frozen=True)
class Saved:
    """An implementation whose results are in a folder already."""

    name: str
    family: Family
    results: Results
    mismatches: dict[str, str]

    def unsupported_reason(self, case: Case) -> str | None:
        """Nothing: it has computed."""
        return None

    def build(self, case: Case, inputs: Inputs) -> ResultsRunner:
        """The results."""
        return ResultsRunner(self)


@dataclass(frozen=True)
class ResultsRunner:
    """Gives results that are there already."""

    saved: Saved

    def load(self, hidden: Array, target: Labels) -> None:
        """Nothing: the results are those of the batch that is judged."""

    def run(self) -> None:
        """Nothing."""

    def results(self) -> Results:
        """As they were saved."""
        return dict(self.saved.results)

    def mismatches(self) -> dict[str, str]:
        """As they were told."""
        return dict(self.saved.mismatches)


class ResultJudge:
    """Keeps the truth of the last case and batch of each family, and the weights of the last case."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng()
        self._weights: tuple[Case, dict[str, Array]] | None = None
        self._oracles: dict[Family, tuple[tuple[Case, int], Oracle]] = {}
        self._truths: dict[Family, tuple[tuple[Case, int], Results]] = {}

    def lines(self, request: messages.Judge) -> list[dict[str, Any]]:
        """Parity lines of saved results.

        Raises:
            ValueError: a file that is not a plain array.
        """
        case, batch = request.case, request.batch
        found = {file.stem: np.load(file, allow_pickle=False) for file in Path(request.folder).glob("*.npy")}
        wrong = dict(request.mismatches)
        whole = wrong.pop(WHOLE, None)
        saved = Saved(request.implementation, request.family, found, wrong)
        if whole is not None:
            return [_line(request, WHOLE, "fail", reason=whole)]
        if (
            product_flops(request.family, case) <= DEFINITION_FLOPS
            and _elements(request) <= DEFINITION_ELEMENTS
        ):
            return self._oracle(case, batch, request.family).check(saved)
        if case.task not in ("forward", "train"):
            return self._some_rows(request, saved)
        return self._compare(request, saved)

    def _some_rows(self, request: messages.Judge, saved: Saved) -> list[dict[str, Any]]:
        """The contract's lines on a random part of the rows, which do not depend on each other."""
        case = request.case
        share = DEFINITION_FLOPS / product_flops(request.family, case)
        rows = np.sort(self._rng.permutation(case.batch_size)[: max(1, int(share * case.batch_size))])
        inputs = self._inputs(case, request.batch, request.family)
        part = replace(case, batch_size=len(rows))
        for name, values in saved.results.items():
            if values.shape[:1] != (case.batch_size,):
                return [_line(request, name, "fail", reason=f"shape {values.shape}")]
        results = {name: values[rows] for name, values in saved.results.items()}
        inputs = Inputs(inputs.hidden[rows], inputs.target[rows], inputs.weights)
        return Oracle(part, REFERENCES, inputs).check(replace(saved, results=results))

    def _oracle(self, case: Case, batch: int, family: Family) -> Oracle:
        key = case, batch
        if family not in self._oracles or self._oracles[family][0] != key:
            self._oracles.pop(family, None)  # frees the last truth first
            self._oracles[family] = key, Oracle(case, REFERENCES, self._inputs(case, batch, family))
        return self._oracles[family][1]

    def _inputs(self, case: Case, batch: int, family: Family) -> Inputs:
        held = case.without_labels
        if self._weights is None or self._weights[0] != held:
            self._weights = None
            self._weights = held, draw_weights(case)
        weights = self._weights[1]
        if family == "full" and FULL_WEIGHT not in weights:
            weights[FULL_WEIGHT] = draw_full_weight(case)
        return Inputs(*draw_batch(case, batch), weights)

    def _compare(self, request: messages.Judge, saved: Saved) -> list[dict[str, Any]]:
        key, family = (request.case, request.batch), request.family
        inputs = self._inputs(*key, family)
        if family not in self._truths or self._truths[family][0] != key:
            self._truths.pop(family, None)
            self._truths[family] = key, large_truth(request.case, family, inputs)
        truths = self._truths[family][1]
        output = truths["output"]
        lines = []
        allowed = ALLOWED[request.case.dtype]
        for tensor, truth in truths.items():
            values = saved.results.get(tensor)
            if family == "full" and tensor == "output":
                continue
            if tensor in saved.mismatches:
                lines.append(_line(request, tensor, "fail", reason=saved.mismatches[tensor]))
            elif values is None or values.shape != truth.shape:
                what = "missing" if values is None else f"shape {values.shape}, expected {truth.shape}"
                lines.append(_line(request, tensor, "fail", reason=what))
            else:
                error = relative_error(values, truth)
                status = "pass" if error <= allowed else "fail"
                lines.append(_line(request, tensor, status, error=error, budget=allowed))
        sound = {line["tensor"]: line for line in lines if line["status"] == "pass"}
        for tensor, verdict in self._in_part(request, saved.results, inputs, output, set(sound)):
            if verdict.status == "fail":
                sound[tensor].update(asdict(verdict), against="definition in part")
        return lines

    def _in_part(
        self, request: messages.Judge, results: Results, inputs: Inputs, output: Array, wanted: set[str]
    ) -> Iterator[tuple[str, Verdict]]:
        """The contract's verdicts on some rows and some classes, drawn again each time."""
        case, exactness = request.case, precision(request.case)
        by_row = wanted & {"output", "grad.input"}
        if by_row:
            share = PART_FLOPS / product_flops(request.family, case)
            rows = np.sort(self._rng.permutation(case.batch_size)[: max(1, int(share * case.batch_size))])
            part = Inputs(inputs.hidden[rows], inputs.target[rows], inputs.weights)
            smaller = replace(case, batch_size=len(rows))
            row_weight = np.full(len(rows), -1.0 / case.batch_size)
            truth = Truth.of(smaller, part, request.family, row_weight, exactness, of_weights=False)
            for tensor in by_row:
                yield tensor, truth.judge(tensor, results[tensor][rows])
        name = f"grad.{FULL_WEIGHT}"
        if name in wanted:
            most = int(PART_FLOPS / (16 * case.batch_size * case.in_features))
            classes = drawn_classes(case.n_classes, inputs.target, min(max(most, 64), 1024), self._rng)
            yield (
                name,
                Truth.of_classes(case, inputs, classes, output, exactness).judge(
                    name, results[name][classes]
                ),
            )


def drawn_classes(n_classes: int, target: Labels, most: int, rng: np.random.Generator) -> Labels:
    """About `most` classes, as many of each decade of rank, and of those as many targets as absent ones."""
    ranks = np.arange(n_classes)
    decades, present = np.char.str_len(ranks.astype(str)), np.isin(ranks, target)
    groups = [
        np.flatnonzero((decades == d) & (present == p)) for d in np.unique(decades) for p in (False, True)
    ]
    each = max(1, most // len(groups))
    return np.sort(np.concatenate([rng.permutation(group)[:each] for group in groups]))


def relative_error(values: Array, truth: Array) -> float:
    """Root mean square of the difference over that of the truth; infinity where a value is not finite."""
    exact = truth.astype(np.float64, copy=False).ravel()
    difference = values.ravel() - exact
    error, size = (math.sqrt(float(one @ one) / max(1, one.size)) for one in (difference, exact))
    if not math.isfinite(error):
        return math.inf
    return error / size if size else error


def large_truth(case: Case, family: Family, inputs: Inputs) -> Results:
    """Results of a batch in float64, by torch's operations in blocks of rows, on the device of the case.

    Only for the tasks "forward" and "train".
    """
    hidden = torch.from_numpy(np.array(inputs.hidden, dtype=np.float64)).to(case.device)
    target = torch.from_numpy(inputs.target).to(case.device)
    truth = _full_truth if family == "full" else _layers_truth
    found = truth(case, inputs, hidden, target)
    found["loss"] = -found["output"].mean()
    return {name: value.cpu().numpy() for name, value in found.items()}


def _full_truth(case: Case, inputs: Inputs, hidden: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Linear and cross entropy. Their gradients are products with softmax - one_hot(target), over the rows."""
    weight = torch.from_numpy(inputs.weights[FULL_WEIGHT]).to(case.device, torch.float64)
    output, of_hidden = torch.empty_like(hidden[:, 0]), torch.empty_like(hidden)
    of_weight = torch.zeros_like(weight) if case.task == "train" else None
    for rows in _blocks(case):
        logits = hidden[rows] @ weight.T
        own, largest = target[rows, None], logits.amax(dim=1, keepdim=True)
        of_target = logits.gather(1, own) - largest
        shares = logits.sub_(largest).exp_()
        total = shares.sum(dim=1, keepdim=True)
        output[rows] = (of_target - total.log()).squeeze(1)
        if of_weight is not None:
            upstream = shares.div_(total).scatter_add_(1, own, -torch.ones_like(total)).div_(case.batch_size)
            torch.mm(upstream, weight, out=of_hidden[rows])
            of_weight.addmm_(upstream.T, hidden[rows])
    if of_weight is None:
        return {"output": output}
    return {"output": output, "grad.input": of_hidden, f"grad.{FULL_WEIGHT}": of_weight}


def _layers_truth(case: Case, inputs: Inputs, hidden: Tensor, target: Tensor) -> dict[str, Tensor]:
    """torch.nn's layer and autograd."""
    own = {name: values for name, values in inputs.weights.items() if name != FULL_WEIGHT}
    precise = replace(case, dtype="float64")
    model = torch_layer().build(precise, Inputs(inputs.hidden[:1], inputs.target[:1], own)).module
    train = case.task == "train"
    leaves = {"input": hidden, **dict(model.named_parameters())}
    for leaf in leaves.values():
        leaf.requires_grad_(train)
    outputs = []
    with torch.set_grad_enabled(train):
        for rows in _blocks(case):
            output = model(hidden[rows], target[rows]).output
            outputs.append(output.detach())
            if train:
                (-output.sum() / case.batch_size).backward()
    found = {"output": torch.cat(outputs)}
    if train:
        for name, leaf in leaves.items():
            found[f"grad.{name}"] = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    return found


def _blocks(case: Case) -> Iterator[slice]:
    rows = max(1, _BLOCK_ELEMENTS // case.n_classes)
    for start in range(0, case.batch_size, rows):
        yield slice(start, start + rows)


def _elements(request: messages.Judge) -> int:
    """Elements of the largest gradient of a check, 0 where there is none."""
    case = request.case
    if case.task != "train":
        return 0
    if request.family == "full":
        return case.n_classes * case.in_features
    layout = case.layout
    return max(layout.head_size * case.in_features, *(tail.size * tail.projection_size for tail in layout))


def _line(
    request: messages.Judge,
    tensor: str,
    status: str,
    reason: str | None = None,
    error: float | None = None,
    budget: float | None = None,
) -> dict[str, Any]:
    return {
        "case": request.case.id,
        "impl": request.implementation,
        "against": "torch in float64",
        "tensor": tensor,
        "status": status,
        "reason": reason,
        "error": error,
        "budget": budget,
        "dtype": request.case.dtype,
    }
