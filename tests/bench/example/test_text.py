import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_bench.example.text import END_OF_LINE, UNKNOWN, from_words, made_text, read_text

LINES = ["the cat sat on the mat", "the dog sat on the cat and the mat was red"] * 10


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_a_words_id_is_its_rank_and_the_text_reads_back(file):
    text = read_text(file)
    words = [word for line in LINES for word in (*line.split(), END_OF_LINE)]
    assert text.vocabulary[0] == "the"
    assert text.counts.tolist() == sorted((words.count(word) for word in set(words)), reverse=True)
    assert [text.vocabulary[i] for i in torch.cat([text.train, text.valid])] == words
    assert len(text.valid) == len(words) // 10


def test_a_smaller_vocabulary_turns_rare_words_into_unknown(file):
    full, cut = read_text(file), read_text(file, max_words=8)
    assert len(cut.vocabulary) == 8
    assert UNKNOWN in cut.vocabulary
    kept = set(cut.vocabulary) - {UNKNOWN}
    assert kept == set(full.vocabulary[:7])
    assert cut.counts.sum() == full.counts.sum()


def test_the_made_text_is_its_seeds_and_falls_like_zipfs_law():
    text, again, other = made_text(seed=3), made_text(seed=3), made_text(seed=4)
    assert torch.equal(text.train, again.train)
    assert text.vocabulary == again.vocabulary
    assert text.vocabulary != other.vocabulary
    share = text.counts.double() / text.counts.sum()
    assert (share[:-1] >= share[1:]).all()
    assert 0.5 < share[:200].sum() < 0.9
    assert torch.equal(torch.bincount(torch.cat([text.train, text.valid])), text.counts)


def test_the_made_text_can_be_learnt_from_its_last_word():
    text = made_text()
    frequent = text.train[:-1] == 0
    following = torch.bincount(text.train[1:][frequent], minlength=len(text.vocabulary)).double()
    share = following / following.sum()
    assert share.topk(4).values.sum() > 0.5 > text.counts[:4].sum() / text.counts.sum()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b c", "at least 100 words, 8 of them different, but holds 4 and 4"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_without_a_text_is_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_text(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*nothing.txt: No such file or directory"):
        read_text(tmp_path / "nothing.txt")


def test_too_few_different_words_are_refused():
    with pytest.raises(UsageError, match="but holds 200 and 2"):
        from_words(["a", "b"] * 100)
