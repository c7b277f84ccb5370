import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from zipfmax.errors import UsageError
from zipfmax_bench.study import corpus as module
from zipfmax_bench.study.corpus import CorpusOptions, read_corpus, source
from zipfmax_bench.study.tokens import CODE, END_OF_FILE, WORDS, encode
from zipfmax_bench.study.vocabulary import falling

CODE_TEXT = "def f_1(x):\n    return x + 2.5e3  # naïve\n" * 40
WORD_TEXT = "the cat sat\non the mat\n" * 60


def folder(path, texts):
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def many(path, n=60):
    return folder(path, {f"pkg{i % 7}/m{i}.py": f"name_{i} = {i}\n" + CODE_TEXT for i in range(n)})


def read(path, tmp_path, **options):
    given = {"min_count": 1, **options}
    return read_corpus(CorpusOptions(f"tokens:{path}", **given), tmp_path / "cache", processes=1)


def words_of(corpus, cache):
    """The training part as words again."""
    (file,) = cache.glob("*/vocabulary.txt")
    vocabulary = file.read_bytes().split(b"\n")
    return [vocabulary[i] for i in corpus.train]


def test_code_is_identifiers_numbers_and_punctuation():
    assert CODE.findall("f_1(x2) += 0x1F.2 # née".encode()) == [
        *(b"f_1", b"(", b"x2", b")", b"+", b"=", b"0x1F.2", b"#", b"n", b"\xc3\xa9", b"e")
    ]
    assert WORDS.findall(b"a  b,\n c\n") == [b"a", b"b,", b"\n", b"c", b"\n"]


def test_ids_are_the_ranks_of_a_plain_count(tmp_path):
    made = many(tmp_path / "text")
    found = source(CorpusOptions(f"tokens:{made}"))
    counter = Counter()
    expected = []
    for file, is_valid in zip(found.files, found.is_valid, strict=True):
        if not is_valid:
            tokens = [*CODE.findall(file.read_bytes()), END_OF_FILE]
            counter.update(tokens)
            expected += tokens
    corpus = read(made, tmp_path)
    assert sorted(corpus.counts.tolist()) == sorted([*counter.values(), 0])
    assert (np.diff(corpus.counts) <= 0).all()
    shown = [b"<eof>" if token == END_OF_FILE else token for token in expected]
    assert words_of(corpus, tmp_path / "cache") == shown
    np.testing.assert_array_equal(np.bincount(corpus.train, minlength=len(corpus.counts)), corpus.counts)


def test_files_are_split_by_their_relative_path_wherever_the_root_lies(tmp_path):
    parts = [source(CorpusOptions(f"tokens:{many(tmp_path / name)}")) for name in ("here", "there/deep")]
    valid = [
        sorted(
            file.relative_to(part.root).as_posix()
            for file, is_valid in zip(part.files, part.is_valid, strict=True)
            if is_valid
        )
        for part in parts
    ]
    assert valid[0] == valid[1]
    assert 0 < len(valid[0]) < 15
    for name in valid[0]:
        assert int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % module.ONE_IN == 0


def test_of_few_files_the_last_tenth_of_each_is_for_validation(tmp_path):
    made = folder(tmp_path / "text", {"a.txt": "a b c d\n" * 200, "b.txt": "e f g h\n" * 200})
    corpus = read(made, tmp_path)
    assert (corpus.card.n_train, corpus.card.n_valid) == (2 * (1001 - 100), 2 * 100)
    assert corpus.card.kind == "words"
    assert "last tenth" in corpus.card.split


def test_rare_words_and_those_beyond_the_vocabulary_become_one_word(tmp_path):
    made = many(tmp_path / "text")
    full, often = read(made, tmp_path / "1"), read(made, tmp_path / "2", min_count=5)
    few = read(made, tmp_path / "3", classes=10)
    assert full.card.n_classes > often.card.n_classes > 10 == few.card.n_classes
    assert full.card.coverage == 1
    assert few.card.coverage < often.card.coverage < 1
    assert few.counts.sum() == full.counts.sum() == few.card.n_train
    assert often.card.min_count >= 5


def test_the_unknown_word_stands_at_the_rank_of_its_count():
    found = falling([b"%d" % i for i in range(20)], np.array([100, 50, 20, *range(17, 0, -1)]), min_count=5)
    assert found.counts.tolist() == [100, 50, 20, *range(17, 10, -1), 10, 10, *range(9, 4, -1)]
    assert found.words[found.unknown] == b"<unk>"
    assert (found.rank_of[-4:] == found.unknown).all()
    assert found.counts[found.rank_of[:-4]].tolist() == [100, 50, 20, *range(17, 4, -1)]
    assert [found.words[rank] for rank in found.rank_of[:-4]] == [b"%d" % i for i in range(16)]
    assert found.least_count == 5


def test_several_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 8_000)
    options = CorpusOptions(f"tokens:{many(tmp_path / 'text')}", min_count=1)
    cards = [read_corpus(options, tmp_path / str(n), processes=n).card for n in (1, 2)]
    assert cards[0].checksum == cards[1].checksum
    assert cards[1].processes == 2


def test_a_text_is_read_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    made = many(tmp_path / "text")
    first = read(made, tmp_path)
    monkeypatch.setattr(module, "encode", None)
    assert read(made, tmp_path).card == first.card
    monkeypatch.setattr(module, "encode", encode)
    (made / "pkg0" / "m0.py").write_text("changed = True\n")
    assert read(made, tmp_path).card.checksum != first.card.checksum


def test_the_card_is_that_of_the_text(tmp_path):
    corpus = read(many(tmp_path / "text"), tmp_path)
    card = json.loads(corpus.card.model_dump_json())
    assert card["n_train"] == len(corpus.train)
    assert card["n_valid"] == len(corpus.valid)
    assert card["n_files"] == 60
    assert card["kind"] == "code"


def test_a_law_has_its_exponent_as_slope():
    counts = (1e12 / np.arange(1, 60_001) ** 1.3).astype(np.int64)
    assert module.zipf_slope(counts) == pytest.approx(1.3, abs=1e-3)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ("wordfreq:en", {}, "should be tokens:site-packages"),
        ("tokens:NOWHERE", {}, "no text at"),
        ("tokens:SHORT", {}, "too few"),
        ("tokens:TEXT", {"classes": 10_000}, "fewer than the 10,000 classes"),
    ],
)
def test_a_text_that_is_none_is_refused(tmp_path, monkeypatch, tokens, options, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "SHORT", {"a.txt": "one two\n"})
    folder(tmp_path / "TEXT", {"a.txt": WORD_TEXT * 10})
    with pytest.raises(UsageError, match=message):
        read_corpus(CorpusOptions(tokens, min_count=1, **options), tmp_path / "cache", processes=1)
