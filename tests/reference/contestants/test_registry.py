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
    "name", ["no.such.module:Class", "torch.nn:NoSuchClass", "none.py:Class", "torch:float32"]
)
def test_a_class_that_cannot_be_found_is_refused(name):
    with pytest.raises(UsageError):
        registry.implementation(name)


def test_a_file_that_cannot_be_imported_is_refused_with_its_error(tmp_path):
    (tmp_path / "mine.py").write_text("raise OSError('no disk')")
    with pytest.raises(UsageError, match="OSError: no disk"):
        registry.implementation(f"{tmp_path}/mine.py:Layer")


def test_a_class_of_a_file_may_use_dataclasses_and_its_own_names(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from __future__ import annotations
            from dataclasses import dataclass
            import torch

            @dataclass
            class Options:
                x: "int" = 1

            class Layer(torch.nn.AdaptiveLogSoftmaxWithLoss):
                options: Options = Options()
        """)
    )
    assert registry.implementation(f"{tmp_path}/mine.py:Layer").unsupported_reason(CASE) is None


def test_an_absent_gpu_is_the_reason():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    case = Case(60, 12, 9, (7, 20), device="cuda")
    assert "no CUDA" in registry.implementation("torch").unsupported_reason(case)
