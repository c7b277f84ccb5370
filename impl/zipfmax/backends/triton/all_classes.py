"""Log-probabilities of all classes: the head's chunk by chunk, each tail's from its streamed log-sum-exp.

    log_prob[:, v] = z_v - lse(z)                                        for v in the shortlist,
                   = z_slot_i - lse(z) + s_v - lse(s)                    for v in tail i.

The tails' logits are computed twice, once for lse(s) and once where they are written, so that nothing but
the result itself has N x V elements. FLOPs: 2 N d head_size + 4 N K V_i a tail; bytes: the result once, 2 or
4 N V, which bounds it: 8.8 GB or 2.9 ms for 16384 rows of 267,735 classes in bfloat16 on an H100.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.head_inference import head_log_softmax
from zipfmax.backends.triton.language import LN2, dot, dot_add
from zipfmax.backends.triton.projection import project
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, dot_settings, padded_width, pointer, round_up
from zipfmax.backends.triton.tail_forward import LSE, accumulate, load_classes, spans_of
from zipfmax.weights import TailWeights, Weights


@triton.jit
def tail_log_prob_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    peak_ptr,
    total_ptr,
    slot_log_prob_ptr,
    out_ptr,
    n_rows,
    n_classes,
    programs,
    slot_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out[row, v] = s_v - lse(s) + slot log-probability, for BM rows and BN classes; slot i holds row i."""
    CHUNKS: tl.constexpr = WIDTH // BK
    tile = tl.program_id(1)
    row = tile * BM + tl.arange(0, BM)
    v = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = v < n_classes
    h_tile = h_ptr + row.to(tl.int64)[:, None] * WIDTH + k[None, :]
    w_tile = w_ptr + v.to(tl.int64)[:, None] * K + k[None, :]
    w = load_classes(w_tile, inside, k, 0, K, BK, CHUNKS, True)
    s = dot(tl.load(h_tile), tl.trans(w), PRECISION, UPCAST)
    for chunk in range(1, CHUNKS):
        w = load_classes(w_tile, inside, k, chunk * BK, K, BK, CHUNKS, True)
        s = dot_add(tl.load(h_tile + chunk * BK), tl.trans(w), s, PRECISION, UPCAST)
    if HAS_BIAS:
        s += tl.load(bias_ptr + v, mask=inside, other=0.0).to(tl.float32)[None, :]

    n_tiles = tl.cdiv(n_rows, BM)
    place = tile * BM + tl.arange(0, BM)
    peak = tl.full([BM], -float("inf"), tl.float32)
    spans = spans_of(n_tiles, n_classes, programs, BN)
    for span in range(spans):
        peak = tl.maximum(peak, tl.load(peak_ptr + place + span * n_tiles * BM))
    base = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.zeros([BM], tl.float32)
    for span in range(spans):
        here = place + span * n_tiles * BM
        total += tl.exp2(tl.load(peak_ptr + here) - base) * tl.load(total_ptr + here)
    slot = tl.load(slot_log_prob_ptr + row.to(tl.int64) * slot_stride, mask=row < n_rows, other=0.0)
    shift = slot - (base + tl.log2(total)) * LN2
    out = out_ptr + row.to(tl.int64)[:, None] * out_stride + v[None, :]
    mask = (row < n_rows)[:, None] & inside[None, :]
    tl.store(out, (s + shift[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def log_prob_step(hidden: Tensor, weights: Weights, shortlist_size: int) -> Tensor:
    """[N, n_classes] in the dtype of hidden; the weights contiguous, hidden with unit column stride."""
    n_rows = hidden.shape[0]
    n_classes = shortlist_size + sum(tail.output.shape[0] for tail in weights.tails)
    out = torch.empty((n_rows, n_classes), dtype=hidden.dtype, device=hidden.device)
    if n_rows == 0:
        return out
    slot_log_prob = head_log_softmax(hidden, weights.head, weights.head_bias, shortlist_size, out)
    routes = _every_row(n_rows, hidden.device)
    first = shortlist_size
    for i, tail in enumerate(weights.tails):
        columns = out[:, first : first + tail.output.shape[0]]
        _write_tail(hidden, tail, routes, slot_log_prob[:, i], columns)
        first += tail.output.shape[0]
    return out


def log_prob_gradients_step(hidden: Tensor, weights: Weights, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Gradients of sum(grad * log_prob) for the input and for `Weights.tensors`, by the vendor's products.

    grad has N x n_classes elements already, so each cluster's logits are simply computed again beside it:
    with q the softmax of a cluster, dlogits = grad - q * sum(grad).
    """
    shortlist_size = weights.head.shape[0] - len(weights.tails)
    tail_grads = grad[:, shortlist_size:].split([tail.output.shape[0] for tail in weights.tails], dim=1)
    slots = torch.stack([part.sum(1) for part in tail_grads], dim=1)
    head_grad = torch.cat([grad[:, :shortlist_size], slots], dim=1)
    dz = _through_log_softmax(F.linear(hidden, weights.head, weights.head_bias), head_grad)
    hidden_gradient = dz @ weights.head
    gradients = [dz.t() @ hidden]
    if weights.head_bias is not None:
        gradients.append(dz.sum(0))
    for tail, part in zip(weights.tails, tail_grads, strict=True):
        projected = F.linear(hidden, tail.projection, tail.projection_bias)
        ds = _through_log_softmax(F.linear(projected, tail.output, tail.output_bias), part)
        dh = ds @ tail.output
        hidden_gradient = hidden_gradient + dh @ tail.projection
        gradients += [dh.t() @ hidden, ds.t() @ projected]
        if tail.projection_bias is not None:
            gradients.append(dh.sum(0))
        if tail.output_bias is not None:
            gradients.append(ds.sum(0))
    return hidden_gradient, gradients


def _through_log_softmax(logits: Tensor, grad: Tensor) -> Tensor:
    total = grad.sum(1, keepdim=True, dtype=torch.float32)
    return (grad - logits.float().softmax(1) * total).to(grad.dtype)


def _every_row(n_rows: int, device: torch.device) -> Routes:
    """The routing that puts row i in slot i of one cluster."""
    slots = torch.arange(round_up(n_rows, SLOT_TILE), dtype=torch.int32, device=device)
    row = torch.where(slots < n_rows, slots, -1)
    rows = torch.full((1,), n_rows, dtype=torch.int32, device=device)
    return Routes(row, row, torch.zeros_like(rows), rows, rows)


def _write_tail(
    hidden: Tensor, tail: TailWeights, routes: Routes, slot_log_prob: Tensor, out: Tensor
) -> None:
    n_rows, n_classes = out.shape
    k_size = tail.projection.shape[0]
    width = padded_width(k_size)
    h = project(hidden, tail.projection, tail.projection_bias, routes, width)
    partials = accumulate(h, tail.output, tail.output_bias, routes, n_rows, LSE)
    tile = {name: value for name, value in partials.tile.items() if name != "PER_SM"}
    tail_log_prob_kernel[(cdiv(n_classes, tile["BN"]), cdiv(n_rows, tile["BM"]))](
        h,
        tail.output,
        pointer(tail.output_bias, h),
        partials.peak,
        partials.total,
        slot_log_prob,
        out,
        n_rows,
        n_classes,
        partials.programs,
        slot_log_prob.stride(0),
        out.stride(0),
        HAS_BIAS=tail.output_bias is not None,
        K=k_size,
        WIDTH=width,
        **tile,
        **dot_settings(h.dtype),
    )
