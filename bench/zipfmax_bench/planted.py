"""Faults planted on purpose, to see that the gate finds them: zipfmax's layer with one thing made worse."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.module import ASMoutput


class Unchanged(AdaptiveLogSoftmaxWithLoss):
    """Nothing planted: what the gate says of it must not come from how faults are planted."""


class Slower(AdaptiveLogSoftmaxWithLoss):
    """Each forward takes 10 % longer: the thread waits for a tenth of what the computation took."""

    def forward(self, input: Tensor, target: Tensor) -> ASMoutput:
        """As the layer's."""
        started = time.perf_counter()
        result = super().forward(input, target)
        done = time.perf_counter()
        while time.perf_counter() < done + 0.1 * (done - started):
            pass
        return result


class ExtraTemporary(AdaptiveLogSoftmaxWithLoss):
    """Each forward holds one more tensor, as large as all logits of the batch, for a moment."""

    def forward(self, input: Tensor, target: Tensor) -> ASMoutput:
        """As the layer's."""
        input.new_empty(input.shape[0], self.n_classes)
        return super().forward(input, target)


class ExtraSynchronisation(AdaptiveLogSoftmaxWithLoss):
    """Each forward reads the loss on the host."""

    def forward(self, input: Tensor, target: Tensor) -> ASMoutput:
        """As the layer's."""
        result = super().forward(input, target)
        with torch.no_grad():
            result.loss.item()
        return result
