import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipfmax_reference.runs.case import DTYPES, TASKS, Case


def test_the_id_names_every_field():
    case = Case(50000, 256, 2048, (2000, 10000), 4.0)
    assert case.id == "train-V50000-d256-N2048-c2000,10000-div4-nobias-float32-cpu-zipf:1.0-seed0"


def test_an_awkward_hidden_state_is_named_at_the_end_of_the_id():
    assert Case(10, 4, 3, (5,), hidden="nan-rows").id.endswith("-seed0-nan-rows")


def test_a_logit_spread_is_named_at_the_end_of_the_id_and_a_case_without_one_keeps_its_id():
    plain, spread = Case(10, 4, 3, (5,)), Case(10, 4, 3, (5,), logit_std=4.0)
    assert spread.id == plain.id + "-logit4"
    assert Case(10, 4, 3, (5,), hidden="strided", logit_std=0.5).id.endswith("-seed0-strided-logit0.5")


@given(st.data())
def test_a_case_survives_its_record(data):
    n_classes = data.draw(st.integers(2, 10_000))
    cutoffs = data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=6))
    case = Case(
        n_classes,
        data.draw(st.integers(1, 99)),
        data.draw(st.integers(0, 99)),
        tuple(sorted(cutoffs)),
        data.draw(st.sampled_from([1.0, 1.5, 4.0])),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(DTYPES)),
        task=data.draw(st.sampled_from(TASKS)),
        hidden=data.draw(st.sampled_from(["normal", "scale:10", "strided"])),
        logit_std=data.draw(st.sampled_from([None, 0.25, 1.0, 4.0])),
    )
    again = Case.from_fields({**case.to_fields(), "impl": "torch"})
    assert again == case
    assert again.id == case.id


@pytest.mark.parametrize("field", ["hidden", "logit_std"])
def test_a_record_from_before_a_field_was_added_takes_its_default(field):
    fields = Case(10, 4, 3, (5,)).to_fields()
    del fields[field]
    assert Case.from_fields(fields) == Case(10, 4, 3, (5,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cutoffs": (5, 3)},
        {"cutoffs": (10,)},
        {"task": "sing"},
        {"dtype": "int8"},
        {"batch_size": -1},
        {"hidden": "scale:X"},
        {"hidden": "scale:0"},
        {"hidden": "odd"},
        {"logit_std": 0.0},
        {"logit_std": -1.0},
        {"logit_std": float("nan")},
        {"logit_std": float("inf")},
    ],
)
def test_what_is_no_case_is_refused(wrong):
    with pytest.raises(ValueError, match=r"cutoffs|task|dtype|batch_size|hidden|logit_std"):
        Case(**{"n_classes": 10, "in_features": 4, "batch_size": 3, "cutoffs": (5,), **wrong})
