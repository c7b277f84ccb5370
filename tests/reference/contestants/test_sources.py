"""The digest of a user's class changes with its file and with what it imports of its own, and with nothing else."""

import pytest

from zipfmax_reference.contestants.sources import digests

FILES = {
    "layer.py": "import torch, one\nfrom package.inner import two",
    "one.py": "",
    "package/__init__.py": "",
    "package/inner.py": "from . import three\nfrom .four import x",
    "package/three.py": "syntax error",
    "package/four.py": "import json",
    "json.py": "",
    "other.py": "",
}


@pytest.mark.parametrize("name", ["layer.py:Layer", "layer:Layer", "package.inner:two"])
def test_a_digest_follows_every_file_that_is_imported(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    before = digests([name, "torch"], ["zipf:1.0"])
    assert before.keys() == {name}
    followed = set()
    for file, text in FILES.items():
        (tmp_path / file).write_text(f"{text}\n# edited")
        if digests([name]) != before:
            followed.add(file)
        (tmp_path / file).write_text(text)
    assert digests([name]) == before
    unused = {"other.py"} if name.startswith("layer") else {"other.py", "layer.py", "one.py"}
    assert followed == FILES.keys() - unused


def test_a_class_of_an_installed_package_has_one_too():
    assert len(digests(["torch.nn:AdaptiveLogSoftmaxWithLoss"]).popitem()[1]) == 64


def test_saved_results_and_files_of_counts_have_a_digest_of_what_they_hold(tmp_path):
    for file in ("a.npz", "counts.txt", "tokenizer.json"):
        (tmp_path / file).write_text("1")
    names = [
        f"saved:{tmp_path}",
        f"counts:{tmp_path}/counts.txt",
        f"counts:{tmp_path}/tokenizer.json@{tmp_path}/counts.txt",
    ]
    before = digests(names[:1], names[1:])
    changed = []
    for file in ("a.npz", "counts.txt", "tokenizer.json"):
        (tmp_path / file).write_text("2")
        after = digests(names[:1], names[1:])
        changed.append([name for name in names if after[name] != before[name]])
        (tmp_path / file).write_text("1")
    assert changed == [names[:1], names[1:], names[2:]]
