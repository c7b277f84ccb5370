import pytest
import torch

from zipfmax.converters.checkpoint import Checkpoint


def test_an_entry_is_taken_once_and_what_is_left_is_named():
    entries = Checkpoint(
        "state_dict", {"m.a": torch.zeros(2, 3), "m.b": torch.ones(4), "other": torch.zeros(1)}, "m."
    )
    assert "a" in entries
    assert entries.take("a", 2, None).shape == (2, 3)
    assert "a" not in entries
    with pytest.raises(ValueError, match=r"state_dict: 'm.b' of shape \(4,\) has no place in the layer"):
        entries.finish()
    entries.drop("b", "c")
    entries.finish()


@pytest.mark.parametrize("shape", [(3, 3), (2,), (2, 3, 1)])
def test_another_shape_is_named(shape):
    entries = Checkpoint("state_dict", {"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"state_dict: 'a' should have shape \(.*\), but has \(2, 3\)"):
        entries.take("a", *shape)


def test_nothing_at_all_is_said():
    with pytest.raises(ValueError, match="state_dict is empty"):
        Checkpoint("state_dict", {})
