"""The entry of a plan for torch's `parallelize_module`."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement
from torch.distributed.tensor.parallel import ParallelStyle

from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.parallel.layer import shard_vocabulary


class VocabularyParallel(ParallelStyle):
    """Split an output layer's vocabulary: `shard_vocabulary` in a plan.

        parallelize_module(model, mesh["tp"], {"trunk": ColwiseParallel(), "output": VocabularyParallel()})

    Args:
        input_layouts: as `shard_vocabulary` takes it.
    """

    def __init__(self, *, input_layouts: Placement | None = None) -> None:
        super().__init__()
        self.input_layouts = input_layouts

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, AdaptiveLogSoftmaxWithLoss)
        return shard_vocabulary(module, device_mesh, input_layouts=self.input_layouts)
