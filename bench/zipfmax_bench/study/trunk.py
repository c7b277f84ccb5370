"""What lies below the output layer: a transformer or an LSTM, small enough to read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.errors import UsageError

State = tuple[Tensor, Tensor] | None
"""What an LSTM carries from one window to the next; a transformer carries nothing."""

HEAD_WIDTH = 64


class Block(nn.Module):
    """Causal self-attention and a layer of 4 d hidden units, each after a norm and added to its input.

    Args:
        d: width.
        depth: blocks of the trunk; the sum over them keeps its scale.
    """

    def __init__(self, d: int, depth: int) -> None:
        super().__init__()
        self.heads = max(1, d // HEAD_WIDTH)
        self.attention_norm, self.hidden_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query_key_value, self.mixed = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.wide, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        for layer in (self.mixed, self.narrow):
            nn.init.normal_(layer.weight, std=(2 * depth * layer.in_features) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        batch, length, d = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).reshape(batch, length, d))
        narrow: Tensor = self.narrow(F.gelu(self.wide(self.hidden_norm(x))))
        return x + narrow


class Transformer(nn.Module):
    """Learned positions, blocks, and a last norm."""

    def __init__(self, d: int, depth: int, length: int) -> None:
        super().__init__()
        if d > HEAD_WIDTH and d % HEAD_WIDTH:
            raise UsageError(f"a transformer's width should be a multiple of {HEAD_WIDTH}, got {d}")
        self.position = nn.Parameter(torch.randn(length, d) * d**-0.5)
        self.blocks = nn.ModuleList(Block(d, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """[B, T, d] -> hidden states [B, T, d], and no state."""
        x = x + self.position[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x), None


class Recurrent(nn.Module):
    """An LSTM whose state travels from window to window, as in Grave et al. 2016."""

    def __init__(self, d: int, depth: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d, d, depth, batch_first=True)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """[B, T, d] and the state before -> hidden states [B, T, d] and the state after."""
        hidden, state = self.lstm(x, state)
        return hidden, state


def build(kind: str, d: int, depth: int, length: int) -> nn.Module:
    """A trunk: "transformer" or "lstm"."""
    return Transformer(d, depth, length) if kind == "transformer" else Recurrent(d, depth)


def forward_flops(kind: str, d: int, depth: int, length: int) -> int:
    """Floating point operations of the forward pass per label, of matrix products and attention."""
    if kind == "lstm":
        return depth * 2 * 8 * d * d
    return depth * (2 * 12 * d * d + 2 * length * d)  # the mask leaves half of length x length
