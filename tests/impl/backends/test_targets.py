import pytest
import torch
import torch.nn.functional as F

from zipfmax.backends.targets import check_targets, reduce_loss


def test_without_ignore_index_every_row_counts():
    assert check_targets(torch.tensor([0, 4]), 5, None) is None


def test_ignored_rows_do_not_count_and_may_lie_outside():
    counted = check_targets(torch.tensor([0, -100, 4, -100]), 5, -100)
    assert counted.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("target", "span"),
    [([0, 5], "[0, 5]"), ([-1, 3], "[-1, 3]"), ([7], "[7, 7]"), ([-9, 9, -100], "[-9, 9]")],
)
def test_a_counted_target_outside_the_classes_raises_torchs_text(target, span):
    with pytest.raises(RuntimeError) as caught:
        check_targets(torch.tensor(target), 5, -100)
    assert str(caught.value) == f"Target values should be in [0, 4], but values in range {span} were found. "


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", [[0, 1, 2], [0, -1, 2], [-1, -1, -1], []])
def test_the_loss_is_nll_losss(reduction, target):
    target = torch.tensor(target, dtype=torch.long)
    log_prob = torch.randn(len(target), 3).log_softmax(1)
    counted = target != -1
    output = torch.where(counted, log_prob.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1), 0)
    expected = F.nll_loss(log_prob, target, ignore_index=-1, reduction=reduction)
    torch.testing.assert_close(reduce_loss(output, counted, reduction), expected, equal_nan=True)
    if counted.all():
        torch.testing.assert_close(reduce_loss(output, None, reduction), expected, equal_nan=True)
