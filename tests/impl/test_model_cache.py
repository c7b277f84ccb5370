"""The cache of cost models: whatever is wrong with it costs one warning and a fresh model."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from zipfmax import model_cache

IDENTITY = {"hardware": "this one", "threads": 2}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Asks the cache for a value; how often it was made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def ask(identity=IDENTITY, **options):
        def make():
            made.append(identity)
            return len(made)

        return model_cache.cached(
            identity,
            lambda record: record["value"] + 0,
            make,
            lambda value: {"identity": identity, "value": value},
            **options,
        )

    ask.made = made
    return ask


def only_file():
    (path,) = model_cache.folder().iterdir()
    return path


def test_a_value_is_made_once_and_again_where_asked(cache):
    assert [cache(), cache(), cache(refresh=True), cache()] == [1, 1, 2, 2]
    assert cache({"hardware": "another"}) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"ident',
        b"\xff\xfe",
        b"[1, 2]",
        b"[" * 100_000,
        b"{}",
        json.dumps({"identity": IDENTITY}).encode(),
        json.dumps({"identity": IDENTITY, "value": None}).encode(),
        json.dumps({"identity": {"hardware": "foreign"}, "value": 9}).encode(),
    ],
)
def test_a_corrupt_or_foreign_file_is_one_warning_and_a_fresh_value(cache, content):
    cache()
    only_file().write_bytes(content)
    with pytest.warns(UserWarning, match="is left aside") as caught:
        assert cache() == 2
    assert len(caught) == 1
    assert cache() == 2  # and the file is mended


@pytest.mark.parametrize("where", ["the folder is a file", "the file is a folder"])
def test_a_place_that_cannot_be_written_is_one_warning(cache, where, monkeypatch, tmp_path):
    if where == "the folder is a file":  # as root, who runs these tests, may write where no one else may
        (tmp_path / "cache").write_text("")
    else:
        cache()
        path = only_file()
        path.unlink()
        path.mkdir()
        (path / "content").write_text("")
    before = len(cache.made)
    with pytest.warns(UserWarning, match="cost model") as caught:
        assert cache() == before + 1
    assert len(caught) == 1


def test_no_home_is_one_warning(cache, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning, match="no folder for cost models") as caught:
        assert cache() == 1
    assert len(caught) == 1


@pytest.mark.parametrize("named", ["", "relative/folder", None])
def test_a_cache_home_that_is_no_absolute_path_counts_as_unset(cache, named, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    if named is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", named)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert only_file().parent == tmp_path / "home" / ".cache" / "zipfmax"


@pytest.mark.parametrize(
    ("platform", "folder"), [("darwin", "Library/Caches/zipfmax"), ("win32", "AppData/Local/zipfmax/Cache")]
)
def test_other_systems_have_their_own_place(platform, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert model_cache.folder() == tmp_path / folder
