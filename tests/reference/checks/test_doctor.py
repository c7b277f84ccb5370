import torch

from zipfmax_reference.checks import doctor
from zipfmax_reference.contestants import paddle_nn, registry


def test_every_implementation_is_named_with_what_it_can_do(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(paddle_nn, "find_spec", lambda name: None)
    assert doctor.run() == 0
    shown = capsys.readouterr().out
    assert "pip install 'zipfmax[paddle]'" in shown
    for name in registry.names():
        assert name in shown
    assert torch.__version__ in shown


def test_what_an_implementation_lacks_is_its_reason():
    assert doctor._state("torch", "cpu") == "runs"
    paddle = doctor._state("paddle", "cpu")
    assert "float32" in paddle or "not installed" in paddle
    assert "GPU" in doctor._state("definition", "cuda") or "CPU" in doctor._state("definition", "cuda")
