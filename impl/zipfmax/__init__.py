"""zipfmax: adaptive softmax that is fast, verified and measured.

What is public is imported when it is first asked for, so that a command that needs no layer imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zipfmax.backends.triton.captured import set_graph_memory
    from zipfmax.clusters import Cluster, ClusterLayout
    from zipfmax.converters import (
        from_fairseq,
        from_paddle,
        from_par_transformer_xl,
        from_torch,
        from_transformer_xl,
    )
    from zipfmax.embedding import AdaptiveEmbedding
    from zipfmax.label_ranks import LabelRanks
    from zipfmax.module import AdaptiveLogSoftmaxWithLoss
    from zipfmax.planner import Plan, plan_cutoffs

_MODULES = {
    "AdaptiveEmbedding": "embedding",
    "AdaptiveLogSoftmaxWithLoss": "module",
    "Cluster": "clusters",
    "ClusterLayout": "clusters",
    "LabelRanks": "label_ranks",
    "Plan": "planner",
    "from_fairseq": "converters",
    "from_paddle": "converters",
    "from_par_transformer_xl": "converters",
    "from_torch": "converters",
    "from_transformer_xl": "converters",
    "plan_cutoffs": "planner",
    "set_graph_memory": "backends.triton.captured",
}

__all__ = [
    "AdaptiveEmbedding",
    "AdaptiveLogSoftmaxWithLoss",
    "Cluster",
    "ClusterLayout",
    "LabelRanks",
    "Plan",
    "from_fairseq",
    "from_paddle",
    "from_par_transformer_xl",
    "from_torch",
    "from_transformer_xl",
    "plan_cutoffs",
    "set_graph_memory",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
