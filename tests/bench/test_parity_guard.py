"""A cell stands or falls with the parity of its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zipfmax_bench import messages
from zipfmax_bench.parity_guard import DEFINITION_FLOPS, ParityGuard, checked_case
from zipfmax_bench.prediction import product_flops
from zipfmax_bench.worker import WorkerState
from zipfmax_reference.records import Parity, RunDirectory
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch
from zipfmax_reference.runs.invocation import invocation

CASE = Case(60, 8, 16, (10, 30), labels="uniform", task="train")


def line(against: str, tensor: str, status: str, **more) -> dict:
    error = {"error": 3.0, "budget": 1.0} if status == "fail" else {"error": 0.5, "budget": 1.0}
    return {"case": checked_case(CASE, "adaptive").id, "impl": "torch", "against": against, "tensor": tensor,
            "status": status, "reason": None, **error, **more}  # fmt: skip


def fault(tmp_path, *lines):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    directory.write(*(Parity(**line) for line in lines))
    with ParityGuard(directory, 1, tmp_path / "log") as guard:
        return guard.fault("torch", CASE)


def test_a_tensor_out_of_its_budget_is_wrong(tmp_path):
    status, reason = fault(
        tmp_path,
        line("definition", "loss", "fail"),
        line("definition", "grad.input", "fail"),
        line("definition", "output", "pass"),
    )
    assert status == "parity_failed"
    assert reason.startswith("loss is off by 3, 1 is allowed (and 1 more tensors), on train-V60")


def test_tensors_within_their_budgets_are_right(tmp_path):
    assert fault(tmp_path, *(line("definition", name, "pass") for name in ("loss", "output"))) is None


def test_a_skipped_comparison_decides_nothing(tmp_path):
    found = fault(tmp_path, line("definition", "loss", "fail"), line("definition", "*", "skipped"))
    assert found is not None


def test_what_the_run_directory_lacks_is_checked_and_recorded(tmp_path, in_process):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    with ParityGuard(directory, 1, tmp_path / "log") as guard:
        assert guard.fault("zipfmax:eager", CASE) is None
        assert guard.fault("full", CASE) is None
    judged = {(record["impl"], record["against"]) for record in directory.rows(Parity)}
    assert judged == {("zipfmax:eager", "definition"), ("full", "definition")}
    assert {record["status"] for record in directory.rows(Parity)} == {"pass"}


@pytest.mark.parametrize("family", ["adaptive", "full"])
def test_one_check_stands_for_all_labels_of_a_shape_and_is_affordable(family):
    large = Case(267_735, 256, 512, (20_000, 60_000))
    checks = {
        checked_case(Case(**{**large.to_fields(), "labels": labels}), family)
        for labels in ("zipf:0", "zipf:1.3")
    }
    (check,) = checks
    assert product_flops(family, check) <= DEFINITION_FLOPS
    assert checked_case(CASE, family).batch_size == CASE.batch_size


@pytest.mark.parametrize("name", ["full:cce", "sampled"])
def test_what_says_that_it_is_inexact_is_not_judged(tmp_path, name):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    with ParityGuard(directory, 1, tmp_path / "log") as guard:
        assert guard.fault(name, CASE) is None
    assert directory.rows(Parity) == []


PEERS_CASE = Case(50_000, 64, 512, (2_000, 10_000), dtype="bfloat16")


@pytest.fixture(scope="module")
def sampled() -> WorkerState:
    """A sound peer that ran once: its backward in bfloat16 takes seconds."""
    session = WorkerState("full")
    for request in (
        messages.PrepareCase(PEERS_CASE, fastest=False),
        messages.Load(0, warm=1),
        messages.TakeSample(),
    ):
        session.answer(request)
    return session


class Planted:
    """A full-softmax peer that drops the gradients of classes absent from the batch, as a gradient filter does."""

    def __init__(self, session: WorkerState, case: Case, wrong: bool) -> None:
        self._session, self._case, self._wrong = session, case, wrong

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        kept = self._session.answer(request)
        file = Path(request.folder) / "grad.full.weight.npy"
        gradient = np.load(file)
        if self._wrong:
            absent = np.setdiff1d(np.arange(self._case.n_classes), draw_batch(self._case, 0)[1])
            gradient[absent] *= 0.9
            np.save(file, gradient)
        return kept


@pytest.mark.parametrize("wrong", [False, True])
def test_a_peer_of_50000_classes_that_is_wrong_in_absent_ones_is_not_shown_and_the_reason_says_where(
    tmp_path, wrong, sampled, in_process
):
    case = PEERS_CASE
    assert product_flops("full", case) > DEFINITION_FLOPS
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    with ParityGuard(directory, 1, tmp_path / "log") as guard:
        found = guard.timed_fault("full", case, 0, Planted(sampled, case, wrong))
    if not wrong:
        assert found is None
        return
    assert found is not None
    status, reason = found
    assert status == "parity_failed"
    assert "absent" in reason
