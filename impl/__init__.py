"""zipfmax: adaptive softmax that is fast, verified and measured."""

from zipfmax.clusters import Cluster, ClusterLayout
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.ranks import LabelRanks

__all__ = ["AdaptiveLogSoftmaxWithLoss", "Cluster", "ClusterLayout", "LabelRanks"]
__version__ = "0.1.0"
