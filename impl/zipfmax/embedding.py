"""Adaptive input representations (Baevski & Auli 2019): rare words get narrow embeddings, projected up.

Word w of band i is embedding_i[w] @ projection_i, with embedding_i [size_i, d_i] and projection_i [d_i, d].
Band 0 is the shortlist. These are the shapes of an adaptive softmax's tails, so both can be shared with one:
the logits of tail i are embedding_i @ (projection_i @ h).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import ClusterLayout
from zipfmax.label_ranks import LabelRanks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss


class AdaptiveEmbedding(nn.Module):
    """Embedding whose width falls with the word's frequency (Baevski & Auli 2019, section 3).

    Args:
        num_embeddings: number of words; word 0 should be the most frequent, or else see `label_ranks`.
        embedding_dim: width d of the result.
        cutoffs: ranks at which a new band starts, as `ClusterLayout` takes them.
        div_value: band i is floor(d / div_value**i) wide; band 0, the shortlist, d.
        device: of the parameters.
        dtype: of the parameters.
        shortlist_projection: project band 0 too, d to d, as fairseq does; without it its rows are the result.
        projection_sizes: widths of the bands after the shortlist, instead of those that div_value gives.
        label_ranks: for words that are not sorted by frequency; kept in the state_dict.

    Shape:
        ids [...], int64 or int32, in [0, num_embeddings) -> [..., d].

    Raises:
        ValueError: cutoffs that are no partition, a band of width 0, label_ranks of another number of words.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shortlist_projection: bool = True,
        projection_sizes: Sequence[int] = (),
        label_ranks: LabelRanks | None = None,
    ) -> None:
        super().__init__()
        self.layout = ClusterLayout(
            embedding_dim, num_embeddings, tuple(cutoffs), div_value, tuple(projection_sizes)
        )
        if min(self.layout.projection_sizes) == 0:
            raise ValueError(
                f"every band should be at least 1 wide, but div_value={div_value} gives "
                f"{(embedding_dim, *self.layout.projection_sizes)}"
            )
        if label_ranks is not None and len(label_ranks) != num_embeddings:
            raise ValueError(
                f"label_ranks is of {len(label_ranks)} labels, but num_embeddings is {num_embeddings}"
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        widths = (embedding_dim, *self.layout.projection_sizes)
        bounds = self.layout.bounds
        empty: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = nn.ParameterList(
            nn.Parameter(torch.empty(stop - start, width, **empty))
            for start, stop, width in zip(bounds, bounds[1:], widths, strict=False)
        )
        first = 0 if shortlist_projection else 1
        self.shortlist_projection = shortlist_projection
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(width, embedding_dim, **empty)) for width in widths[first:]
        )
        self.label_ranks = (
            deepcopy(label_ranks).to(self.embeddings[0].device) if label_ranks is not None else None
        )
        self.reset_parameters()

    @classmethod
    def tied_to(
        cls, layer: AdaptiveLogSoftmaxWithLoss, *, projections: bool = True, shortlist_projection: bool = True
    ) -> AdaptiveEmbedding:
        """An embedding of the layer's classes that shares its weights: one tensor, gradients from both uses.

        The embeddings are the rows of the layer's head (its shortlist) and of its tails' outputs. The
        layer's head has no projection, so band 0's stays the embedding's own.

        Args:
            layer: whose parameters to share, and whose partition, label_ranks, dtype and device to take.
            projections: share the tails' projections too.
            shortlist_projection: as the constructor takes it.

        Raises:
            ValueError: a tail of the layer has a projection of size 0.
        """
        weights = layer.weights()
        embedding = cls(
            layer.n_classes,
            layer.in_features,
            layer.layout.cutoffs,
            layer.div_value,
            weights.head.device,
            weights.head.dtype,
            shortlist_projection=shortlist_projection,
            projection_sizes=layer.layout.projection_sizes,
            label_ranks=layer.label_ranks,
        )
        # The head holds a row a cluster after the shortlist's: no id reaches those.
        for band, weight in enumerate((weights.head, *(tail.output for tail in weights.tails))):
            embedding.embeddings[band] = cast(nn.Parameter, weight)
        if projections:
            for i, tail in enumerate(weights.tails):
                embedding.projections[i + shortlist_projection] = cast(nn.Parameter, tail.projection)
        return embedding

    def reset_parameters(self) -> None:
        """Redraw every weight: embeddings from N(0, 1 / width), projections Glorot-uniform (fairseq's)."""
        for weight in self.embeddings:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for weight in self.projections:
            nn.init.xavier_uniform_(weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed `ids` [...]: [..., d].

        Outside compiled graphs each band is computed for its own words only; a compiled graph, which cannot
        branch on the words, computes every band for every word.

        Raises:
            RuntimeError: ids that are no integers.
            IndexError: ids outside [0, num_embeddings) (not looked for in a compiled graph).
        """
        if ids.dtype not in (torch.int64, torch.int32):
            raise RuntimeError(f"ids should be int64 or int32, but found {ids.dtype}")
        flat = ids.reshape(-1).long()
        compiling = torch.compiler.is_compiling()
        if (
            not compiling
            and flat.numel()
            and not 0 <= int(flat.min()) <= int(flat.max()) < self.num_embeddings
        ):
            raise IndexError(
                f"ids should be in [0, {self.num_embeddings - 1}], "
                f"but values in range [{int(flat.min())}, {int(flat.max())}] were found"
            )
        if self.label_ranks is not None:
            flat = self.label_ranks.to_ranks(flat)
        embedded = self._by_every_band(flat) if compiling else self._by_its_band(flat)
        return embedded.reshape(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What distinguishes it when printed."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, cutoffs={list(self.layout.cutoffs)}, "
            f"div_value={self.layout.div_value}, shortlist_projection={self.shortlist_projection}"
        )

    def _by_its_band(self, ranks: Tensor) -> Tensor:
        result: Tensor = self.embeddings[0].new_zeros(ranks.numel(), self.embedding_dim)
        for band in range(self.layout.n_clusters + 1):
            start, stop = self.layout.bounds[band : band + 2]
            rows = ((ranks >= start) & (ranks < stop)).nonzero().squeeze(1)
            if rows.numel():
                embedded = self._embed(band, ranks.index_select(0, rows) - start)
                result = result.to(embedded.dtype).index_copy(0, rows, embedded)
        return result

    def _by_every_band(self, ranks: Tensor) -> Tensor:
        result = self._embed(0, ranks.clamp(max=self.layout.shortlist_size - 1))
        for tail in self.layout:
            embedded = self._embed(tail.index + 1, (ranks - tail.start).clamp(0, tail.size - 1))
            inside = (ranks >= tail.start) & (ranks < tail.stop)
            result = torch.where(inside.unsqueeze(1), embedded, result)
        return result

    def _embed(self, band: int, local: Tensor) -> Tensor:
        embedded: Tensor = F.embedding(local, self.embeddings[band])
        if band == 0 and not self.shortlist_projection:
            return embedded
        return torch.matmul(embedded, self.projections[band - (not self.shortlist_projection)])
