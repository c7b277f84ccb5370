"""A layer as a training loop uses it: many batches, calls and backwards on one module, told step by step.

`Runner` does one task on one batch. `Use` is what the protocol of calls (`truth.protocol`) drives. Batches and calls
are kept under names; arrays go in and come out, so that a layer may live in another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from zipfmax_reference.runs.arrays import Array, Labels, Results

CallMode = Literal[
    "record",
    "no_grad",
    "inference",
    "autocast",
    "thread",
    "default",
    "computed",
    "parameter",
    "checkpoint",
]
"""How a call is made.

With gradients; without, in two ways; under autocast to bfloat16; in a thread of its own; under another default dtype
and device. Also with gradients: with weights that are computed from the parameters; with an input that is a
parameter; and in a checkpoint, which makes the call again in backward.
"""
Setting = Literal["deterministic", "anomaly", "threads", "coarse", "exact"]
"""What a user sets for the whole process.

Deterministic algorithms; the search for anomalies in backward; a thread more; products of lower precision, or exact.
"""
Manner = Literal["copy", "data", "replace", "turn", "flat"]
"""How weights are written: by copy_, into .data, or as another tensor in .data.

That may lie column by column, or behind other numbers in one memory.
"""
Gaps = Literal["none", "columns", "rows", "turned", "before", "once"]
"""How the numbers of a batch lie in memory.

Side by side; with others after each number, after each row, or before the first; column by column; or the targets of
all rows are one number.
"""
Misfit = Literal["missing", "unexpected", "shape"]
"""How a state dict does not fit: a weight too few, one too many, or one with a row too many."""
LABELS = "int64"
"""The dtype of targets."""


class NotPromisedError(RuntimeError):
    """The layer does not do this, and says so."""


class NotApplicableError(NotPromisedError):
    """The framework has no such thing, so that a rule says nothing about the layer."""


class Use(Protocol):
    """A module with a case's weights."""

    def batch(
        self,
        name: str,
        hidden: Array,
        target: Labels,
        leaf: bool = True,
        gaps: Gaps = "none",
        labels: str = LABELS,
        column: bool = False,
        over: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Make a batch's tensors.

        A `leaf` input takes a gradient, with `gaps` they do not lie side by side, targets have the dtype `labels` and
        are [N], or [N, 1] with `column`. They lie in the memory of the batch `over`, which is dropped with all
        results. The input has the case's dtype, or another `dtype`.
        """

    def refill(self, name: str, hidden: Array, target: Labels, seen: bool = True) -> None:
        """Write other values into a batch's tensors, where autograd sees it or not."""

    def call(
        self,
        name: str,
        batch: str,
        mode: CallMode = "record",
        through: bool = False,
        row: int | None = None,
    ) -> Results:
        """Call the module on a batch: output and loss.

        With `through` the input is computed from the batch's; with `row` one row is called, as [d] and [].

        Raises:
            NotPromisedError: the layer refuses one row, autocast, or computed weights.
        """

    def setting(self, setting: Setting) -> None:
        """Set something for the whole process, as its user may."""

    def read(self, name: str) -> Results:
        """The results of an earlier call, from the tensors that it returned."""

    def form(self, name: str) -> str | None:
        """What is wrong with the tensors that a call returned, or None."""

    def evaluate(self, method: str, batch: str, name: str = "", mode: CallMode = "no_grad") -> Array:
        """`log_prob` or `predict` of a batch, kept under a name where there is one.

        Raises:
            NotPromisedError: the layer refuses autocast.
        """

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
        gaps: Gaps = "none",
    ) -> None:
        """Differentiate a call's results, with these gradients coming in; None for a result that is left out.

        A recorded `log_prob` is differentiated as output is. One number for output stands for all rows, as where
        output is summed: it is in memory once. With `gaps` the gradients of output, or log_prob, do not lie side
        by side.

        Raises:
            NotPromisedError: the layer refuses to be differentiated again, by a kept graph.
        """

    def asked(self, name: str, batch: str) -> Results:
        """The gradients of a call's loss as `gradients` gives them, asked for and not left in the leaves."""

    def backward_of_sum(self, names: Sequence[str]) -> None:
        """One backward of the sum of these calls' losses."""

    def curvature(self, batch: str) -> tuple[Results, list[str]]:
        """As `gradients`, those of the loss and half the squared norm of its gradients, added up.

        And names of gradients that are constants to torch, which the norm leaves out.

        Raises:
            NotPromisedError: the layer refuses to be differentiated twice.
        """

    def together(self, batches: Sequence[str], rounds: int) -> dict[str, list[Results]]:
        """Call the module on each batch in a thread of its own, so many times, all threads at the same time.

        Results of each batch, those that are unlike bit by bit: output, loss, gradients, `log_prob` and `predict`.

        Raises:
            NotApplicableError: the framework promises nothing of calls at the same time.
        """

    def repeat(self, batch: str, times: int, collected: bool = False) -> int:
        """So many training steps, each with `log_prob` and `predict`; bytes that the process holds after them.

        Garbage of every age is collected before with `collected`, which is slow. An open file and a thread count as a
        page.

        Raises:
            NotApplicableError: the framework does not tell what is held.
        """

    def repeated(self) -> list[Results]:
        """Of all steps of `repeat` the results that are unlike bit by bit, as `together` gives them."""

    def make_again(self) -> bool:
        """Make another module as this one was made, and drop it; whether somebody still holds it."""

    def gradients(self, batch: str) -> Results:
        """grad.input of a batch and grad.NAME of every weight; zeros where none was left."""

    def clear(self, to_zero: bool = False) -> None:
        """Drop every gradient, or set those that are there to zero in place."""

    def keep(self, batch: str) -> None:
        """Keep the tensors that `gradients` reads, as a user does who compares them with later ones."""

    def kept(self) -> Results:
        """What the kept tensors hold now."""

    def weights(self) -> Results:
        """What the parameters hold now."""

    def state(self) -> Results:
        """What the state dict holds under the parameters' names."""

    def write(self, weights: Results, manner: Manner = "copy") -> None:
        """Write weights into the parameters."""

    def load(self, weights: Results, assign: bool = False, partly: bool = False) -> None:
        """Load weights as a state dict, whose tensors with `assign` become the parameters.

        With `partly` the state dict holds no others, and need not.
        """

    def takes(self, misfit: Misfit, name: str) -> bool:
        """Whether the module takes its own state dict, of which this weight does not fit."""

    def duplicate(self, manner: Literal["deepcopy", "pickle"] = "deepcopy") -> None:
        """Copy the module, and keep the copy.

        Raises:
            NotPromisedError: the layer refuses to be copied.
        """

    def exchange(self) -> None:
        """Go on with the copy, or again with what it was copied from."""

    def convert(self, dtype: str) -> None:
        """Take another dtype. Batches have to be made again.

        Raises:
            NotPromisedError: the layer refuses it.
        """

    def step(self, rate: float) -> None:
        """A step of gradient descent by torch's optimizer."""

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""

    def require(self, weights: bool, names: Sequence[str] = ()) -> None:
        """Whether the parameters take gradients: those of these names, by default all."""

    def inputs(self, batch: str) -> Results:
        """`hidden` and `target` as they stand in a batch's tensors."""

    def traits(self, batch: str) -> dict[str, str]:
        """What the module and a batch's tensors are besides their values, each as text under a name for messages."""

    def hooks_fault(self, batch: str, of_all: bool = False) -> str | None:
        """Which of the module's hooks do not run, or do not count, in a call on a batch; None where all do.

        With `of_all`, hooks of all modules.

        Raises:
            NotPromisedError: the layer refuses hooks of all modules.
        """

    def hook_gradients(self, batch: str) -> None:
        """Leave hooks that double it on the gradient of a batch's input and of each weight."""

    def unhook_gradients(self) -> str | None:
        """Take these hooks away; which of them did not run once, or None."""

    def methods_fault(self, batch: str) -> str | None:
        """Which of the methods that the module inherits does something else than its framework's; None for none."""

    def scribble(self, name: str) -> None:
        """Write into the results that were returned under a name."""

    def halve_loss(self, name: str) -> None:
        """As `loss /= 2`, which is differentiated too."""

    def clear_output(self, name: str) -> None:
        """Write zeros into the output that was returned under a name, where autograd sees it."""

    def drop(self, batch: str) -> None:
        """Drop a batch, its gradient and every result."""

    def alive(self) -> int:
        """Of how many dropped batches somebody still holds a tensor or a result."""

    def surroundings(self, stirred: bool = False) -> dict[str, str]:
        """Global state that is not a layer's to change; with `stirred`, once it is one that nobody sets."""

    def surroundings_before(self) -> dict[str, str]:
        """What it was before the module was made."""
