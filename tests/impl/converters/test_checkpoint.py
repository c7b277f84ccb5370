import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss, converters
from zipfmax.converters.checkpoint import Checkpoint


def test_an_entry_is_taken_once_and_what_is_left_is_named():
    entries = Checkpoint(
        "state_dict", {"m.a": torch.zeros(2, 3), "m.b": torch.ones(4), "other": torch.zeros(1)}, "m."
    )
    assert "a" in entries
    assert entries.take("a", 2, None).shape == (2, 3)
    assert "a" not in entries
    with pytest.raises(ValueError, match=r"state_dict: 'm.b' of shape \(4,\) has no place in the layer"):
        entries.finish()
    entries.drop("b", "c")
    entries.finish()


@pytest.mark.parametrize("shape", [(3, 3), (2,), (2, 3, 1)])
def test_another_shape_is_named(shape):
    entries = Checkpoint("state_dict", {"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"state_dict: 'a' should have shape \(.*\), but has \(2, 3\)"):
        entries.take("a", *shape)


def test_nothing_at_all_is_said():
    with pytest.raises(ValueError, match="state_dict is empty"):
        Checkpoint("state_dict", {})


def _sample(layer, n=5):
    hidden = torch.randn(n, layer.in_features, dtype=next(layer.parameters()).dtype)
    return hidden, layer.log_prob(hidden).detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("framework", ["torch", "fairseq", "paddle", "par_transformer_xl"])
def test_every_converter_checks_itself_on_a_sample(dtype, framework):
    torch.manual_seed(0)
    biases = framework == "par_transformer_xl"
    layer = AdaptiveLogSoftmaxWithLoss(
        12, 30, [5, 14], 2.0, head_bias=biases, tail_bias=biases, projection_bias=biases, dtype=dtype
    )
    module = layer.to_torch() if framework == "torch" else getattr(converters, f"to_{framework}")(layer)
    convert = getattr(converters, f"from_{framework}")
    hidden, log_prob = _sample(layer)
    convert(module, check=(hidden, log_prob))
    with pytest.raises(ValueError, match=r"log_prob differs from the sample's by up to 0\.[45]"):
        convert(module, check=(hidden, log_prob + 0.5 * (torch.arange(30) == 17)))
    with pytest.raises(ValueError, match="log_prob differs from the sample's by up to inf"):
        convert(module, check=(hidden, torch.full_like(log_prob, torch.nan)))
    with pytest.raises(ValueError, match=r"check: log_prob should be of size \(5, 30\)"):
        convert(module, check=(hidden, log_prob[:, 1:]))
