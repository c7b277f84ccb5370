"""Fused losses: each setting gives full softmax's values, and each package is called as its source has it.

The packages need a GPU. On a CPU they are replaced by functions with their signatures, which compute the same
by linear and cross entropy and keep what they were given.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.full import FullRunner
from zipfmax_reference.contestants.implementation import gradients
from zipfmax_reference.contestants.padding import FEATURES
from zipfmax_reference.contestants.settings import ExactnessCheck
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_inputs
from zipfmax_reference.truth import definition

CASE = Case(53, 16, 1032, (7,), dtype="float32")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@cache
def drawn(case):
    """Inputs of a case and the float64 truth."""
    inputs = draw_inputs(case, full=True)
    return inputs, definition.evaluate(case, inputs, "full")


def computed(setting, case):
    """Results of a setting on a case, and the float64 truth."""
    inputs, truth = drawn(case)
    weight = torch.from_numpy(inputs.weights[FULL_WEIGHT]).to(case.device, getattr(torch, case.dtype))
    runner = FullRunner(setting, weight, case, inputs)
    runner.run()
    return runner.results(), truth


def assert_right(setting, case=CASE):
    results, truth = computed(setting, case)
    assert results.keys() == truth.keys()
    for name, values in truth.items():
        message = f"{name}, {setting.text}"
        np.testing.assert_allclose(results[name], values, rtol=1e-4, atol=2e-7, err_msg=message)


def install(monkeypatch, name, **attributes):
    """A module of that name, and its package, for as long as the test lasts."""
    for part in (name.partition(".")[0], name):
        module = ModuleType(part)
        module.__spec__ = ModuleSpec(part, None)
        monkeypatch.setitem(sys.modules, part, module)
    for attribute, value in attributes.items():
        setattr(sys.modules[name], attribute, value)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def liger(monkeypatch, calls):
    """The function of liger-kernel 0.8."""

    def liger_fused_linear_cross_entropy(
        input, weight, target, bias=None, reduction="mean", accum_dtype=None, chunk_mem_const=1
    ):
        calls.append({"weight": weight, "bias": bias, "accum": accum_dtype, "const": chunk_mem_const})
        return F.cross_entropy(F.linear(input, weight, bias), target, reduction=reduction)

    name = "liger_kernel.transformers.functional"
    install(monkeypatch, name, liger_fused_linear_cross_entropy=liger_fused_linear_cross_entropy)


@pytest.fixture
def cut(monkeypatch, calls):
    """The function of cut-cross-entropy 25.1."""

    def linear_cross_entropy(e, c, targets, reduction="mean", filter_eps="high"):
        calls.append({"filter_eps": filter_eps})
        return F.cross_entropy(F.linear(e, c), targets, reduction=reduction)

    install(monkeypatch, "cut_cross_entropy", linear_cross_entropy=linear_cross_entropy)


@pytest.fixture
def quack(monkeypatch, calls):
    """The function of quack-kernels 0.6."""

    def chunked_linear_cross_entropy(x, weight, target, chunk_size=4096, reduction="mean"):
        calls.append({"shape": weight.shape, "width": x.shape[1], "rows": chunk_size})
        return F.cross_entropy(F.linear(x, weight), target, reduction=reduction)

    name = "quack.linear_cross_entropy"
    install(monkeypatch, name, chunked_linear_cross_entropy=chunked_linear_cross_entropy)


def settings(name, case=CASE):
    return registry.implementation(name).settings(case)


@pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no chunked loss"
)
@pytest.mark.parametrize("index", range(10))
def test_every_setting_of_torchs_chunks_gives_the_values_of_float64_numpy(index):
    every = settings("full:chunked")
    assert [setting.text for setting in every] == 2 * [
        "chunks as torch chooses",
        *(f"batch_chunk_size={rows}" for rows in (1032, 1024, 512, 256)),
    ]
    assert [setting.padding.added(53) for setting in every] == [0] * 5 + [11] * 5
    assert_right(every[index])


@pytest.mark.parametrize("n_classes", [53, 64])
def test_every_setting_of_liger_is_exact_and_is_called_with_its_arguments(liger, calls, n_classes):
    case = replace(CASE, n_classes=n_classes)
    every = settings("full:liger", case)
    assert len(every) == (15 if n_classes == 53 else 5)
    for setting in every:
        calls.clear()
        assert_right(setting, case)
        (call,) = calls
        assert f"chunk_mem_const={call['const']}" in setting.text
        assert call["accum"] is None
        padded = setting.padding.added(n_classes) > 0
        assert (call["bias"] is not None) == (padded and setting.padding.mask == "bias")
        assert len(call["weight"]) == (64 if padded else n_classes)


def test_liger_in_sixteen_bits_may_sum_chunks_in_float32(liger, calls):
    every = settings("full:liger", replace(CASE, n_classes=64, dtype="bfloat16"))
    wide = [setting for setting in every if "accum_dtype" in setting.text]
    assert [setting.text for setting in wide] == ["chunk_mem_const=64, accum_dtype=torch.float32"]
    computed(wide[0], replace(CASE, n_classes=64, dtype="bfloat16"))
    assert calls[0]["accum"] == torch.float32


def test_an_older_liger_is_taken_as_it_is(monkeypatch):
    def liger_fused_linear_cross_entropy(input, weight, target, bias=None):
        return F.cross_entropy(F.linear(input, weight, bias), target)

    name = "liger_kernel.transformers.functional"
    install(monkeypatch, name, liger_fused_linear_cross_entropy=liger_fused_linear_cross_entropy)
    every = settings("full:liger")
    assert [setting.text for setting in every] == 3 * ["chunks as liger-kernel chooses"]
    for setting in every:
        assert_right(setting)


def test_cut_cross_entropy_is_called_as_installed_and_exactly(cut, calls):
    for name, expected in (("full:cce", "high"), ("full:cce-exact", None)):
        calls.clear()
        (setting,) = settings(name)
        assert_right(setting)
        assert calls == [{"filter_eps": expected}]


def test_a_cut_cross_entropy_that_can_sum_in_float32_does_so_where_it_should_be_exact(monkeypatch):
    given = []

    def linear_cross_entropy(e, c, targets, filter_eps="auto", accum_e_fp32=False, accum_c_fp32=False):
        given.append((filter_eps, accum_e_fp32, accum_c_fp32))
        return F.cross_entropy(F.linear(e, c), targets)

    install(monkeypatch, "cut_cross_entropy", linear_cross_entropy=linear_cross_entropy)
    for name in ("full:cce", "full:cce-exact"):
        assert_right(settings(name)[0])
    assert given == [("auto", False, False), (None, True, True)]


@pytest.mark.parametrize(
    ("n_classes", "padded"), [(53, [384, 128]), (128, [384, 128]), (384, [384]), (300, [384])]
)
def test_quack_gets_a_vocabulary_and_a_width_that_its_kernels_take(quack, calls, n_classes, padded):
    case = replace(CASE, n_classes=n_classes)
    every = settings("full:quack", case)
    sizes = []
    for setting in every:
        calls.clear()
        assert_right(setting, case)
        (call,) = calls
        assert call["shape"][0] % 128 == 0
        assert call["width"] == call["shape"][1] == 16 + (FEATURES if call["shape"][0] > n_classes else 0)
        assert call["rows"] % 128 == 0
        assert setting.text == f"chunk_size={call['rows']}"
        sizes.append((call["shape"][0], call["rows"]))
    assert sizes == [(classes, 1152) for classes in padded]


def test_quack_tries_several_chunks_of_a_large_batch(quack):
    every = settings("full:quack", replace(CASE, n_classes=384, batch_size=8200))
    assert [setting.text for setting in every] == [
        "chunk_size=4096",
        "chunk_size=8192",
        "chunk_size=2048",
        "chunk_size=8320",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float32"}, "bfloat16 and float16 only"),
        ({"in_features": 20}, "multiples of 8, not 20 features"),
        ({"batch_size": 1001}, "1001 rows"),
        ({"device": "cpu"}, "needs a GPU"),
        ({}, None),
    ],
)
def test_what_quack_cannot_do_is_said(quack, changes, words):
    case = replace(CASE, **{"dtype": "bfloat16", "device": "cuda", **changes})
    reason = registry.implementation("full:quack").needs(case)
    assert reason is None if words is None else words in reason


def test_a_quack_that_does_not_load_says_why_and_what_helps(monkeypatch):
    install(monkeypatch, "quack")
    case = replace(CASE, dtype="bfloat16", device="cuda")
    reason = registry.implementation("full:quack").needs(case)
    assert "does not load: ModuleNotFoundError" in reason
    assert "site-packages" in reason


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("full:liger", "liger-kernel"),
        ("full:cce", "cut-cross-entropy"),
        ("full:cce-exact", "cut-cross-entropy"),
        ("full:quack", "quack-kernels[cu13]"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, name, package):
    monkeypatch.setattr("zipfmax_reference.contestants.fused.find_spec", lambda name: None)
    reason = registry.implementation(name).needs(replace(CASE, device="cuda"))
    assert f"pip install '{package}'" in reason


def test_only_the_filtered_and_the_sampled_say_that_they_are_inexact():
    stated = {name: gradients(registry.implementation(name)) for name in registry.names()}
    assert {name for name, own in stated.items() if not own.exact} == {"full:cce", "sampled"}
    assert all(len(own.why) > 20 for own in stated.values())


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        (
            "liger_kernel.transformers.functional",
            "liger_fused_linear_cross_entropy",
            ("input", "weight", "target", "bias", "accum_dtype", "chunk_mem_const"),
        ),
        ("cut_cross_entropy", "linear_cross_entropy", ("e", "c", "targets", "filter_eps")),
        (
            "quack.linear_cross_entropy",
            "chunked_linear_cross_entropy",
            ("x", "weight", "target", "chunk_size"),
        ),
    ],
)
def test_the_packages_have_the_arguments_that_they_are_called_with(module, function, arguments):
    found = pytest.importorskip(module, exc_type=ImportError)
    assert set(arguments) <= set(inspect.signature(getattr(found, function)).parameters)


IN_THE_INTERPRETER = """
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.settings import ExactnessCheck
from zipfmax_reference.runs.case import Case

for dtype in ("float32", "bfloat16"):
    case = Case(203, 16, 24, (7,), dtype=dtype)
    check = ExactnessCheck(case)
    for setting in registry.implementation("full:liger").settings(case):
        print(dtype, setting.describe(203), check.fault(setting), sep=": ")
"""


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_ligers_own_kernel_is_exact_with_every_setting_in_tritons_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", IN_THE_INTERPRETER]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 15 + 18
    assert [line for line in lines if not line.endswith(": None")] == []


@needs_gpu
@pytest.mark.parametrize("n_classes", [10_007, 9_984])
@pytest.mark.parametrize("name", ["full:chunked", "full:liger", "full:cce-exact", "full:quack"])
def test_on_a_gpu_some_setting_of_each_is_exact(name, n_classes):
    case = Case(n_classes, 128, 2048, (1000,), dtype="bfloat16", device="cuda", logit_std=1.0)
    implementation = registry.implementation(name)
    if reason := implementation.unsupported_reason(case):
        pytest.skip(reason)
    check = ExactnessCheck(case)
    faults = {setting.describe(n_classes): check.fault(setting) for setting in implementation.settings(case)}
    assert None in faults.values(), faults
    print(faults)


@needs_gpu
@pytest.mark.parametrize("logit_std", [1.0, 4.0])
def test_on_a_gpu_the_filtered_cut_cross_entropy_lacks_gradients_of_absent_classes(logit_std):
    """Why it is labelled inexact: with flat logits nearly all of them fall below its threshold."""
    case = Case(9_984, 128, 2048, (1000,), dtype="bfloat16", device="cuda", logit_std=logit_std)
    implementation = registry.implementation("full:cce")
    if reason := implementation.unsupported_reason(case):
        pytest.skip(reason)
    (setting,) = implementation.settings(case)
    fault = ExactnessCheck(case).fault(setting)
    if logit_std == 1.0:
        assert fault is not None
        assert "absent classes" in fault
