"""For backends that may read targets on the host: the range check, and the reduction of the loss."""

from __future__ import annotations

from torch import Tensor


def check_targets(target: Tensor, n_classes: int, ignore_index: int | None) -> Tensor | None:
    """The rows that count, [N] bool, or None where all of them do.

    Raises:
        RuntimeError: a counted target outside [0, n_classes); torch.nn's text, and a hint where it is -100.
    """
    counted = None if ignore_index is None else target != ignore_index
    seen = target if counted is None else target[counted]
    if seen.numel():
        low, high = (bound.item() for bound in seen.aminmax())
        if low < 0 or high >= n_classes:
            hint = "To ignore -100, as cross_entropy does, pass ignore_index=-100. " if low == -100 else ""
            raise RuntimeError(
                f"Target values should be in [0, {n_classes - 1}], "
                f"but values in range [{low}, {high}] were found. {hint}"
            )
    return counted


def reduce_loss(output: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """The loss from the log-probabilities of the targets, which are 0 in the rows that do not count.

    "mean" divides by the number of counted rows, so it is NaN where there are none, as in
    torch.nn.functional.cross_entropy.
    """
    if reduction == "none":
        return -output
    if reduction == "sum":
        return -output.sum()
    if counted is None:
        return -output.mean()
    return -output.sum() / counted.sum()
