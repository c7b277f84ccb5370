import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipfmax.errors import UsageError
from zipfmax_reference.runs.labels import Stream, distribution, draw, generator, vocabulary_size


def test_zipf_is_the_power_law():
    p = distribution("zipf:1.0", 4)
    assert p == pytest.approx(np.array([12, 6, 4, 3]) / 25)


def test_zipf_zero_is_uniform():
    assert np.array_equal(distribution("zipf:0", 7), distribution("uniform", 7))


@given(st.floats(0, 3), st.integers(1, 5000))
def test_probabilities_sum_to_one_and_fall(exponent, n_classes):
    p = distribution(f"zipf:{exponent}", n_classes)
    assert p.sum() == pytest.approx(1)
    assert (np.diff(p) <= 0).all()


def test_word_frequencies_are_those_of_the_most_frequent_words():
    import wordfreq

    p = distribution("wordfreq:en", 1000)
    top = [wordfreq.word_frequency(word, "en", "large") for word in wordfreq.top_n_list("en", 5, "large")]
    assert p[:5] / p[0] == pytest.approx(np.array(top) / top[0], rel=2e-3)  # told to 3 digits
    assert (np.diff(p) <= 0).all()


def test_a_word_list_has_a_size_and_refuses_more_classes_than_that():
    size = vocabulary_size("wordfreq:en")
    assert size is not None
    assert size > 200_000
    assert len(distribution("wordfreq:en", size)) == size
    with pytest.raises(UsageError, match=f"{size} classes"):
        distribution("wordfreq:en", size + 1)


@pytest.mark.parametrize("labels", ["zipf:1.0", "uniform", "only:0"])
def test_a_formula_has_no_size_of_its_own(labels):
    assert vocabulary_size(labels) is None


@pytest.mark.parametrize(
    "labels",
    [
        "zipf",
        "zipf:",
        "zipf:-1",
        "zipf:nan",
        "zipf:inf",
        "zipf:x",
        "uniform:2",
        "wordfreq:xx",
        "letters:en",
        "",
    ],
)
def test_what_is_no_distribution_is_refused_in_one_line(labels):
    with pytest.raises(UsageError) as error:
        distribution(labels, 10)
    assert "\n" not in str(error.value)


def test_counts_of_an_array_are_sorted_and_cut(tmp_path):
    np.save(tmp_path / "c.npy", np.array([1, 5, 0, 2]))
    assert vocabulary_size(f"counts:{tmp_path}/c.npy") == 4
    assert distribution(f"counts:{tmp_path}/c.npy", 2) == pytest.approx([5 / 7, 2 / 7])


def test_counts_of_a_table_stand_in_its_last_column(tmp_path):
    (tmp_path / "c.csv").write_text("word,count\nthe,30\nof,10\n\na,60\n")
    assert distribution(f"counts:{tmp_path}/c.csv", 3) == pytest.approx([0.6, 0.3, 0.1])


@pytest.mark.parametrize("counts", [[3, -1], [[1, 2]], ["a", "b"]])
def test_counts_that_are_none_are_refused(tmp_path, counts):
    np.save(tmp_path / "c.npy", np.array(counts))
    with pytest.raises(UsageError, match=r"counts in .*c.npy cannot be read: counts in"):
        distribution(f"counts:{tmp_path}/c.npy", 2)


def test_a_format_before_the_file_overrides_the_guess(tmp_path):
    (tmp_path / "c@d.txt").write_text("a 1\nb 3\n")
    assert distribution(f"counts:{tmp_path}/c@d.txt", 2) == pytest.approx([0.75, 0.25])
    assert vocabulary_size(f"counts:text@{tmp_path}/c@d.txt") == 4


def test_a_counts_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        distribution(f"counts:{tmp_path}/none.npy", 2)


def test_a_counts_file_that_changed_is_read_again(tmp_path):
    file = tmp_path / "c.txt"
    file.write_text("a b b")
    distribution(f"counts:{file}", 2)
    file.write_text("a b b b b")
    assert distribution(f"counts:{file}", 2) == pytest.approx([0.8, 0.2])


def test_only_spreads_its_mass_over_the_labels_it_names():
    assert np.array_equal(distribution("only:1,3-4", 6), np.array([0, 1, 0, 1, 1, 0]) / 3)


@pytest.mark.parametrize("labels", ["only:", "only:6", "only:4-2", "only:1,,2", "only:-1"])
def test_only_refuses_labels_that_are_none(labels):
    with pytest.raises(UsageError):
        distribution(labels, 6)


def test_the_same_seed_draws_the_same_bits():
    p = distribution("zipf:1.0", 10_000)
    first, again = (draw(p, 1000, generator(7, Stream.LABELS, 3)) for _ in range(2))
    assert np.array_equal(first, again)
    # Pinned: a run of last year must be repeatable today.
    assert draw(p, 8, generator(0, Stream.LABELS, 0)).tolist() == PINNED


def test_streams_and_rounds_are_independent():
    draws = [
        generator(seed, stream, round).random(4).tolist()
        for seed in (0, 1)
        for stream in Stream
        for round in (0, 1)
    ]
    assert len({tuple(d) for d in draws}) == len(draws)


def test_labels_follow_the_distribution():
    p = distribution("zipf:1.0", 50)
    n = 200_000
    counts = np.bincount(draw(p, n, generator(0, Stream.LABELS)), minlength=50)
    deviation = (counts - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(deviation).max() < 5
    assert 0.5 < np.mean(deviation**2) < 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30).filter(any), st.integers(0, 2**32))
def test_a_class_without_mass_is_never_drawn(weights, seed):
    p = np.array(weights) / sum(weights)
    labels = draw(p, 200, np.random.default_rng(seed))
    assert (p[labels] > 0).all()


PINNED = [7, 0, 5769, 2, 3579, 223, 14, 137]
