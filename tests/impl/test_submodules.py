"""Submodules count: whatever users put in, on or around head and tails, the numbers are torch.nn's."""

import functools
import warnings

import pytest
import torch
import torch.nn.utils.prune as prune
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.submodules import Replaced, plain_weights

SHAPE = (16, 60, [10, 30], 2.0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:AdaptiveLogSoftmaxWithLoss computes through its submodules"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]


class LoRA(nn.Module):
    """An adapter as PEFT makes one: it holds the layer as `base_layer`, shows its weight, and adds to it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Linear(base_layer.in_features, 3, bias=False)
        self.lora_B = nn.Linear(3, base_layer.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + 2 * self.lora_B(self.lora_A(x))


class Scaled(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


class WithoutWeight(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.tanh(self.inner(x)) * 3


class Doubled(nn.Module):
    evaluations = 0

    def forward(self, weight):
        Doubled.evaluations += 1
        return 2 * weight


def lora(layer):
    layer.requires_grad_(False)
    layer.head = LoRA(layer.head)
    layer.tail[0][1] = LoRA(layer.tail[0][1])


def subclass(layer):
    for tail in layer.tail:
        scaled = Scaled(16, tail[0].out_features, bias=False)
        scaled.load_state_dict(tail[0].state_dict())
        tail[0] = scaled


def replaced_forward(layer):
    """As accelerate's hooks do it: `forward` of the instance."""
    head = layer.head
    old = head.forward
    head.forward = functools.partial(
        lambda self, x: old(x) - x.sum(1, keepdim=True) * self.weight[:, 0], head
    )


def stale_weight(layer):
    """Pruned, then loaded: `weight` is an attribute that only the pre-hook brings up to date."""
    prune.random_unstructured(layer.head, "weight", 0.5)
    state = {name: tensor * 1.5 for name, tensor in layer.state_dict().items() if "orig" in name}
    layer.load_state_dict(state, strict=False)


def backward_hook(layer):
    layer.tail[1].register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 3,))


def old_backward_hook(layer):
    layer.head.register_backward_hook(lambda module, grad_in, grad_out: grad_in)


def computed_weight(layer):
    """As a hypernetwork does it: a tensor in the parameter's place."""
    weight = layer.head.weight
    del layer.head.weight
    layer.head.weight = weight.detach() * 2


def shadowed_weight(layer):
    layer.head.__dict__["weight"] = layer.head.weight.detach() * 2


def backward_hook_of_head(layer):
    layer.head.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))


def backward_pre_hook(layer):
    layer.tail[0][0].register_full_backward_pre_hook(lambda module, grad_out: (grad_out[0] * 2,))


def biased_head(layer):
    layer.head = nn.Linear(16, 12, bias=True)


def dropout(layer):
    layer.tail[0].insert(1, nn.Dropout(0.5))


CHANGES = {
    "LoRA": lora,
    "a forward hook on head": lambda layer: layer.head.register_forward_hook(lambda m, x, y: y * 0.5),
    "a forward hook on a tail": lambda layer: layer.tail[1].register_forward_hook(
        lambda m, x, y: y + x[0][:, :1]
    ),
    "a forward pre-hook": lambda layer: layer.tail[0][1].register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "a full backward hook": backward_hook,
    "a full backward hook on head": backward_hook_of_head,
    "a weight that is no parameter": computed_weight,
    "a weight before the parameter": shadowed_weight,
    "a backward pre-hook": backward_pre_hook,
    "an old backward hook": old_backward_hook,
    "a subclass of Linear": subclass,
    "a wrapper without weight": lambda layer: setattr(layer, "head", WithoutWeight(layer.head)),
    "a replaced forward": replaced_forward,
    "legacy spectral_norm": lambda layer: nn.utils.spectral_norm(layer.head),
    "legacy weight_norm": lambda layer: nn.utils.weight_norm(layer.tail[0][1]),
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer.tail[1][0]),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer.head),
    "pruned, then loaded": stale_weight,
    "a dropout in a tail": dropout,
    "a head with bias": biased_head,
    "a shared weight": lambda layer: setattr(layer.tail[0][0], "weight", nn.Parameter(layer.head.weight[:8])),
}


def both(change, **options):
    """torch.nn's layer and ours, changed alike from the same weights."""
    layers = []
    for cls, given in ((nn.AdaptiveLogSoftmaxWithLoss, {}), (AdaptiveLogSoftmaxWithLoss, options)):
        torch.manual_seed(0)
        layer = cls(*SHAPE, **given)
        torch.manual_seed(1)
        change(layer)
        layers.append(layer)
    return layers


def batch():
    torch.manual_seed(2)
    return torch.randn(24, 16, requires_grad=True), torch.randint(0, 60, (24,))


def everything(layer):
    """What a layer gives: forward with every gradient, log_prob, predict; twice, for what keeps state."""
    found = {}
    for turn in range(2):
        torch.manual_seed(3)
        hidden, target = batch()
        layer.zero_grad()
        output, loss = layer(hidden, target)
        (loss + output[:3].sum()).backward()
        found |= {f"output {turn}": output, f"loss {turn}": loss, f"input.grad {turn}": hidden.grad}
        found |= {f"{name}.grad {turn}": p.grad for name, p in layer.named_parameters()}
        torch.manual_seed(4)
        found |= {f"log_prob {turn}": layer.log_prob(hidden), f"predict {turn}": layer.predict(hidden)}
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_changed_submodule_gives_torchs_results_and_gradients(change, backend):
    theirs, ours = both(change, backend=backend)
    expected, found = everything(theirs), everything(ours)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert_close(
                found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_topk_and_sample_follow_the_changed_log_prob(change):
    layer = both(change)[1].eval()
    hidden, _ = batch()
    with torch.no_grad():
        log_prob = layer.log_prob(hidden)
        assert_close(layer.topk(hidden, 7).values, log_prob.topk(7).values)
        out = torch.empty_like(log_prob)
        assert_close(layer.log_prob(hidden, out=out), log_prob)
        drawn = layer.sample(hidden[:2], 4000)
    for row in range(2):
        share = torch.bincount(drawn[row], minlength=60) / 4000
        assert (share - log_prob[row].exp()).abs().max() < 0.05


def test_a_hook_of_all_modules_sees_the_submodules_as_in_torch():
    seen = {}
    for layer in both(lambda layer: None):
        calls = seen[type(layer)] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, x, y, calls=calls: calls.append(type(module).__name__)
        )
        try:
            layer(*batch())
        finally:
            handle.remove()
    theirs, ours = seen.values()
    assert ours == theirs
    assert len(ours) == 8


def test_the_warning_comes_once_and_names_submodule_and_cost():
    _, layer = both(lora)
    with pytest.warns(
        UserWarning, match=r"'head' is a .*LoRA, not a plain Linear: right, but as slow as torch.nn"
    ):
        layer(*batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(*batch())
        layer.log_prob(batch()[0])
        both(lora, backend="eager")[1](*batch())


@pytest.mark.parametrize("method", ["forward", "log_prob", "predict", "topk", "sample"])
def test_a_named_backend_that_cannot_names_the_submodule_and_eager(method):
    _, layer = both(CHANGES["a forward pre-hook"], backend="tiled")
    hidden, target = batch()
    with pytest.raises(RuntimeError, match=r"'tiled' cannot .* 'tail.0.1' has a hook; backend='eager'"):
        {
            "forward": lambda: layer(hidden, target),
            "log_prob": lambda: layer.log_prob(hidden),
            "predict": lambda: layer.predict(hidden),
            "topk": lambda: layer.topk(hidden, 3),
            "sample": lambda: layer.sample(hidden),
        }[method]()


def test_what_the_constructor_made_takes_the_fast_path_and_a_removed_hook_gives_it_back():
    _, layer = both(lambda layer: None)
    assert not isinstance(plain_weights(layer, layer.layout), Replaced)
    handle = layer.tail[1][0].register_forward_hook(lambda *_: None)
    assert plain_weights(layer, layer.layout) == ("tail.1.0", "has a hook")
    handle.remove()
    assert not isinstance(plain_weights(layer, layer.layout), Replaced)
    with pytest.raises(RuntimeError, match=r"submodule 'head' is a .*LoRA"):
        both(lora)[1].weights()


def test_a_pruning_made_permanent_gives_the_fast_path_back():
    _, layer = both(stale_weight)
    assert plain_weights(layer, layer.layout) == ("head", "has a hook")
    layer(*batch())
    expected = layer(*batch())
    prune.remove(layer.head, "weight")
    assert not isinstance(plain_weights(layer, layer.layout), Replaced)
    assert_close(layer(*batch()), expected)


def test_a_weight_of_another_tensor_type_is_left_to_its_module():
    theirs, layer = both(lambda layer: None)
    weight = layer.head.weight.detach()
    layer.head.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    assert plain_weights(layer, layer.layout) == ("head", "has a weight of type TwoTensor")
    found = []
    for changed in (layer, theirs):
        output, loss = changed(*batch())
        loss.backward()
        results = (output, loss, changed.head.weight.grad, changed.tail[0][1].weight.grad)
        found.append([getattr(result, "a", result).detach() for result in results])
    assert_close(*found)


@pytest.mark.parametrize("method", ["forward", "log_prob", "predict", "topk", "sample", "out"])
def test_a_parametrised_weight_is_evaluated_once_a_call(method):
    _, layer = both(lambda layer: None)
    for name in ("head", "tail.0.0", "tail.1.1"):
        parametrize.register_parametrization(layer.get_submodule(name), "weight", Doubled())
    hidden, target = batch()
    Doubled.evaluations = 0
    with torch.no_grad():
        {
            "forward": lambda: layer(hidden, target),
            "log_prob": lambda: layer.log_prob(hidden),
            "predict": lambda: layer.predict(hidden),
            "topk": lambda: layer.topk(hidden, 20),
            "sample": lambda: layer.sample(hidden, 5),
            "out": lambda: layer.log_prob(hidden, out=torch.empty(24, 60)),
        }[method]()
    assert Doubled.evaluations == 3


def test_a_submodule_that_fails_is_named():
    _, layer = both(lambda layer: layer.tail[0].append(nn.Linear(7, 7)))
    with pytest.raises(RuntimeError) as caught:
        layer(*batch())
    assert any("submodule 'tail.0' of AdaptiveLogSoftmaxWithLoss" in note for note in caught.value.__notes__)
    _, layer = both(lambda layer: setattr(layer, "head", nn.Linear(16, 11)))
    with pytest.raises(RuntimeError, match=r"submodule 'head' should give logits of size \(24, 12\)"):
        layer(*batch())
    _, layer = both(lambda layer: layer.tail.append(nn.Linear(16, 4)))
    with pytest.raises(RuntimeError, match=r"submodule 'tail' should be a ModuleList of 2 modules.* of 3"):
        layer(*batch())


def test_absent_grads_zeros_reaches_every_parameter_of_called_submodules():
    _, layer = both(dropout, absent_grads="zeros")
    hidden, _ = batch()
    layer(hidden, torch.zeros(24, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert all((p.grad == 0).all() for p in layer.tail.parameters())
    assert layer.head.weight.grad.abs().max() > 0


def test_dynamic_quantisation_gives_torchs_results():
    found = []
    for layer in both(lambda layer: None):
        quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
        hidden, target = batch()
        with torch.no_grad():
            found.append([*quantised(hidden, target), quantised.log_prob(hidden), quantised.predict(hidden)])
    for theirs, ours in zip(*found, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    "name", ["LoRA", "a head with bias", "a forward hook on a tail", "a subclass of Linear"]
)
def test_from_torch_takes_changed_submodules_along(name):
    theirs, _ = both(CHANGES[name])
    ours = zipfmax.from_torch(theirs)
    hidden, target = batch()
    assert_close(ours(hidden, target).loss, theirs(hidden, target).loss)
    assert_close(ours.log_prob(hidden), theirs.log_prob(hidden))
    assert [n for n, p in ours.named_parameters() if p.requires_grad] == [
        n for n, p in theirs.named_parameters() if p.requires_grad
    ]
    shared = {id(p) for p in theirs.parameters()} & {id(p) for p in ours.parameters()}
    assert not shared


@pytest.mark.parametrize("shape", [(1,), ()])
@pytest.mark.parametrize("where", ["head", "tail.0.0", "tail.1.1"])
@pytest.mark.filterwarnings("ignore:AdaptiveLogSoftmaxWithLoss computes through")
def test_a_bias_that_broadcasts_is_added_as_torch_adds_it(where, shape):
    torch.manual_seed(0)
    ours, theirs = (
        AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30]),
        nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30]),
    )
    theirs.load_state_dict(ours.state_dict())
    hidden, target = torch.randn(9, 16), torch.arange(9) * 6
    for layer in (ours, theirs):
        layer.get_submodule(where).bias = nn.Parameter(torch.full(shape, 0.5))
    torch.testing.assert_close(ours(hidden, target).output, theirs(hidden, target).output)
    with pytest.raises(RuntimeError, match=f"{where}.*bias of shape"):
        ours.weights()


def test_reset_parameters_is_the_submodules_own():
    class Counting(nn.Linear):
        calls = 0

        def reset_parameters(self):
            type(self).calls += 1
            super().reset_parameters()

    layer = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
    layer.head = Counting(16, 12, bias=False)
    layer.tail[0].append(adapter := nn.Linear(20, 20))
    before, kept = Counting.calls, adapter.weight.clone()
    layer.reset_parameters()
    assert Counting.calls == before + 1
    assert torch.equal(adapter.weight, kept)


def test_an_input_of_a_tensor_subclass_is_left_to_plain_operations():
    torch.manual_seed(0)
    ours = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
    eager = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30], backend="eager")
    eager.load_state_dict(ours.state_dict())
    hidden, target = torch.randn(9, 16), torch.arange(9) * 6
    wrapped = TwoTensor(hidden, 2 * hidden)
    with torch.no_grad():
        found, expected = ours.log_prob(wrapped), eager.log_prob(wrapped)
    assert isinstance(found, TwoTensor)
    for part in ("a", "b"):
        assert_close(getattr(found, part), getattr(expected, part))
    tiled = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30], backend="tiled")
    with pytest.raises(RuntimeError, match="an input of type TwoTensor; backend='eager' serves it"):
        tiled(wrapped, target)


def test_weights_made_in_inference_mode_train_the_input_outside_of_it():
    with torch.inference_mode():
        layer = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
        theirs = nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
        theirs.load_state_dict(layer.state_dict())
    hidden, target = torch.randn(9, 16), torch.arange(9) * 6
    torch.testing.assert_close(layer(hidden, target).loss, theirs(hidden, target).loss)
