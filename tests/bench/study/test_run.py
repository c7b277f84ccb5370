import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from zipfmax.errors import UsageError
from zipfmax_bench.study import run as module
from zipfmax_bench.study.run import band_edges, run
from zipfmax_reference.records import RunDirectory, StudyLayer, StudyPoint, StudyRun, StudyText

LAYERS = ("full", "zipfmax", "torch", "zipfmax:cutoffs=plan", "zipfmax:div=4")


@pytest.fixture(scope="session")
def studied(options, tmp_path_factory):
    """A whole study, and its run directory."""
    out = tmp_path_factory.mktemp("studied") / "run"
    assert run(replace(options, layers=LAYERS, seeds=(0, 1)), out, quiet=True) == 0
    return RunDirectory(out)


@pytest.fixture
def no_profile(monkeypatch):
    """Memory of a step takes a profile of it, which takes half a second."""
    monkeypatch.setattr("zipfmax_bench.study.steps.peak_temporary_bytes", lambda *arguments: 0)


pytestmark = pytest.mark.usefixtures("no_profile")


def losses(directory):
    return {(p.layer, p.seed, p.step): (p.train_loss, p.valid_loss) for p in directory.latest(StudyPoint)}


def test_a_study_leaves_the_text_the_layers_the_curves_and_the_ends(studied, options):
    (text,) = studied.read(StudyText)
    assert text.n_classes > 300
    layers = {layer.layer: layer for layer in studied.latest(StudyLayer)}
    assert set(layers) == set(LAYERS)
    assert layers["zipfmax:div=4"].status == "skipped"
    assert layers["zipfmax:div=4"].reason == "the same layer as zipfmax"
    assert layers["full"].parameters == text.n_classes * options.features
    trained = [name for name in LAYERS if layers[name].status == "ok"]
    for name in trained:
        assert 0 < layers[name].output_share < 1 or layers[name].step_s < layers[name].bare_step_s
        assert len(layers[name].step_samples_s) == options.step_rounds
        assert layers[name].temporary_bytes > 0
    runs = studied.read(StudyRun)
    assert [(one.seed, one.layer) for one in runs] == [(seed, name) for seed in (0, 1) for name in trained]
    for one in runs:
        points = [p for p in studied.read(StudyPoint) if (p.layer, p.seed) == (one.layer, one.seed)]
        assert [point.step for point in points] == [4, 8, 12]
        assert points[-1].valid_loss == one.valid_loss
        assert points[-1].band_losses == [band.loss for band in one.bands]
        assert all(band.gradient_error is None or band.gradient_error < 1e-5 for band in one.bands)
        assert sum(band.tokens for band in one.bands) == 256
        mean = sum(band.tokens * band.loss for band in one.bands if band.tokens) / 256
        assert mean == pytest.approx(one.valid_loss)
        for cutoff in layers[one.layer].cutoffs:
            assert cutoff in {band.start for band in one.bands}


def test_torchs_layer_and_zipfmaxs_have_one_curve(studied):
    found = losses(studied)
    for seed in (0, 1):
        for step in (4, 8, 12):
            assert found["zipfmax", seed, step] == pytest.approx(found["torch", seed, step], rel=1e-5)
            assert found["zipfmax", seed, step] != pytest.approx(found["full", seed, step], rel=1e-5)


def test_a_study_goes_on_with_more_layers_and_seeds_and_trains_nothing_twice(options, tmp_path):
    out = tmp_path / "run"
    run(options, out, quiet=True)
    before = (out / "study_points.jsonl").read_text()
    run(replace(options, layers=("full", "torch"), seeds=(0, 3)), out, resume=True, quiet=True)
    after = (out / "study_points.jsonl").read_text()
    assert after.startswith(before)
    assert {(one.layer, one.seed) for one in RunDirectory(out).read(StudyRun)} == {
        *(("full", 0), ("zipfmax", 0), ("torch", 0), ("full", 3), ("torch", 3))
    }


def test_a_limit_leaves_a_checkpoint_that_the_next_call_ends(options, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(options, whole, quiet=True)
    calls = 0
    left = iter([False] * 7 + [True] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(module.StudyRunner, "_is_over", property(lambda self: next(left)))
        run(options, parts, limit_s=1, quiet=True)
    assert list((parts / "checkpoints").iterdir())
    assert not RunDirectory(parts).read(StudyRun)
    while len(RunDirectory(parts).read(StudyRun)) < 2:
        run(options, parts, resume=True, quiet=True)
        calls += 1
        assert calls < 3
    assert losses(RunDirectory(parts)) == losses(RunDirectory(whole))
    assert not list((parts / "checkpoints").iterdir())


def test_a_killed_study_goes_on_and_loses_nothing_finished(options, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = replace(options, layers=("zipfmax", "full"), steps=24)
    run(options, whole, quiet=True)
    code = (
        "import json, sys; from pathlib import Path; from zipfmax_bench.study import run as m, training\n"
        "from zipfmax_bench.study.options import StudyOptions; from zipfmax_bench.study.corpus import CorpusOptions\n"
        "given = json.loads(sys.argv[1]); given['text'] = CorpusOptions(**given['text'])\n"
        "given['layers'], given['seeds'] = tuple(given['layers']), tuple(given['seeds'])\n"
        "m.CHECKPOINT_EVERY_S = 0\n"
        "m.run(StudyOptions(**given), Path(sys.argv[2]))\n"
    )
    given = json.dumps({**options.comparable(), "layers": options.layers, "seeds": options.seeds})
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, given, str(killed)], stdout=subprocess.DEVNULL, env={**os.environ}
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/full-0.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (killed / "study_runs.jsonl").read_text()
    assert '"zipfmax"' in kept
    run(options, killed, resume=True, quiet=True)
    assert (killed / "study_runs.jsonl").read_text().startswith(kept)
    assert losses(RunDirectory(killed)) == losses(RunDirectory(whole))


def test_a_layer_that_fails_is_recorded_and_the_others_are_trained(options, tmp_path, monkeypatch):
    def broken(self, hidden, target):
        raise RuntimeError("no such thing\nas a traceback")

    monkeypatch.setattr("zipfmax_bench.study.outputs.FullOutput.forward", broken)
    run(options, tmp_path / "run", quiet=True)
    runs = {one.layer: one for one in RunDirectory(tmp_path / "run").read(StudyRun)}
    assert runs["full"].reason == "RuntimeError: no such thing as a traceback"
    assert runs["zipfmax"].status == "ok"


def test_a_layer_without_a_plan_is_skipped_and_a_known_plan_is_not_made_again(options, tmp_path, monkeypatch):
    options = replace(options, layers=("zipfmax:cutoffs=plan", "zipfmax"), steps=1)
    run(options, tmp_path / "planned", quiet=True)

    def none(*arguments, **more):
        raise ValueError("no cost model")

    monkeypatch.setattr("zipfmax_bench.study.outputs.plan_cutoffs", none)
    run(replace(options, seeds=(0, 1)), tmp_path / "planned", resume=True, quiet=True)
    assert len(RunDirectory(tmp_path / "planned").read(StudyRun)) == 4
    run(options, tmp_path / "not", quiet=True)
    first, second = RunDirectory(tmp_path / "not").read(StudyLayer)[:2]
    assert (first.status, first.reason) == ("skipped", "layer zipfmax:cutoffs=plan: no cost model")
    assert (second.layer, second.status) == ("zipfmax", "ok")


def test_a_layer_that_cannot_run_here_is_skipped_with_the_reason(options, tmp_path):
    run(replace(options, layers=("full:liger", "sampled", "zipfmax")), tmp_path / "run", quiet=True)
    layers = {layer.layer: layer for layer in RunDirectory(tmp_path / "run").latest(StudyLayer)}
    assert "liger-kernel" in layers["full:liger"].reason
    assert "draws 8,192" in layers["sampled"].reason
    assert layers["zipfmax"].status == "ok"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 8}, "another features"),
        ({"layers": ("zipmax",)}, "did you mean zipfmax"),
        ({"layers": ("zipfmax:width=3",)}, "its options are"),
        ({"layers": ("torch:least=3",)}, "has no least="),
        ({"layers": ("zipfmax:cutoffs=9/3",)}, "increasing order"),
        ({"device": "cuda"}, "torch sees 0 GPUs"),
    ],
)
def test_another_study_in_the_same_folder_and_unknown_layers_are_refused(options, tmp_path, change, message):
    if change.get("device") and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    run(replace(options, layers=("zipfmax",), steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match=message):
        run(replace(options, steps=1, **change), tmp_path / "run", resume=True, quiet=True)


def test_a_changed_text_is_refused(options, tmp_path, monkeypatch):
    options = replace(options, layers=("zipfmax",), steps=1)
    run(options, tmp_path / "run", quiet=True)
    read = module.read_corpus

    def other(given):
        corpus = read(given)
        return replace(corpus, card=corpus.card.model_copy(update={"checksum": "other"}))

    monkeypatch.setattr(module, "read_corpus", other)
    with pytest.raises(UsageError, match="is not the text"):
        run(options, tmp_path / "run", resume=True, quiet=True)


def test_bands_are_cut_at_powers_of_ten_and_at_every_cutoff(options):
    from zipfmax.clusters import ClusterLayout

    layouts = [ClusterLayout(8, 5000, (70, 1000)), ClusterLayout(8, 5000, (30,))]
    assert band_edges(5000, layouts) == [0, 10, 30, 70, 100, 1000, 5000]
