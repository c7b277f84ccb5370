import sys

import pytest
import typer

from zipfmax.errors import UsageError
from zipfmax_bench.study import __main__ as command
from zipfmax_bench.study import break_even, outputs
from zipfmax_bench.study.command import study
from zipfmax_bench.study.options import PRESETS, StudyOptions, preset
from zipfmax_reference.records import RunDirectory, StudyMap


def test_a_preset_keeps_what_is_not_given():
    found = preset("quick", features=64, seconds=None, layers=())
    assert (found.features, found.seconds, found.layers) == (
        64,
        PRESETS["quick"].seconds,
        PRESETS["quick"].layers,
    )
    assert found.text == PRESETS["quick"].text


def test_steps_take_the_place_of_seconds_and_another_text_that_of_the_presets_vocabulary():
    found = preset("gpu", steps=10, tokens="tokens:books")
    assert (found.steps, found.seconds) == (10, None)
    assert (found.text.classes, found.text.min_count) == (None, 5)
    assert preset("gpu", tokens="tokens:books", classes=99).text.classes == 99


def test_the_gpu_preset_has_a_large_vocabulary_that_no_full_softmax_has_to_pad():
    classes = PRESETS["gpu"].text.classes
    assert classes >= 194_000
    assert classes % 384 == 0
    assert PRESETS["quick"].text.classes % 384 == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_layer_of_a_preset_has_a_name_that_is_known(name):
    for layer in PRESETS[name].layers:
        outputs.parsed(layer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trunk": "lst"}, "did you mean lstm"),
        ({"inputs": "tie"}, "did you mean tied"),
        ({"steps": 1}, "not both"),
        ({"seconds": None}, "not both"),
        ({"seconds": -1.0}, "--seconds should be a positive number, got -1.0"),
        ({"depth": 0}, "positive"),
        ({"learning_rate": 0.0}, "positive"),
        ({"seeds": (-1,)}, "from 0 to"),
        ({"layers": ()}, "needs a layer"),
    ],
)
def test_what_no_study_has_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        StudyOptions(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "quik"], "unknown preset 'quik'; did you mean quick"),
        (["--seeds", "a"], "--seeds should be numbers"),
        (["--layers", "zipmax"], "unknown layer 'zipmax'"),
        (["--tokens", "wordfreq:en"], "should be tokens:site-packages"),
        (["--no-such"], "No such option"),
    ],
)
def test_wrong_use_of_the_command_is_one_line_and_exit_status_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "run"), *arguments])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_map_trains_nothing_and_refuses_what_says_how_to_train(tmp_path):
    with pytest.raises(UsageError, match="leave out --compile, --layers, --steps"):
        study(tmp_path / "map", only_map=True, layers="full", steps=3, compile_trunk=True)
    assert not (tmp_path / "map").exists()


def test_the_map_is_measured_into_the_folder_that_is_named(tmp_path, monkeypatch):
    small = break_even.MapOptions((1_152,), (16,), (1,), sequences=2, length=4, rounds=1, device="cpu")
    monkeypatch.setattr(break_even, "grid", lambda device: small)
    with pytest.raises(typer.Exit) as ended:
        study(tmp_path / "map", only_map=True)
    assert ended.value.exit_code == 0
    assert [cell.n_classes for cell in RunDirectory(tmp_path / "map").read(StudyMap)] == [1_152]
