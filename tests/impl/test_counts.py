"""Counts of labels in every format: what is read, what is guessed, and what is refused."""

import gzip
import io
import json

import numpy as np
import pytest

from zipfmax.counts import FORMATS, read_counts

UNSORTED = [3, 0, 7, 1]


def saved(save, **arrays):
    stream = io.BytesIO()
    save(stream, *arrays.pop("only", ()), **arrays)
    return stream.getvalue()


FILES = {
    "token-count": ("dict.txt", b"the 3\nof 0\nand 7\n\n, 1\n"),
    "count-token": ("uniq.txt", b"      3 the\n      0 of\n      7 and\n      1 ,\n"),
    "csv": ("c.csv", b'word,count\nthe,3\n",",0\nand,7\nof,1\n'),
    "tsv": ("c.tsv", b'the\t3\n"\t0\nand\t7\nof\t1\n'),
    "npy": ("c.npy", saved(np.save, only=(np.array(UNSORTED),))),
    "npz": ("c.npz", saved(np.savez_compressed, counts=np.array(UNSORTED), names=np.array(["a"] * 4))),
    "json": ("c.json", json.dumps({"the": 3, "of": 0, "and": 7, ",": 1}).encode()),
}


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_a_list_of_counts_keeps_the_files_order_and_its_format_is_guessed(name, gzipped, tmp_path):
    file_name, content = FILES[name]
    path = tmp_path / (file_name + ".gz" * gzipped)
    path.write_bytes(gzip.compress(content) if gzipped else content)
    counts = read_counts(path)
    assert (counts.format, counts.guessed, counts.are_sorted) == (name, True, False)
    assert counts.values.tolist() == UNSORTED
    told = read_counts(path, name)
    assert not told.guessed
    assert told.values.tolist() == UNSORTED


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("c.csv", b",count\n2,7\n0,3\n3,1\n1,0\n"),
        ("c.tsv", b"2\t7\n0\t3\n3\t1\n1\t0\n"),
        ("dict.txt", b"2 7\n0 3\n3 1\n1 0\n"),
        ("c.json", b'{"2": 7, "0": 3, "3": 1, "1": 0}'),
    ],
)
def test_counts_beside_numbers_of_labels_go_where_these_say(file_name, content, tmp_path):
    path = tmp_path / file_name
    path.write_bytes(content)
    counts = read_counts(path)
    assert (counts.values.tolist(), counts.by_id, counts.are_sorted) == (UNSORTED, True, False)
    assert counts.labels == "the file's own numbers of labels"
    path.write_bytes(content.replace(b"2", b"4", 1))  # 0, 1, 3 and 4 are not the labels of four classes
    counts = read_counts(path)
    assert (counts.values.tolist(), counts.by_id) == ([7, 3, 1, 0], False)


def test_words_of_a_text_come_by_falling_frequency(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("b a\nb  c b a\n")
    counts = read_counts(path)
    assert (counts.format, counts.values.tolist(), counts.are_sorted) == ("text", [3, 2, 1], True)


def test_an_override_wins_over_the_guess(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_bytes(FILES["token-count"][1])
    assert read_counts(path, "text").values.tolist() == [1] * 8
    (tmp_path / "words").write_text("the of\nand 7\n")  # the second line does look like a count
    assert read_counts(tmp_path / "words").format == "text"


def test_the_one_array_of_an_archive_needs_no_name(tmp_path):
    np.savez(tmp_path / "c.npz", anything=UNSORTED)
    assert read_counts(tmp_path / "c.npz").values.tolist() == UNSORTED
    np.savez(tmp_path / "c.npz", a=UNSORTED, b=UNSORTED)
    with pytest.raises(ValueError, match="should hold one array, or one named 'counts', got a, b"):
        read_counts(tmp_path / "c.npz")


def test_a_texts_tokens_are_counted_by_a_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "b": 1, "a": 2, "never": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("a b a\nz a\n")
    counts = read_counts(tmp_path / "text", tokenizer=tmp_path / "tokenizer.json")
    assert (counts.format, counts.values.tolist(), counts.are_sorted) == ("tokenizer", [1, 1, 3, 0], False)
    assert counts.labels == "the tokenizer's ids"
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other.json is not a tokenizer.json"):
        read_counts(tmp_path / "text", tokenizer=tmp_path / "other.json")
    with pytest.raises(ValueError, match="is a tokenizer: give it as the tokenizer of a text"):
        read_counts(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b'{"a": 1, "b": "many"}', "should map each token to its count"),
        ("c.json", json.dumps({f"w{i}": i for i in range(12)}).encode(), "maps tokens to their ids"),
        ("c.json", json.dumps({f"w{i}": 12 - i for i in range(12)}).encode(), "maps tokens to their ids"),
        ("c.json", b"[" * 100_000, "is not JSON of counts: maximum recursion"),
        ("c.json", b'{"model": {"vocab": {}}}', "is a tokenizer"),
        ("c.json", b'{"a": 1', "delimiter"),
        ("c.csv", b"the,30\nof,many\n", r"line 2: expected a count in the last column, got 'many'"),
        ("c.npz", FILES["npz"][1][:-30], "cut short or damaged"),
        ("c.npy.gz", gzip.compress(FILES["npy"][1], mtime=0)[:-10], "cut short or damaged"),
        ("c.txt", b"\xff\xfe\xfa", r"c\.txt is not text in UTF-8, no text"),
        ("c.csv", FILES["npy"][1], r"c\.csv is a \.npy file, no csv"),
        ("c.tsv", b"PK\x03\x04\xff", r"c\.tsv is a zip archive, as \.npz and \.xlsx files are, no tsv"),
        ("c.npy", b"a,1\nb,2\n", r"c\.npy does not begin as a \.npy file of NumPy does"),
        ("c.npz", FILES["npy"][1], r"c\.npz does not begin as a \.npz file of NumPy does"),
        ("c.json", b"{", r"c\.json is not JSON of counts: "),
        ("c.csv", b"1e308\n1e308\n", "too large: their sum is beyond a float64"),
        ("c.txt", b"one one", "hold 1 class"),
        ("c.csv", b"3\n-1\n", "whole numbers of at least 0: 1 are not, the first is -1"),
        ("c.csv", b"3\n1.5\n", "first is 1.5"),
        ("c.csv", b"0\n0\n", "are all 0"),
    ],
)
def test_what_holds_no_counts_is_refused_and_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_counts(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, f"choose one of: {', '.join(FORMATS)}"),
        ({"format": "tokenizer"}, "go together"),
        ({"format": "csv", "tokenizer": "t.json"}, "go together"),
    ],
)
def test_a_format_that_cannot_be_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_counts(tmp_path / "c.txt", **options)
