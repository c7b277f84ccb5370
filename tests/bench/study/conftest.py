"""A small text and a small study, which takes seconds."""

import numpy as np
import pytest

from zipfmax_bench.study.corpus import CorpusOptions
from zipfmax_bench.study.options import StudyOptions


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with words by Zipf's law, each line beginning again with what followed its first word before."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 401)
    words = rng.choice(400, 12_000, p=weights / weights.sum())
    follows = np.where(rng.random(12_000) < 0.5, np.roll(words, 1) * 7 % 400, words)
    (folder / "a.txt").write_text(" ".join(f"w{word}" for word in follows))
    return folder


@pytest.fixture(scope="session")
def options(text, tmp_path_factory):
    """A tiny LSTM, trained for 12 steps; texts are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield _options(text)


def _options(text):
    return StudyOptions(
        text=CorpusOptions(f"tokens:{text}", min_count=1),
        trunk="lstm",
        depth=1,
        features=16,
        sequences=4,
        length=16,
        layers=("full", "zipfmax"),
        seeds=(0,),
        steps=12,
        seconds=None,
        learning_rate=1e-2,
        warm_up=4,
        evaluate_every=4,
        valid_tokens=256,
        step_rounds=2,
    )
