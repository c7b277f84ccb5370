"""PyTorch's own tests of modules (test/test_modules.py), on its layer and ours side by side; and the call."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss

SHAPE = (6, 20, [5, 12], 2.0)
CLASSES = {"torch.nn": nn.AdaptiveLogSoftmaxWithLoss, "zipfmax": AdaptiveLogSoftmaxWithLoss}
BACKENDS = {"torch.nn": {}, "auto": {"backend": "auto"}, "eager": {"backend": "eager"}}


@pytest.fixture(params=BACKENDS, ids=BACKENDS)
def make(request):
    """A function that makes torch.nn's layer, or ours with a backend, from one seed."""

    def made(**options):
        torch.manual_seed(0)
        cls = CLASSES["torch.nn" if request.param == "torch.nn" else "zipfmax"]
        return cls(*SHAPE, **({"head_bias": True} | options), **BACKENDS[request.param])

    return made


def torchs(**options):
    torch.manual_seed(0)
    return nn.AdaptiveLogSoftmaxWithLoss(*SHAPE, head_bias=True, **options)


def batch(n=9, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(n, 6, dtype=dtype), torch.randint(0, 20, (n,))


def step(layer, hidden, target):
    hidden = hidden.detach().requires_grad_()
    layer.zero_grad()
    output, loss = layer(hidden, target)
    loss.backward()
    return [output, loss, hidden.grad, *(p.grad for p in layer.parameters())]


def assert_same(layer, other, **kwargs):
    for found, expected in zip(step(layer, *batch(**kwargs)), step(other, *batch(**kwargs)), strict=True):
        assert_close(found, expected)


# --------------------------------------------------------------------------- the call


def test_the_call_by_keywords(make):
    hidden, target = batch()
    assert_close(make()(input_=hidden, target_=target).loss, torchs()(hidden, target).loss)
    assert_close(make().log_prob(input=hidden), torchs().log_prob(input=hidden))
    assert_close(make().predict(input=hidden), torchs().predict(input=hidden))


def test_the_result_is_torchs_named_tuple(make):
    result = make()(*batch())
    assert type(result) is type(torchs()(*batch()))
    assert result._fields == ("output", "loss")


def test_the_layer_is_torchs_to_who_asks(make):
    assert isinstance(make(), nn.AdaptiveLogSoftmaxWithLoss)
    assert issubclass(AdaptiveLogSoftmaxWithLoss, nn.AdaptiveLogSoftmaxWithLoss)


def test_targets_with_gaps_are_taken_without_a_warning(make):
    hidden, target = batch()
    gappy = torch.stack([target, target - 50], dim=1)[:, 0]
    assert not gappy.is_contiguous()
    layer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = step(layer, hidden, gappy)
    for mine, expected in zip(found, step(torchs(), hidden, target), strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("of", ["loss", "output"])
def test_targets_written_to_between_call_and_backward_change_nothing(make, of):
    found = []
    for layer, write in ((make(), True), (torchs(), False)):
        hidden, target = batch()
        hidden.requires_grad_()
        result = getattr(layer(hidden, target), of)
        if write:
            target.fill_(19)
        found.append(torch.autograd.grad(result.sum(), [hidden, *layer.parameters()]))
    assert_close(*found)


# --------------------------------------------------------------------------- test/test_modules.py


def test_forward(make):
    assert_same(make(), torchs())


def test_factory_kwargs(make):
    for dtype in (torch.float64, torch.bfloat16):
        assert {p.dtype for p in make(dtype=dtype).parameters()} == {dtype}
    assert {p.device.type for p in make(device="meta").parameters()} == {"meta"}
    with torch.device("meta"):
        assert {p.device.type for p in make().parameters()} == {"meta"}
    with pytest.raises(TypeError):
        make(no_such_argument=1)


def test_default_dtype_is_followed(make):
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in make().parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_pickle_and_deepcopy_and_save(make):
    layer = make()
    step(layer, *batch())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        pickle.loads(pickle.dumps(layer)),
        copy.deepcopy(layer),
        torch.load(buffer, weights_only=False),
    ):
        assert_same(other, torchs())


def test_non_contiguous_inputs_weights_and_gradients(make):
    layer, expected = make(), torchs()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 2:
                parameter.set_(torch.stack([parameter, parameter], dim=2)[:, :, 0])
                assert not parameter.is_contiguous()
    hidden, target = batch()
    gappy = torch.stack([hidden, hidden], dim=2)[:, :, 0]
    for found, other in zip(step(layer, gappy, target), step(expected, hidden, target), strict=True):
        assert_close(found, other)
    output = layer(gappy.requires_grad_(), target).output
    seed = torch.linspace(1, 2, 9).repeat_interleave(2)[::2]
    (found,) = torch.autograd.grad(output, gappy, seed)
    hidden.requires_grad_()
    (other,) = torch.autograd.grad(expected(hidden, target).output, hidden, seed.contiguous())
    assert_close(found, other)


def _function(layer, target):
    names = [name for name, _ in layer.named_parameters()]

    def call(hidden, *weights):
        named = dict(zip(names, weights, strict=True))
        return tuple(torch.func.functional_call(layer, named, (hidden, target)))

    return call


def test_grad_and_gradgrad(make):
    layer = make(dtype=torch.float64)
    hidden, target = batch(5, torch.float64)
    arguments = (hidden.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(_function(layer, target), arguments)
    assert torch.autograd.gradgradcheck(_function(layer, target), arguments)


def test_train_and_eval_modes_do_not_differ(make):
    layer = make()
    expected = step(layer.train(), *batch())
    for found, other in zip(step(layer.eval(), *batch()), expected, strict=True):
        assert_close(found, other)


def test_memory_format_of_the_module_changes_nothing(make):
    assert_same(make().to(memory_format=torch.channels_last), torchs())


def test_memory_format_of_a_four_dimensional_input_changes_nothing():
    layer = AdaptiveLogSoftmaxWithLoss(*SHAPE)
    hidden, target = torch.randn(2, 3, 4, 6), torch.randint(0, 20, (2, 3, 4))
    found = layer(hidden.to(memory_format=torch.channels_last), target)
    assert_close(found.output, layer(hidden, target).output)


def test_to_empty_and_load(make):
    layer = make(device="meta").to_empty(device="cpu")
    layer.load_state_dict(torchs().state_dict())
    assert_same(layer, torchs())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_loading_and_converting_with_swapped_tensors(make, swap, assign):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer = make()
        parameters = dict(layer.named_parameters())
        layer.to(torch.float64)
        if swap:
            assert all(parameters[name] is p for name, p in layer.named_parameters())
        layer.load_state_dict({n: 1.5 * t for n, t in torchs().double().state_dict().items()}, assign=assign)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    expected = torchs(dtype=torch.float64)
    with torch.no_grad():
        for parameter, single in zip(expected.parameters(), torchs().parameters(), strict=True):
            parameter.copy_(1.5 * single)
    assert_same(layer, expected, dtype=torch.float64)


def test_repr_names_the_class_and_its_submodules(make):
    text = repr(make())
    assert text.startswith("AdaptiveLogSoftmaxWithLoss(")
    assert "(head): Linear(in_features=6, out_features=7, bias=True)" in text


def test_hooks_of_the_layer_itself_are_called(make):
    layer = make()
    seen = []
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 0.5, args[1]))
    layer.register_forward_hook(lambda module, args, result: seen.append(result))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out))
    hidden, target = batch()
    expected = torchs()(hidden * 0.5, target)
    hidden.requires_grad_()
    result = layer(hidden, target)
    result.loss.backward()
    assert_close(result.loss, expected.loss)
    assert len(seen) == 2


def test_weight_tying_and_freezing(make):
    found = []
    for layer in (make(), torchs()):
        embedding = nn.Embedding(7, 6)
        layer.head.weight = embedding.weight = nn.Parameter(torch.linspace(-1, 1, 42).reshape(7, 6))
        layer.tail.requires_grad_(False)
        hidden, target = batch()
        (layer(hidden + embedding(target % 7), target).loss).backward()
        found.append([embedding.weight.grad, *(p.grad for p in layer.parameters())])
    for mine, expected in zip(*found, strict=True):
        assert (mine is None) == (expected is None)
        if expected is not None:
            assert_close(mine, expected)


ZERO = (8, 40, (4, 12, 25), 6.0)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_tails_of_projection_size_zero_are_uniform_as_in_torch():
    torch.manual_seed(0)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*ZERO)
    ours = AdaptiveLogSoftmaxWithLoss(*ZERO)
    ours.load_state_dict(theirs.state_dict())
    hidden, target = torch.randn(30, 8), torch.arange(30) + 5
    for mine, expected in zip(step(ours, hidden, target), step(theirs, hidden, target), strict=True):
        assert_close(mine, expected)
