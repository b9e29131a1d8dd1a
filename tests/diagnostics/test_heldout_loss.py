import pytest

from gradfiltering.diagnostics.heldout_loss import HeldoutLosses, diagnose_heldout_loss


def diagnose(base_loss, early_loss, late_loss):
    losses = {1: early_loss, 3: late_loss}
    return diagnose_heldout_loss(HeldoutLosses(base_loss, losses, 40, "extra_member"), 1, 3)


def test_losses_stand_by_epoch_with_the_rows_they_are_of():
    found = diagnose(2.0, 1.8, 1.5)
    assert found.warnings == []
    assert found.values == {
        "heldout_loss": {"base_model": 2.0, "1": 1.8, "3": 1.5},
        "heldout_rows": {"count": 40, "origin": "extra_member"},
    }


@pytest.mark.parametrize(
    ("losses", "message", "remedy"),
    [
        ((2.0, 1.0, 2.0), "did not fall (2.000 without adapters, 2.000 at epoch 3", "learning rate"),
        ((2.0, 1.0, 2.5), "did not fall (2.000 without adapters, 2.500 at epoch 3", "lower the rate"),
        ((2.0, 1.0, float("nan")), "did not fall", "learning rate"),
        ((2.0, 1.5, 1.6), "rose again, from 1.500 at epoch 1 to 1.600 at epoch 3 (on 40 rows)", "earlier epochs"),
    ],
)
def test_a_loss_that_does_not_fall_is_named_with_a_remedy(losses, message, remedy):
    (warning,) = diagnose(*losses).warnings
    assert message in warning and remedy in warning


@pytest.mark.parametrize("losses", [(2.0, 1.5, 1.5), (2.0, 1.5, 1.501), (2.0, 2.5, 1.99)])
def test_a_loss_that_falls_is_no_reason_to_warn(losses):
    assert diagnose(*losses).warnings == []


def test_nothing_held_out_is_no_loss():
    found = diagnose_heldout_loss(None, 1, 2)
    assert found.values == {"heldout_loss": {"base_model": None}} and found.warnings == []
