"""The steps that a calibration times."""

import pytest
import torch

from zipfmax import backends, timers
from zipfmax.clusters import ClusterLayout
from zipfmax.steps import FullTrial, StepTimer, Trial

TRIAL = Trial(ClusterLayout(12, 50, (7, 20)), rows=(5, 0, 4))
FULL = FullTrial(batch_size=9, in_features=12, n_classes=50)


def timer(task):
    return StepTimer(torch.device("cpu"), torch.float32, task)


@pytest.mark.parametrize("task", ["train", "forward"])
def test_a_step_hands_the_backend_the_rows_of_each_part_that_the_trial_names(task, monkeypatch):
    seen = []

    class Spy:
        def nll(self, layout, weights, hidden, target):
            assert hidden.shape == (9, 12)
            assert weights.head.shape == (9, 12)
            assert [tuple(tail.output.shape) for tail in weights.tails] == [(13, 3), (30, 0)]
            assert hidden.requires_grad == (task == "train")
            seen.append(torch.bucketize(target, torch.tensor([7, 20]), right=True).bincount(minlength=3))
            return target, (hidden.sum() + weights.head.sum()) * torch.tensor(1.0)

    monkeypatch.setattr(backends, "select", lambda name, hidden, weights, target: Spy())
    timer(task).step(TRIAL)()
    assert seen[0].tolist() == [5, 0, 4]


def test_a_training_step_backpropagates_and_a_forward_step_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.autograd, "backward", lambda loss: calls.append(loss.item()))
    for trial in (TRIAL, FULL):
        timer("forward").step(trial)()
    assert calls == []
    for trial in (TRIAL, FULL):
        timer("train").step(trial)()
    assert len(calls) == 2
    assert all(loss > 0 for loss in calls)


def clocked(monkeypatch, *seconds):
    """A step timer whose runs take the given seconds, one after the other."""
    clock = iter(seconds)
    own = timer("forward")
    monkeypatch.setattr(own, "_timer", lambda run: timers.Seconds(*[next(clock)] * 2))
    return own


def test_the_median_is_taken_over_all_rounds(monkeypatch):
    cold = 100.0
    own = clocked(monkeypatch, cold, 5.0, 1.0, cold, 2.0, 9.0, cold, 3.0, 4.0)
    taken = []
    medians = own.medians([TRIAL], lambda rounds: rounds == 3, on_sample=lambda: taken.append(1))
    assert medians == {TRIAL: 3.5}
    assert len(taken) == 3


def test_a_short_step_is_warmed_by_three_untimed_runs_and_a_sample_of_it_is_a_median_of_five(monkeypatch):
    warm = [0.009, 0.008, 0.001]
    samples = [[0.001, 0.003, 0.9, 0.002, 0.003], [0.005] * 5]
    own = clocked(monkeypatch, *warm, *samples[0], *samples[1])
    assert own.medians([TRIAL], lambda rounds: rounds == 1) == {TRIAL: 0.004}


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="unknown task 'predict'; choose one of: train, forward"):
        timer("predict")
