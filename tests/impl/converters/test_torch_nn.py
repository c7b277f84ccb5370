import pytest
import torch
from torch import nn

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks
from zipfmax.converters import from_torch, to_fairseq, to_paddle, to_torch

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("arguments", [(12, 30, [5, 14], 2.0), (7, 11, [1], 1.3), (4, 40, [3, 9, 20], 5)])
def test_the_converted_layer_is_torchs_function_both_ways(arguments, head_bias):
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*arguments, head_bias, dtype=torch.float64)
    ours = zipfmax.from_torch(theirs, ignore_index=-1, backend="eager")
    hidden = torch.randn(9, arguments[0], dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(hidden), theirs.log_prob(hidden))
    assert (ours.ignore_index, ours.backend) == (-1, "eager")
    back = ours.to_torch()
    assert torch.equal(back.log_prob(hidden), theirs.log_prob(hidden))
    assert back.cutoffs == theirs.cutoffs
    assert back.div_value == theirs.div_value


def test_it_is_a_copy_in_the_same_state_and_leaves_the_random_numbers_alone():
    theirs = nn.AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, dtype=torch.bfloat16).eval()
    theirs.head.requires_grad_(False)
    before = torch.get_rng_state()
    ours = zipfmax.from_torch(theirs)
    back = ours.to_torch()
    assert torch.equal(torch.get_rng_state(), before)
    for module in (ours, back):
        assert not module.training
        assert module.head.weight.dtype == torch.bfloat16
        assert [p.requires_grad for p in module.parameters()] == [False, True, True, True, True]
        assert all(a is not b for a, b in zip(module.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        theirs.head.weight.zero_()
    assert (ours.head.weight != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail_bias": True}, "no place for tail_bias"),
        ({"projection_bias": True}, "no place for projection_bias"),
        ({"label_ranks": LabelRanks(range(30))}, "no place for label_ranks"),
        (
            {"projection_sizes": (6, 2)},
            r"has projection sizes \(6, 3\) for div_value=2.0, but .* has \(6, 2\)",
        ),
    ],
)
def test_what_torch_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, **options).to_torch()


def test_another_module_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch.nn.AdaptiveLogSoftmaxWithLoss, got Linear"):
        zipfmax.from_torch(nn.Linear(2, 2))


def test_from_torch_does_not_take_our_layer_for_torchs():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5], projection_sizes=(3,))
    with pytest.raises(TypeError, match=r"zipfmax's already, .*; copy.deepcopy it"):
        zipfmax.from_torch(layer)


def test_what_the_module_itself_computes_is_refused():
    class Doubling(nn.AdaptiveLogSoftmaxWithLoss):
        def forward(self, hidden, target):
            output, loss = super().forward(hidden, target)
            return output, 2 * loss

    with pytest.raises(ValueError, match="the module has a forward of its own"):
        from_torch(Doubling(16, 60, [10, 30]))
    hooked = nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(ValueError, match="hooks of its own"):
        from_torch(hooked)


@pytest.mark.parametrize(
    "option", [{"dtype": torch.float64}, {"tail_bias": True}, {"projection_sizes": (3, 3)}]
)
def test_what_the_module_says_already_is_no_option(option):
    with pytest.raises(TypeError, match=f"takes {next(iter(option))} from the module"):
        from_torch(nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30]), **option)


def test_tied_projections_are_copied():
    module = nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30], 1.0)
    module.tail[1][0].weight = module.tail[0][0].weight
    hidden, target = torch.randn(9, 16), torch.arange(9) * 6
    torch.testing.assert_close(from_torch(module)(hidden, target).loss, module(hidden, target).loss)


def test_biases_in_some_tails_only_are_refused_in_words():
    module = nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
    module.tail[0][1].bias = nn.Parameter(torch.zeros(20))
    with pytest.raises(ValueError, match="some tails have a bias of the output and others have none"):
        from_torch(module)


@pytest.mark.parametrize("where", ["head", "tail.0.1", "tail.0.0"])
def test_a_bias_added_after_construction_is_not_dropped(where):
    layer = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
    linear = layer.get_submodule(where)
    linear.bias = nn.Parameter(torch.randn(linear.out_features))
    targets = [to_fairseq] if where == "head" else [to_fairseq, to_paddle, to_torch]
    for convert in targets:
        with pytest.raises(ValueError, match="has no place for"):
            convert(layer)
    if where == "head":
        hidden = torch.randn(9, 16)
        torch.testing.assert_close(to_torch(layer).log_prob(hidden), layer.log_prob(hidden))
