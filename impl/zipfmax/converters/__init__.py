"""Weights of other frameworks' adaptive softmax, in both directions, exactly.

Each file maps one framework's parameters to `AdaptiveLogSoftmaxWithLoss` so that log p(y | h) is the same
function. What is not a parameter (dropout, padding rules, reductions) stays behind; each function says what.
"""

from zipfmax.converters.fairseq import from_fairseq, to_fairseq
from zipfmax.converters.paddle import from_paddle, to_paddle
from zipfmax.converters.par_transformer_xl import from_par_transformer_xl, to_par_transformer_xl
from zipfmax.converters.torch_nn import from_torch, to_torch
from zipfmax.converters.transformer_xl import from_transformer_xl, to_transformer_xl

__all__ = [
    "from_fairseq",
    "from_paddle",
    "from_par_transformer_xl",
    "from_torch",
    "from_transformer_xl",
    "to_fairseq",
    "to_paddle",
    "to_par_transformer_xl",
    "to_torch",
    "to_transformer_xl",
]
