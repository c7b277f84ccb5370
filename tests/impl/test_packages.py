"""PEFT and accelerate themselves, where installed; `test_submodules` has what each does to a module."""

import importlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss

SHAPE = (16, 60, [10, 30], 2.0)

pytestmark = pytest.mark.filterwarnings("ignore:AdaptiveLogSoftmaxWithLoss computes through its submodules")


def package(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")


class Model(nn.Module):
    def __init__(self, cls):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(16, 16)
        self.criterion = cls(*SHAPE)

    def forward(self, x, y):
        return self.criterion(torch.tanh(self.body(x)), y)


def batch():
    torch.manual_seed(1)
    return torch.randn(24, 16), torch.randint(0, 60, (24,))


@pytest.fixture
def both():
    return [Model(nn.AdaptiveLogSoftmaxWithLoss), Model(AdaptiveLogSoftmaxWithLoss)]


def test_peft_adapters_on_head_and_tail_train_as_on_torchs_layer(both):
    peft = package("peft")
    found = []
    for model in both:
        torch.manual_seed(2)
        config = peft.LoraConfig(
            r=4, target_modules=["criterion.head", "criterion.tail.0.1"], init_lora_weights=False
        )
        adapted = peft.get_peft_model(model, config)
        output, loss = adapted(*batch())
        loss.backward()
        gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
        assert len(gradients) == 4
        merged = adapted.merge_and_unload()(*batch()).loss
        assert_close(merged, loss)
        found.append([output, loss, *gradients.values()])
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[1][2:])
    for theirs, ours in zip(*found, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_accelerates_offload_gives_torchs_results(both, offload, tmp_path):
    accelerate = package("accelerate")
    found = []
    for i, model in enumerate(both):
        criterion = model.criterion
        plain = criterion(*batch()).output.detach()
        where = (tmp_path / str(i),) if offload == "disk_offload" else ()
        getattr(accelerate, offload)(criterion, *where, execution_device=torch.device("cpu"))
        assert criterion.head.weight.device.type == "meta"
        with torch.no_grad():
            output, loss = criterion(*batch())
            found.append([output, loss, criterion.log_prob(batch()[0]), criterion.predict(batch()[0])])
        assert_close(output, plain)
    for theirs, ours in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_accelerators_prepared_model_trains_as_torchs(both):
    accelerate = package("accelerate")
    found = []
    for model in both:
        prepared, optimizer = accelerate.Accelerator(cpu=True).prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.5)
        )
        prepared(*batch()).loss.backward()
        optimizer.step()
        found.append([*prepared.parameters()])
    for theirs, ours in zip(*found, strict=True):
        assert_close(ours, theirs)
