"""The end-to-end check: training with zipfmax's layer is training with torch.nn's, step by step."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_bench.example.model import LanguageModel, ModelOptions
from zipfmax_bench.example.text import made_text
from zipfmax_bench.example.train import TrainOptions, evaluate, load, train

SMALL = TrainOptions(steps=4, batch=4, window=8, model=ModelOptions(features=16))


def losses(options, layer, backend="auto"):
    text = load(options)
    return train(replace(options, model=replace(options.model, layer=layer, backend=backend)), text).losses


def wikitext2():
    folder = os.environ.get("ZIPFMAX_WIKITEXT2")
    if folder is None:
        pytest.skip("set ZIPFMAX_WIKITEXT2 to a folder with WikiText-2's valid.txt to train on it")
    return Path(folder) / "valid.txt"


@pytest.mark.parametrize("text", ["made", "wikitext-2"])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_hundred_steps_give_torchs_losses_within_rounding(text, backend):
    options = TrainOptions(
        text=wikitext2() if text == "wikitext-2" else None,
        steps=100,
        batch=8,
        window=16,
        model=ModelOptions(features=32),
    )
    found, expected = (torch.tensor(losses(options, *layer)) for layer in (("zipfmax", backend), ("torch",)))
    assert len(found) == 100
    assert expected[-10:].mean() < expected[0] - 0.5  # it does learn
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=0)


def test_a_seed_gives_the_same_losses_and_another_seed_others():
    runs = [losses(replace(SMALL, seed=seed), "zipfmax") for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("layer", ["zipfmax", "torch", "full"])
@pytest.mark.parametrize("embedding", ["plain", "adaptive"])
def test_every_layer_learns_with_every_embedding(layer, embedding):
    options = replace(
        SMALL, steps=30, learning_rate=0.01, model=replace(SMALL.model, embedding=embedding, layer=layer)
    )
    result = train(options, load(options))
    assert result.losses[-1] < result.losses[0] - 0.5
    assert result.valid_perplexity < result.n_words
    assert (result.opened != {}) == (layer == "zipfmax")


def test_a_tied_model_learns():
    options = replace(SMALL, steps=30, learning_rate=0.01, model=replace(SMALL.model, embedding="tied"))
    result = train(options, load(options))
    assert result.losses[-1] < result.losses[0] - 0.5


@torch.no_grad()
def test_perplexity_is_of_every_word_after_the_first():
    text = made_text(n_words=50, n_tokens=7_000)
    torch.manual_seed(0)
    model = LanguageModel(len(text.vocabulary), SMALL.model)
    perplexity, opened = evaluate(model, SMALL, text.valid)
    hidden, _ = model.hidden(text.valid[None, :-1], None)
    expected = model.output(hidden[0], text.valid[1:]).loss.exp()
    torch.testing.assert_close(torch.tensor(perplexity), expected, rtol=1e-5, atol=0)
    assert set(opened) == {1, 10}
    assert all(0 <= share <= 1 for share in opened.values())


def test_each_step_reads_the_next_window_of_every_stream(monkeypatch):
    text = made_text(n_words=50, n_tokens=1_000)
    seen = []
    original = LanguageModel.forward

    def spy(self, ids, targets, state):
        seen.append((ids, targets, state is None))
        return original(self, ids, targets, state)

    monkeypatch.setattr(LanguageModel, "forward", spy)
    train(replace(SMALL, steps=None, epochs=2), text)
    per_epoch = (900 - 1) // 4 // 8
    assert len(seen) == 2 * per_epoch
    assert [start for _, _, start in seen] == ([True] + [False] * (per_epoch - 1)) * 2
    streams = torch.cat([ids for ids, _, _ in seen[:per_epoch]], dim=1)
    length = (900 - 1) // 4
    for i, stream in enumerate(streams):
        assert torch.equal(stream, text.train[i * length : i * length + per_epoch * 8])
    following = torch.cat([targets for _, targets, _ in seen[:per_epoch]], dim=1)
    assert torch.equal(following[:, :-1], streams[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "--batch should be a positive number, got 0"),
        ({"steps": 0}, "--steps should be a positive number, got 0"),
        ({"epochs": -1}, "--epochs should be a positive number, got -1"),
        ({"window": 100_000}, "words are too few for a step of 4 x 100000"),
        ({"seed": -1}, "--seed should be from 0 to"),
        ({"learning_rate": float("nan")}, "--learning-rate should be a positive number, got nan"),
        ({"model": ModelOptions(features=16, backend="triton")}, "--backend triton cannot serve this layer"),
        ({"model": ModelOptions(layer="full", backend="tiled")}, "does not go with --layer full"),
    ],
)
def test_options_that_make_no_step_are_refused(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    options = replace(SMALL, **change)
    with pytest.raises(UsageError, match=message):
        train(options, load(options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="device cuda: torch sees 0 GPUs here"):
        load(replace(SMALL, device="cuda"))


def test_the_command_reports_perplexity_and_time(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("a b c d e f g h i j " * 200, encoding="utf-8")
    arguments = [
        "train",
        "--text",
        str(path),
        "--steps",
        "3",
        "--batch",
        "2",
        "--features",
        "16",
        "--cutoffs",
        "3,5",
    ]
    done = CliRunner().invoke(application(arguments[0]), arguments[1:])
    assert done.exit_code == 0, done.output
    assert (
        "story.txt: 1,801 words to train on, 200 to validate, 11 different; output layer: zipfmax"
        in done.output
    )
    for line in ("validation perplexity", "median time of a step", "topk(10) opened"):
        assert line in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cutoffs", "3;5"], "--cutoffs should be numbers such as 2000,10000, got '3;5'"),
        (["--layer", "x"], "unknown layer"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message):
    done = CliRunner().invoke(application("train"), arguments)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
