"""What every adapter promises its caller, whichever framework is behind it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.full import FullRunner
from zipfmax_reference.contestants.implementation import gradients
from zipfmax_reference.contestants.torch_nn import ParameterMismatchError, tensor, users_layer
from zipfmax_reference.runs.case import TASKS, Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_batch, draw_inputs
from zipfmax_reference.truth import contract, definition

CASE = Case(60, 13, 37, (7, 20, 45), 1.5, True, "float64")
# torch.compile takes a while, and an inexact one computes something else: both have tests of their own.
NAMES = [
    name
    for name in registry.names()
    if name != "full:compiled" and gradients(registry.implementation(name)).exact
]


@pytest.fixture(params=NAMES)
def implementation(request):
    implementation = registry.implementation(request.param)
    reason = implementation.unsupported_reason(CASE)
    if reason is not None:
        pytest.skip(reason)
    return implementation


def compare(results, truth):
    assert results.keys() == truth.keys()
    for name, values in truth.items():
        assert results[name] == pytest.approx(values, rel=1e-9, abs=1e-14), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("div_value", [1.0, 1.5, 100.0])
def test_it_computes_the_definition(implementation, task, div_value):
    case = replace(CASE, task=task, div_value=div_value)
    if implementation.unsupported_reason(case):
        pytest.skip(implementation.unsupported_reason(case))
    inputs = draw_inputs(case, full=True)
    runner = implementation.build(case, inputs)
    runner.run()
    results, truth = runner.results(), definition.evaluate(case, inputs, implementation.family)
    if task == "topk":  # of classes that tie, as all of a tail without features do, any will do
        every = definition.evaluate(replace(case, task="log_prob"), inputs, implementation.family)
        gaps = contract.gaps(results.pop("topk.classes"), every["log_prob"])
        assert gaps.shape == truth.pop("topk.classes").shape
        assert gaps.max() < 1e-9
    compare(results, truth)


def test_a_second_run_leaves_no_gradient_of_the_first(implementation):
    inputs = draw_inputs(CASE, full=True)
    runner = implementation.build(CASE, inputs)
    runner.run()
    once = runner.results()
    runner.run()
    compare(runner.results(), once)


def test_a_batch_loaded_later_is_the_one_computed(implementation):
    inputs = draw_inputs(CASE, full=True)
    runner = implementation.build(CASE, inputs)
    runner.run()
    hidden, target = draw_batch(CASE, round=1)
    runner.load(hidden, target)
    runner.run()
    fresh = type(inputs)(hidden, target, inputs.weights)
    compare(runner.results(), definition.evaluate(CASE, fresh, implementation.family))


def test_runners_do_not_share_their_inputs(implementation):
    inputs = draw_inputs(CASE, full=True)
    kept = {name: weight.copy() for name, weight in inputs.weights.items()}
    runner = implementation.build(CASE, inputs)
    runner.run()
    before = {name: values.copy() for name, values in runner.results().items()}
    for weight in inputs.weights.values():
        weight += 1
    inputs.hidden[:] = 0
    runner.run()
    after = runner.results()
    for weight, old in zip(inputs.weights.values(), kept.values(), strict=True):
        weight[:] = old
    if implementation.name != "definition":  # which computes on the arrays themselves
        compare(after, before)


@pytest.mark.parametrize("padded", [False, True])
def test_a_compiled_full_softmax_agrees_or_says_what_it_needs(padded):
    implementation = registry.implementation("full:compiled")
    case = replace(CASE, dtype="float32")
    reason = implementation.unsupported_reason(case)
    if reason is not None:
        assert "torch.compile needs" in reason
        pytest.skip(reason)
    inputs = draw_inputs(case, full=True)
    setting = implementation.settings(case)[padded]
    assert bool(setting.padding.added(case.n_classes)) == padded
    runner = FullRunner(setting, torch.from_numpy(inputs.weights[FULL_WEIGHT]), case, inputs)
    runner.run()
    truth = definition.evaluate(case, inputs, "full")
    for name, values in runner.results().items():
        assert values == pytest.approx(truth[name], rel=1e-4, abs=1e-6), name


def test_what_a_contestant_with_only_a_loss_cannot_do_is_said():
    for task in ("log_prob", "predict"):
        assert "only the loss" in registry.implementation("full:chunked").unsupported_reason(
            replace(CASE, task=task)
        )


def test_paddle_has_the_gradients_that_its_parameters_lack():
    pytest.importorskip("paddle")
    runner = registry.implementation("paddle").build(CASE, draw_inputs(CASE))
    runner.run()
    gradients = {name for name in runner.results() if name.startswith("grad.tail")}
    assert len(gradients) == 6


def test_a_strided_hidden_state_is_strided_and_its_gaps_are_nan():
    case = replace(CASE, hidden="strided")
    values = draw_inputs(case).hidden
    made = tensor(values, case)
    assert not made.is_contiguous()
    assert np.array_equal(made.numpy(), values)
    gap = made.as_strided(made.shape, made.stride(), made.storage_offset() + 1)[:-1]
    assert torch.isnan(gap).all()


def test_an_expanded_hidden_state_shares_one_row():
    case = replace(CASE, hidden="expanded")
    made = tensor(draw_inputs(case).hidden, case)
    assert made.stride()[0] == 0
    assert made.shape == (37, 13)


@pytest.mark.parametrize("hidden", ["strided", "expanded"])
def test_gradients_of_awkward_hidden_states_are_those_of_the_definition(hidden):
    case = replace(CASE, hidden=hidden)
    inputs = draw_inputs(case)
    runner = registry.implementation("torch").build(case, inputs)
    runner.run()
    compare(runner.results(), definition.evaluate(case, inputs))


class Renamed(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.extra = torch.nn.Parameter(torch.zeros(1))


def test_a_parameter_that_torch_lacks_is_named():
    with pytest.raises(ParameterMismatchError, match=r"unlike torch\.nn, the parameter extra") as error:
        users_layer("mine", Renamed).build(CASE, draw_inputs(CASE))
    assert error.value.tensor == "extra"


def test_a_result_in_another_dtype_is_a_mismatch():
    class Single(torch.nn.AdaptiveLogSoftmaxWithLoss):
        def forward(self, hidden, target):
            output, loss = super().forward(hidden, target)
            return output, loss.float()

    runner = users_layer("mine", Single).build(CASE, draw_inputs(CASE))
    runner.run()
    assert runner.mismatches() == {"loss": "dtype torch.float32, expected torch.float64"}
