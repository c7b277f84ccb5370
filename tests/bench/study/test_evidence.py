import json

import pytest

from zipfmax import quality
from zipfmax.errors import UsageError
from zipfmax.quality import Evidence
from zipfmax_bench.study import evidence as module
from zipfmax_bench.study.evidence import bundle, evidence, least_projection
from zipfmax_reference.records import (
    RunDirectory,
    StudyBand,
    StudyLayer,
    StudyPoint,
    StudyRun,
    StudyText,
)
from zipfmax_reference.runs.invocation import invocation

TEXT = {
    "tokens": "tokens:x",
    "kind": "code",
    "split": "by file",
    "checksum": "0",
    "n_files": 1,
    "n_valid_files": 1,
    "n_train": 1,
    "n_valid": 1,
    "n_distinct": 1,
    "n_classes": 1000,
    "min_count": 1,
    "coverage": 1.0,
    "valid_coverage": 1.0,
    "zipf_slope": 1.0,
    "read_s": 0.0,
}
SHAPE = {"n_classes": 1000, "in_features": 64, "rows": 8, "trunk": "lstm"}
LOSSES = {
    "full": (5.0, [], []),
    "zipfmax:div=1": (5.01, [100, 300], [64, 64]),
    "zipfmax:least=16": (5.02, [100, 300], [16, 16]),
    "zipfmax:least=4": (5.05, [100, 300], [16, 4]),
    "zipfmax:cutoffs=plan": (5.2, [50], [16]),
}


@pytest.fixture
def study(tmp_path):
    directory = RunDirectory.start(tmp_path / "run", invocation({}, "zipfmax study --out x"))
    directory.write(StudyText(**TEXT))
    for layer, (loss, cutoffs, sizes) in LOSSES.items():
        directory.write(StudyLayer(layer=layer, cutoffs=cutoffs, projection_sizes=sizes, **SHAPE))
        for seed, noise in enumerate((0.0, 0.001, -0.001)):
            directory.write(
                StudyPoint(layer=layer, seed=seed, step=10, seconds=1.0, valid_loss=loss + seed + noise),
                StudyRun(
                    layer=layer,
                    seed=seed,
                    n_steps=10,
                    valid_loss=loss,
                    bands=[
                        StudyBand(start=0, stop=100, tokens=75, loss=1.0),
                        StudyBand(start=100, stop=1000, tokens=25, loss=1.0),
                    ],
                ),
            )
    return directory


def test_layouts_are_compared_with_the_widest_of_their_cutoffs(study):
    found = Evidence.from_record(evidence(study))
    assert [one.layer for one in found.layouts] == ["zipfmax:least=16", "zipfmax:least=4"]
    first, second = found.layouts
    assert first.change == pytest.approx(0.01005, abs=1e-5)
    assert second.change == pytest.approx(0.04081, abs=1e-5)
    assert second.low <= second.change <= second.high
    assert first.shortlist_share == 0.75
    assert found.command == "zipfmax study --out x"
    assert found.steps == 10


def test_the_least_projection_is_the_least_from_which_on_nothing_is_costly(study):
    layouts = evidence(study)["layouts"]
    assert least_projection(layouts, 0.02) == 16
    assert least_projection(layouts, 0.05) == 4
    assert least_projection(layouts, 0.001) == 16  # the widest studied, where all are costly
    assert bundle([evidence(study)], 0.02)["min_projection"] == 16


def test_the_command_writes_what_the_planner_reads(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "FILE", tmp_path / "quality.json")
    module.main([str(study.path), "--write"])
    assert json.loads(capsys.readouterr().out)["min_projection"] == 16
    quality.bundled.cache_clear()
    assert quality.bundled().min_projection == 16
    quality.bundled.cache_clear()


def test_a_study_without_a_widest_layout_is_refused(tmp_path, capsys):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    with pytest.raises(UsageError, match="no layout beside the widest"):
        evidence(directory)
    with pytest.raises(SystemExit) as caught:
        module.main([str(directory.path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("evidence: ")
