"""One trained member, measured in several passes with dropout."""

import numpy as np
import pytest

from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.errors import UserError
from tests.support.small_ensembles import assert_same_member, ensemble_of_kind, small_ensemble


def passes(m=3, dropout=0.2, train_dropout=0.0, **changes):
    return ensemble_of_kind(
        DropoutEnsemble, small_ensemble(m=m, **changes), dropout=dropout, train_dropout=train_dropout
    )


def relative_variance(log, epoch=2):
    norms = log.epoch(epoch).grad_norm.astype(np.float64)
    return float((norms.var(0) / norms.mean(0) ** 2).mean())


def test_one_member_is_trained_whatever_the_number_of_passes(train, tmp_path):
    log = train("run", passes(m=4))
    assert train.report.costs.trained == 2 and train.report.members == 4  # two epochs of one member
    assert log.members == [0, 1, 2, 3] and log.epoch(2).grad_norm.shape[0] == 4
    assert not np.allclose(log.epoch(2).grad_norm[0], log.epoch(2).grad_norm[1], rtol=1e-4)
    adapters = sorted((tmp_path / "run" / "adapters").glob("member=*/epoch=02/adapter_model.safetensors"))
    assert len(adapters) == 4 and len({file.read_bytes() for file in adapters}) == 1


def test_member_is_the_lora_ensembles_and_passes_are_reused(train, tmp_path):
    cache = tmp_path / "shared"
    train("lora", small_ensemble(m=2), cache=cache)
    two = train("two", passes(m=2), cache=cache)
    assert train.report.costs.trained == 0
    assert train.report.costs.logged == 2 * 2 * 2, "two passes over two sets of rows at two epochs"
    four = train("four", passes(m=4), cache=cache)
    assert train.report.costs.logged == 2 * 2 * 2, "the first two passes were made again"
    fresh = train("fresh", passes(m=4), tokens=64)
    for number in range(4):
        assert_same_member(four, fresh, number)
    np.testing.assert_array_equal(four.epoch(2).grad_norm[:2], two.epoch(2).grad_norm)
    train("other", passes(m=2, dropout=0.1), cache=cache)
    assert train.report.costs.trained == 0 and train.report.costs.logged == 2 * 2 * 2, (
        "a pass depends on the probability"
    )
    train("lora again", small_ensemble(m=1), cache=cache)
    assert train.report.reused


def test_variance_grows_with_dropout_from_zero(train, tmp_path):
    cache = tmp_path / "shared"
    lora = train("lora", small_ensemble(m=1), cache=cache)
    found = {p: train(f"p {p}", passes(m=8, dropout=p), cache=cache) for p in (0.0, 0.01, 0.1, 0.4)}
    for number in range(8):
        for epoch in (1, 2):
            np.testing.assert_array_equal(found[0.0].epoch(epoch).grad_norm[number], lora.epoch(epoch).grad_norm[0])
    variances = [relative_variance(log) for log in found.values()]
    assert variances[0] == 0 < variances[1] < variances[2] < variances[3]
    assert 4 < variances[2] / variances[1] < 30  # p/(1 - p) grows 11-fold


def test_passes_differ_before_training_and_between_epochs(train):
    log = train("run", passes(), (0, 1))
    assert relative_variance(log, 0) > 1e-6
    still = train("still", passes(lr=1e-30, weight_decay=0.0), (0, 1))
    assert not np.allclose(still.epoch(0).grad_norm, still.epoch(1).grad_norm, rtol=1e-5), "one mask for all epochs"


def test_training_dropout_does_not_depend_on_micro_batches(train, tmp_path):
    cache = tmp_path / "shared"
    train("plain", passes(), cache=cache)
    whole = train("whole", passes(train_dropout=0.2), cache=cache)
    assert train.report.costs.trained == 2, "a member trained without dropout was taken for one trained with it"
    cut = train("cut", passes(train_dropout=0.2), tokens=64)
    for number in range(3):
        assert_same_member(whole, cut, number)
    plain = train("again", passes(), cache=cache)
    assert train.report.reused
    assert not np.allclose(whole.epoch(2).loss, plain.epoch(2).loss, rtol=1e-3)


@pytest.mark.parametrize("change", [{"dropout": 1.0}, {"dropout": -0.1}, {"train_dropout": 1.5}])
def test_other_than_a_probability_is_refused(change):
    with pytest.raises(UserError, match=rf"{next(iter(change))} must be a number in \[0, 1\)"):
        passes(**change)


def test_online_is_refused():
    with pytest.raises(UserError, match="cannot collect online"):
        passes(collect="online")
