"""The whole step against the definition: forward and every gradient, over awkward shapes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zipfmax.backends import eager, triton
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream

sys.path.insert(0, str(Path(__file__).parent))
from cases import check, crossed, draw, mapped, run, shapes

LAYOUT = ClusterLayout(24, 90, (10, 23, 60), 2.0)
# For what holds whatever the layout is: fewer tails, and fewer rows in some tests, under the interpreter.
SMALL = shapes([ClusterLayout(24, 90, (10,), 2.0)], [LAYOUT])[-1]
FLOAT, HALF, BFLOAT = DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("n_rows", "dtype"),
    crossed(
        [(0, FLOAT), (1, BFLOAT), (17, HALF), (129, BFLOAT)],  # none, one, past one block, past several
        [0, 1, 15, 16, 17, 127, 128, 129, 211],
        DTYPES,
    ),
)
def test_any_number_of_rows(n_rows: int, dtype: torch.dtype, device: torch.device) -> None:
    check(LAYOUT, *draw(LAYOUT, n_rows, dtype, device))


@pytest.mark.parametrize(
    ("tail", "dtype"),
    crossed([(1, BFLOAT), (1, FLOAT), (17, HALF), (129, FLOAT)], [1, 15, 16, 17, 127, 128, 129, 251], DTYPES),
)
def test_any_number_of_classes(tail: int, dtype: torch.dtype, device: torch.device) -> None:
    layout = ClusterLayout(16, 7 + tail + 1, (7, 7 + tail), 2.0)
    check(layout, *draw(layout, 37, dtype, device, biased=True))


@pytest.mark.parametrize(
    ("width", "dtype"),
    crossed(
        [(0, FLOAT), (1, BFLOAT), (48, HALF)],
        [0, 1, 5, 8, 16, 48, 64, 192, 256, 300],
        DTYPES,
    ),
)
def test_any_projection_size(width: int, dtype: torch.dtype, device: torch.device) -> None:
    div = 300 / (width + 0.5)
    layout = ClusterLayout(300, 60, (9,), div)
    assert layout.tails[0].projection_size == width
    check(layout, *draw(layout, 21, dtype, device, biased=True))


@pytest.mark.parametrize(("dtype", "biased"), crossed([(HALF, True)], DTYPES, [False, True]))
def test_every_dtype(dtype: torch.dtype, biased: bool, device: torch.device) -> None:
    weights, hidden, target = draw(LAYOUT, shapes([17], [140])[-1], dtype, device, biased=biased)
    check(LAYOUT, weights, hidden, target)


@pytest.mark.parametrize(
    "labels", shapes([[9, 10], [22, 23, 59, 60]], [[0], [9], [10], [22], [23], [60], [89]])
)
def test_a_batch_at_the_cutoffs(labels: list[int], device: torch.device) -> None:
    weights, hidden, _ = draw(LAYOUT, 20, torch.float32, device)
    target = torch.tensor(labels, device=device).repeat(20)[:20]
    check(LAYOUT, weights, hidden, target)


def test_clusters_without_targets_get_zero_gradients(device: torch.device) -> None:
    weights, hidden, _ = draw(LAYOUT, 20, torch.float32, device, biased=True)
    found = run(triton, LAYOUT, weights, hidden, torch.full((20,), 30, device=device))
    zero = [name for name, value in found.items() if name.startswith("gradient") and not value.any()]
    assert len(zero) == 8  # projection, output and their biases, of the first tail and of the third


def output_and_loss(output: Tensor, loss: Tensor) -> Tensor:
    return (output * torch.linspace(-2, 3, output.numel(), device=output.device)).sum() + 2 * loss.sum()


def output_only(output: Tensor, loss: Tensor) -> Tensor:
    return (output * torch.linspace(-2, 3, output.numel(), device=output.device)).sum()


def scaled_loss(output: Tensor, loss: Tensor) -> Tensor:
    return 3 * loss.sum()


@pytest.mark.parametrize(
    ("differentiate", "reduction", "ignore_index"),
    crossed(
        [
            (scaled_loss, "mean", 12),
            (output_only, "sum", None),
            (output_and_loss, "none", 12),
        ],
        [scaled_loss, output_only, output_and_loss],
        ["mean", "sum", "none"],
        [None, 12, -100],
    ),
)
def test_reductions_and_what_is_differentiated(
    reduction: str, ignore_index: int | None, differentiate: object, device: torch.device
) -> None:
    weights, hidden, target = draw(SMALL, 19, torch.float32, device, biased=True)
    if ignore_index is not None:
        target[::3] = ignore_index
    check(SMALL, weights, hidden, target, differentiate, reduction=reduction, ignore_index=ignore_index)


def test_all_rows_ignored(device: torch.device) -> None:
    weights, hidden, _ = draw(LAYOUT, 6, torch.float32, device)
    target = torch.full((6,), -100, device=device)
    found = run(triton, LAYOUT, weights, hidden, target, ignore_index=-100)
    assert found["loss"].isnan()
    assert not found["output"].any()
    assert not any(value.any() for name, value in found.items() if name.startswith("gradient"))


def test_ignored_rows_do_not_leak_whatever_they_hold(device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([17], [40])[-1], torch.float32, device, biased=True)
    target[::4] = -100
    clean = run(triton, SMALL, weights, hidden, target, ignore_index=-100)
    hidden[::8], hidden[4::8] = float("nan"), float("inf")
    dirty = run(triton, SMALL, weights, hidden, target, ignore_index=-100)
    for name, value in clean.items():
        assert torch.equal(value, dirty[name]), name


@pytest.mark.parametrize("bad", shapes([float("nan")], [float("inf")]))
def test_a_row_that_is_not_finite_spoils_no_other_row(bad: float, device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([17], [40])[-1], torch.float32, device)
    clean = run(triton, SMALL, weights, hidden, target)
    hidden[7] = bad
    dirty = run(triton, SMALL, weights, hidden, target)
    rest = torch.arange(len(target), device=device) != 7
    assert torch.equal(clean["output"][rest], dirty["output"][rest])
    key = f"gradient 0 {tuple(hidden.shape)}"
    assert torch.equal(clean[key][rest], dirty[key][rest])
    assert dirty["output"][7].isnan()


@pytest.mark.parametrize("bad", shapes([float("inf")], [float("nan")]))
def test_a_row_that_is_not_finite_shows_in_its_cluster_of_one_class(bad: float, device: torch.device) -> None:
    layout = ClusterLayout(17, 203, (1, 2, 202), div_value=1.0)
    weights, hidden, target = draw(layout, 40, torch.float32, device)
    target[:] = torch.arange(40) % 3
    hidden[target == 1] = bad
    check(layout, weights, hidden, target)


@pytest.mark.parametrize("scale", shapes([300.0], [30.0]))
def test_logits_far_from_the_first_tile_are_done_again(scale: float, device: torch.device) -> None:
    layout = ClusterLayout(16, 300, (10,), 1.0)
    weights, hidden, target = draw(layout, 30, torch.float32, device)
    # The last classes of head and tail stand far above all others: the fixed anchor overflows.
    weights.tails[0].output[-3:] *= scale
    weights.head[-2:] *= scale
    ours = run(triton, layout, weights, hidden, target)
    truth = run(eager, layout, mapped(weights, Tensor.double), hidden.double(), target)
    for name, expected in truth.items():
        # Logits of 1000 and more: float32 itself holds them to 1e-4.
        torch.testing.assert_close(
            ours[name].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


def test_two_runs_agree_bit_for_bit(device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([17], [150])[-1], torch.float32, device, biased=True)
    first, second = (run(triton, SMALL, weights, hidden, target) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_second_backward_through_the_same_graph(device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([9], [30])[-1], torch.float32, device)
    weights = mapped(weights, lambda t: t.requires_grad_())
    _, loss = triton.nll(SMALL, weights, hidden, target)
    (3 * loss).backward(retain_graph=True)
    first = weights.head.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(weights.head.grad, 2 * first, rtol=1e-5, atol=1e-7)


def test_frozen_weights_get_no_gradient(device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([9], [30])[-1], torch.float32, device)
    leaf = hidden.clone().requires_grad_()
    triton.nll(SMALL, weights, leaf, target)[1].backward()
    both = run(triton, SMALL, weights, hidden, target)
    assert torch.equal(leaf.grad, both[f"gradient 0 {tuple(hidden.shape)}"])
    assert all(t.grad is None for t in weights.tensors())


@pytest.mark.parametrize("what", shapes(["loss", "log_prob"], ["output"]))
def test_second_derivatives_are_the_eager_backends(what: str, device: torch.device) -> None:
    weights, hidden, target = draw(LAYOUT, 5, torch.float32, device, biased=True)
    found = []
    for backend in (triton, eager):
        leaves = [t.detach().requires_grad_() for t in (hidden, *weights.tensors())]
        if what == "log_prob":
            value = backend.log_prob(LAYOUT, weights.with_tensors(leaves[1:]), leaves[0]).square().sum()
        else:
            output, loss = backend.nll(LAYOUT, weights.with_tensors(leaves[1:]), leaves[0], target)
            value = loss if what == "loss" else output.square().sum()
        (first,) = torch.autograd.grad(value, leaves[:1], create_graph=True)
        first.square().sum().backward()
        zeros = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        found.append([first.detach(), *zeros])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert found[0][1].abs().max() > 0


@pytest.mark.parametrize("reduction", shapes(["none"], ["mean"]))
def test_batched_gradients_are_those_of_a_loop(reduction: str, device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, 6, torch.float32, device)
    n_batched = shapes([2], [3])[-1]
    weights = mapped(weights, lambda t: t.requires_grad_())
    results = triton.nll(SMALL, weights, hidden.requires_grad_(), target, reduction=reduction)
    upstream = [torch.randn(n_batched, *result.shape, device=device) for result in results]
    inputs = [hidden, weights.head]
    batched = torch.autograd.grad(results, inputs, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(n_batched):
        expected = torch.autograd.grad(results, inputs, [u[i] for u in upstream], retain_graph=True)
        for ours, one in zip(batched, expected, strict=True):
            torch.testing.assert_close(ours[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", shapes(["losses"], ["loss", "output"]))
def test_targets_modified_after_the_call_change_no_gradient(what: str, device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([9], [30])[-1], torch.float32, device)
    gradients = []
    for modified in (False, True):
        leaf, labels = hidden.clone().requires_grad_(), target.clone()
        upstream = Upstream("output" if what == "output" else "auto")
        reduction = "none" if what == "losses" else "mean"
        output, loss = triton.nll(SMALL, weights, leaf, labels, reduction=reduction, upstream=upstream)
        if modified:
            labels.zero_()
        (output if what == "output" else loss).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("reduction", "upstream"), shapes([("mean", "output")], [("none", "auto")]))
def test_targets_modified_before_the_call_are_the_targets(
    reduction: str, upstream: str, device: torch.device
) -> None:
    weights, hidden, target = draw(SMALL, shapes([9], [30])[-1], torch.float32, device)
    target[::3] = -100
    leaf = hidden.clone().requires_grad_()
    output, _ = triton.nll(
        SMALL, weights, leaf, target, ignore_index=-100, reduction=reduction, upstream=Upstream(upstream)
    )
    output.sum().backward()
    assert not leaf.grad[::3].any()
    assert leaf.grad[1::3].any()


def test_targets_modified_before_a_second_pass_raise(device: torch.device) -> None:
    weights, hidden, target = draw(SMALL, shapes([9], [30])[-1], torch.float32, device)
    output, _ = triton.nll(SMALL, weights, hidden.requires_grad_(), target)
    target.zero_()
    with pytest.raises(RuntimeError, match="modified in place after the call"):
        output.sum().backward()


@pytest.mark.parametrize("wrong", [-1, 90, 2**40])
def test_a_target_out_of_range_raises(wrong: int, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("a device-side assertion ends the process's CUDA context: see test_module_cuda.py")
    weights, hidden, target = draw(LAYOUT, 5, torch.float32, device)
    target[3] = wrong
    with pytest.raises(RuntimeError, match=r"Target values should be in \[0, 89\]"):
        triton.nll(LAYOUT, weights, hidden, target)


@given(data=st.data())
@settings(max_examples=shapes([2], [12])[-1], deadline=None, derandomize=True)
def test_any_layout(data: st.DataObject) -> None:
    n_classes = data.draw(st.integers(2, 140))
    n_cutoffs = data.draw(st.integers(1, min(4, n_classes - 1)))
    cutoffs = data.draw(
        st.lists(st.integers(1, n_classes - 1), min_size=n_cutoffs, max_size=n_cutoffs, unique=True)
    )
    layout = ClusterLayout(
        data.draw(st.integers(1, 40)),
        n_classes,
        tuple(sorted(cutoffs)),
        data.draw(st.sampled_from([1.0, 1.5, 4.0])),
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights, hidden, target = draw(
        layout,
        data.draw(st.integers(1, shapes([20], [70])[-1])),
        dtype,
        device,
        biased=data.draw(st.booleans()),
    )
    check(layout, weights, hidden, target)
