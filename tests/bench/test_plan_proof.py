"""The proof of the plan: that the search misses nothing, and that its claims can fail."""

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from zipfmax.calibration import Calibration
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel, PartCost
from zipfmax.steps import Trial
from zipfmax_bench import plan_proof
from zipfmax_bench.plan_proof import ProofOutcome, Prover, claims, grid, read
from zipfmax_reference.runs import labels as label_distributions

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-8, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)
IDENTITY = {"hardware": "test", "threads": 1, "device": "cpu", "dtype": "float32", "task": "train"}
CALIBRATION = Calibration(MODEL, 0.2, 12, IDENTITY)
SHAPE = (20_000, 256, 512)
OUTCOME = ProofOutcome(
    labels="zipf:1.0",
    n_classes=20_000,
    in_features=256,
    batch_size=512,
    task="train",
    plan=(30, 500),
    predicted_s=1.0,
    plan_s=1.0,
    best=(31, 500),
    best_s=1.0,
    tried=100,
    literature=(1400, 5000),
    literature_s=2.0,
    full_predicted_s=3.0,
    full_s=3.0,
    machine={"hardware": "test"},
)


class Machine:
    """A StepTimer of a machine that follows the model; `luck` multiplies what it is named for, once."""

    def __init__(self, luck=None):
        self.luck, self.timed = luck or {}, []

    def medians(self, trials, enough, on_sample=None, samples_a_round=2):
        assert len(set(trials)) == len(trials)
        assert not enough(0)
        self.timed += trials
        return {trial: self._seconds(trial) for trial in trials}

    def _seconds(self, trial):
        if not isinstance(trial, Trial):
            return MODEL.full_s(trial.batch_size, trial.in_features, trial.n_classes)
        if trial.rows[1:] == (0,):  # the head alone
            return MODEL.head.seconds(trial.batch_size, trial.layout.shortlist_size, 256, slots=1)
        return MODEL.adaptive_s(trial.layout, trial.rows) * self.luck.pop(trial.layout.cutoffs, 1.0)


def step_s(cutoffs, labels="zipf:1.0", batch=0):
    n_classes, in_features, batch_size = SHAPE
    drawn = label_distributions.draw(
        label_distributions.distribution(labels, n_classes), batch_size, np.random.default_rng(batch)
    )
    layout = ClusterLayout(in_features, n_classes, cutoffs)
    return MODEL.adaptive_s(layout, np.bincount(layout.parts(drawn), minlength=1 + len(cutoffs)).tolist())


def test_the_grid_holds_every_choice_of_up_to_four_of_ten_cutoffs():
    partitions = list(grid(50_000))
    assert len(partitions) == len(set(partitions)) == 10 + 45 + 120 + 210
    assert {cutoff for cutoffs in partitions for cutoff in cutoffs} == {50_000 >> p for p in range(1, 11)}
    assert [cutoffs[0] for cutoffs in partitions] == sorted(cutoffs[0] for cutoffs in partitions)


@pytest.mark.parametrize("labels", ["zipf:0.6", "zipf:1.5", "uniform"])
def test_the_search_finds_the_best_of_the_grid_though_it_leaves_hopeless_heads_out(labels):
    machine = Machine()
    outcome = Prover(machine, CALIBRATION, "train").prove(labels, "name", SHAPE)
    best = min(grid(20_000), key=lambda cutoffs: step_s(cutoffs, labels))
    assert tuple(outcome.best) == best
    fresh = range(1, 1 + plan_proof.FINAL_BATCHES)
    assert outcome.best_s == pytest.approx(np.mean([step_s(best, labels, batch) for batch in fresh]))
    assert outcome.plan_s == pytest.approx(np.mean([step_s(outcome.plan, labels, batch) for batch in fresh]))
    assert outcome.tried < len(list(grid(20_000)))
    assert outcome.labels == "name"


def test_a_lucky_sample_does_not_make_a_partition_the_best():
    best = min(grid(20_000), key=step_s)
    lucky = max((one for one in grid(20_000) if one[0] == best[0]), key=step_s)
    machine = Machine({lucky: 0.9 * step_s(best) / step_s(lucky)})
    prover = Prover(machine, CALIBRATION, "train")
    outcome = prover.prove("zipf:1.0", "zipf:1.0", SHAPE)
    assert not machine.luck
    assert tuple(outcome.best) == best


def test_full_softmax_is_measured_once_a_shape():
    machine = Machine()
    prover = Prover(machine, CALIBRATION, "train")
    for labels in ("zipf:1.0", "uniform"):
        prover.prove(labels, labels, SHAPE)
    assert sum(not isinstance(trial, Trial) for trial in machine.timed) == 1


def holds(*outcomes):
    return [claim for claim, _ in claims(outcomes)]


def test_a_claim_fails_where_the_worst_or_the_median_does():
    assert holds(OUTCOME, OUTCOME, OUTCOME) == [True, True, True]
    slow = OUTCOME.model_copy(update={"best_s": 1 / 1.16})
    slowish = OUTCOME.model_copy(update={"best_s": 1 / 1.06})
    assert holds(OUTCOME, OUTCOME, slow) == [False, True, True]
    assert holds(OUTCOME, OUTCOME, slowish) == [True, True, True]
    assert holds(OUTCOME, slowish, slowish) == [False, True, True]
    behind = OUTCOME.model_copy(update={"literature_s": 0.96})
    level = OUTCOME.model_copy(update={"literature_s": 0.98})
    assert holds(OUTCOME, OUTCOME, behind) == [True, False, True]
    assert holds(OUTCOME, OUTCOME, level) == [True, True, True]
    assert holds(OUTCOME, level, level) == [True, False, True]


def test_full_softmax_counts_as_the_better_choice_where_it_was_faster():
    wins = OUTCOME.model_copy(update={"full_s": 0.5})
    assert holds(OUTCOME, wins) == [True, True, False]
    said = wins.model_copy(update={"full_predicted_s": 0.9})
    assert holds(OUTCOME, said) == [True, True, True]
    assert "the better one in 1." in claims([OUTCOME, said])[2][1]
    assert holds(OUTCOME.model_copy(update={"full_predicted_s": 0.9})) == [True, True, False]


def test_outcomes_are_read_back_without_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "proof.jsonl"
    assert read(path) == []
    line = OUTCOME.model_dump_json()
    path.write_text(line + "\n" + line[:40])
    assert read(path) == [OUTCOME]


@pytest.fixture
def command(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(plan_proof, "StepTimer", lambda *arguments: machine)
    monkeypatch.setattr(plan_proof, "cost_models", lambda **options: (CALIBRATION, None))
    monkeypatch.setattr(plan_proof, "LABELS", ("zipf:1.0",))
    monkeypatch.setattr(plan_proof, "SHAPES", (SHAPE,))
    app = typer.Typer()
    app.command()(plan_proof.main)
    return machine, lambda *arguments: CliRunner().invoke(app, ["--threads", "1", *map(str, arguments)])


def test_a_file_of_outcomes_is_gone_on_with_and_names_no_folder(command, tmp_path):
    machine, run = command
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{rank}" for rank in range(1, 300) for _ in range(300 // rank)))
    out = tmp_path / "proof.jsonl"
    assert run("--out", out).exit_code == 0
    timed = len(machine.timed)
    result = run("--out", out)
    assert len(machine.timed) == timed
    assert "holds Against the best of the grid" in result.stdout
    run("--out", out, "--counts", words)
    assert [one.labels for one in read(out)] == ["zipf:1.0", "counts:words.txt"]
    assert [one.n_classes for one in read(out)] == [20_000, 299]


def test_a_claim_that_fails_is_the_exit_status(command, tmp_path):
    out = tmp_path / "proof.jsonl"
    out.write_text(OUTCOME.model_copy(update={"literature_s": 0.5}).model_dump_json() + "\n")
    result = command[1]("--out", out)
    assert result.exit_code == 1
    assert "FAILS Against the literature's cutoffs" in result.stdout
