"""zipfmax: adaptive softmax that is fast, verified and measured."""

from zipfmax.clusters import Cluster, ClusterLayout
from zipfmax.converters import (
    from_fairseq,
    from_paddle,
    from_par_transformer_xl,
    from_torch,
    from_transformer_xl,
)
from zipfmax.embedding import AdaptiveEmbedding
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.planner import Plan, plan_cutoffs
from zipfmax.ranks import LabelRanks

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
]
__version__ = "0.1.0"
