import sys
import textwrap

import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case

CASE = Case(60, 12, 9, (7, 20), head_bias=True)


@pytest.mark.parametrize("name", registry.names())
def test_every_name_gives_the_implementation_of_that_name(name):
    implementation = registry.implementation(name)
    assert implementation.name == name
    assert implementation.family == ("full" if name.startswith(("full", "sampled")) else "adaptive")


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_states_what_it_lacks_in_words(name, device):
    reason = registry.implementation(name).unsupported_reason(Case(60, 12, 9, (7, 20), device=device))
    assert reason is None or len(reason) > 10


@pytest.mark.parametrize("name", ["torhc", "zipfmax:fast", "full:", "", ":x"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match=r"zipfmax:eager.*file\.py:Class"):
        registry.implementation(name)


def test_a_class_of_a_module_is_taken_by_its_name():
    name = "torch.nn:AdaptiveLogSoftmaxWithLoss"
    assert registry.implementation(name).unsupported_reason(CASE) is None


@pytest.mark.parametrize(
    "name",
    ["no.such.module:Class", "torch.nothing:Class", "torch.nn:NoSuchClass", "none.py:Class", "torch:float32"],
)
def test_a_class_that_cannot_be_found_is_refused(name):
    with pytest.raises(UsageError):
        registry.implementation(name)


def test_a_file_that_cannot_be_imported_is_refused_with_its_error(tmp_path):
    (tmp_path / "mine.py").write_text("raise OSError('no disk')")
    with pytest.raises(UsageError, match="OSError: no disk"):
        registry.implementation(f"{tmp_path}/mine.py:Layer")


@pytest.fixture
def own_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.usefixtures("own_imports")
def test_a_class_of_a_file_may_use_dataclasses_pickle_and_what_lies_beside(tmp_path):
    (tmp_path / "beside_mine.py").write_text("NAME = 'beside'")
    (tmp_path / "json.py").write_text("1 / 0")
    text = textwrap.dedent("""
        from __future__ import annotations
        import json, pickle
        from dataclasses import dataclass
        import torch
        from beside_mine import NAME

        @dataclass
        class Options:
            x: "int" = 1
            kw: "KW_ONLY" = 2

        class Layer(torch.nn.AdaptiveLogSoftmaxWithLoss):
            options: Options = pickle.loads(pickle.dumps(Options()))
    """)
    for name in ("mine.py", "queue.py", "not-a-name.py"):
        (tmp_path / name).write_text(text)
        layer = registry.implementation(f"{tmp_path}/{name}:Layer")
        assert layer.unsupported_reason(CASE) is None
    assert sys.path[-1] == str(tmp_path)
    assert not sys.modules["queue"].__file__.startswith(str(tmp_path))


@pytest.mark.usefixtures("own_imports")
def test_a_module_of_the_working_directory_is_found_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_module_here.py").write_text(
        "import json, torch\nLayer = torch.nn.AdaptiveLogSoftmaxWithLoss"
    )
    (tmp_path / "json.py").write_text("1 / 0")
    assert registry.implementation("a_module_here:Layer").unsupported_reason(CASE) is None


def test_an_absent_gpu_is_the_reason():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    case = Case(60, 12, 9, (7, 20), device="cuda")
    assert "no CUDA" in registry.implementation("torch").unsupported_reason(case)


def test_a_class_within_a_class_is_taken_by_both_names(tmp_path):
    file = tmp_path / "nested.py"
    file.write_text(
        "import torch\nclass Outer:\n    class Inner(torch.nn.AdaptiveLogSoftmaxWithLoss): pass\n"
    )
    assert registry.implementation(f"{file}:Outer.Inner").name == f"{file}:Outer.Inner"
    with pytest.raises(UsageError, match=r"has no class 'Outer\.Other'"):
        registry.implementation(f"{file}:Outer.Other")
