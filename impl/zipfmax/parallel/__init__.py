"""One layer over many processes: head and every tail split by classes, moved by torch.distributed.

    layer = shard_vocabulary(layer, mesh)               # or, in a plan of parallelize_module,
    parallelize_module(model, mesh, {"output": VocabularyParallel()})

Afterwards the layer is called as before, on every rank alike: see `shard_vocabulary`.
"""

from zipfmax.parallel.collectives import Traffic
from zipfmax.parallel.layer import shard_vocabulary
from zipfmax.parallel.style import VocabularyParallel

__all__ = ["Traffic", "VocabularyParallel", "shard_vocabulary"]
