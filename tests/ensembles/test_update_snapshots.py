"""Snapshots given as numbers of updates: the member is the one that trains through, wherever it was stored."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair, Timeline
from gradfiltering.errors import UserError
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.small_ensembles import ROWS, assert_identical_logs, ensemble_of_kind, small_ensemble

STEPS = -(-ROWS // 4)  # of an epoch: 6
KINDS = [
    pytest.param(small_ensemble(), id="lora"),
    pytest.param(ensemble_of_kind(BootstrapEnsemble), id="bootstrap", marks=pytest.mark.slow),
    pytest.param(
        ensemble_of_kind(DropoutEnsemble, dropout=0.3, train_dropout=0.3), id="dropout", marks=pytest.mark.slow
    ),
]


def updates(early, late):
    return early, late, "update"


def trajectory(folder):
    return pq.read_table(folder / "trajectory.parquet").to_pylist()


def test_batches_of_updates_run_through_the_epochs():
    buckets = LengthBuckets.of(np.arange(ROWS) % 7 + 1, 4, 2, seed=3)
    whole = [batch.tolist() for epoch in (1, 2, 3) for batch in buckets.epoch(1, epoch)]
    for first, last in ((0, 6), (0, 3), (3, 7), (6, 12), (5, 18), (11, 12)):
        assert [batch.tolist() for batch in buckets.updates(1, first, last)] == whole[first:last]


def test_a_timeline_counts_epochs_or_updates():
    epochs, in_updates = SnapshotPair(1, 3).timeline(6), SnapshotPair(0, 20, "update").timeline(6)
    assert epochs.list_moments(1, 3) == [2, 3] and epochs.count_updates(3) == 18
    assert in_updates == Timeline(6, "update", (20,))
    assert in_updates.list_moments(0, 20) == [20] and in_updates.count_updates(20) == 20
    assert epochs.list_stretches(1, 3) == [(2, 6, 12), (3, 12, 18)]
    assert SnapshotPair(4, 20, "update").timeline(6).list_stretches(0, 20) == [(4, 0, 4), (20, 4, 20)]
    assert [in_updates.find_epoch(done) for done in (0, 5, 6, 19)] == [1, 1, 2, 4]


def test_whole_epochs_of_updates_are_the_epochs(train, tmp_path):
    epochs, counted = train("epochs"), train("updates", pair=updates(STEPS, 2 * STEPS))
    for epoch in (1, 2):
        for column in ("grad_norm", "loss"):
            by_epoch, by_update = getattr(epochs.epoch(epoch), column), getattr(counted.epoch(epoch * STEPS), column)
            np.testing.assert_array_equal(by_epoch, by_update)
    first, second = trajectory(tmp_path / "epochs"), trajectory(tmp_path / "updates")
    assert first == second and len(first) == 3 * (2 * STEPS // 2 + 1)


@pytest.mark.parametrize("settings", KINDS)
def test_later_updates_continue_bit_for_bit(train, tmp_path, settings):
    cache, steps = tmp_path / "shared", Steps()
    train("first", settings, updates(3, 7), cache=cache)
    later = train("later", settings, updates(7, 2 * STEPS + 3), cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS + 3 - 7
    fresh = train("fresh", settings, updates(5, 2 * STEPS + 3))  # stored elsewhere on the way
    assert_identical_logs(later, fresh, [2 * STEPS + 3])
    assert trajectory(tmp_path / "later") == trajectory(tmp_path / "fresh")


def test_another_early_snapshot_trains_no_further_than_to_it(train, tmp_path):
    cache, steps = tmp_path / "shared", Steps()
    first = train("first", pair=updates(3, 8), cache=cache)
    second = train("second", pair=updates(5, 8), cache=cache, trainer=counting(steps))
    assert steps.taken == 5 and second.epochs == [5, 8]
    assert_identical_logs(first, second, [8])
    assert train.report.costs.tokens > 0


@pytest.mark.parametrize(
    "killed_at", [pytest.param(2, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)]
)
def test_a_killed_stretch_of_updates_is_taken_up(train, tmp_path, killed_at):
    often, cache, steps = small_ensemble(checkpoint_minutes=1e-9), tmp_path / "shared", Steps()
    with pytest.raises(KilledHere):
        train("killed", often, updates(4, 9), cache=cache, trainer=counting(Steps(until=killed_at)))
    resumed = train("resumed", often, updates(4, 9), cache=cache, trainer=counting(steps))
    assert steps.taken == 9 - killed_at
    assert_identical_logs(resumed, train("fresh", often, updates(4, 9)), [4, 9])
    assert trajectory(tmp_path / "resumed") == trajectory(tmp_path / "fresh")


def test_a_stretch_that_was_begun_elsewhere_is_taken_up_or_left(train, tmp_path):
    often, cache, steps = small_ensemble(checkpoint_minutes=1e-9), tmp_path / "shared", Steps()
    with pytest.raises(KilledHere):
        train("killed", often, updates(2, 9), cache=cache, trainer=counting(Steps(until=5)))
    resumed = train("resumed", often, updates(6, 9), cache=cache, trainer=counting(steps))
    assert steps.taken in (7, 9)  # 6 updates to the early snapshot from the start or from 2, then 3
    assert_identical_logs(resumed, train("fresh", often, updates(6, 9)), [6, 9])


def test_folders_of_the_contract_name_the_update(train, tmp_path):
    log = train("run", pair=updates(0, 7))
    folder = tmp_path / "run"
    assert log.unit == "update" and log.epochs == [0, 7]
    for name in ("gradient_log", "gradient_log_heldout", "adapters"):
        found = sorted(path.name for path in (folder / name / "member=02").iterdir())
        assert found == ["update=00000", "update=00007"]
    whole = pq.read_table(folder / "gradient_log").to_pandas()
    assert len(whole) == 3 * 2 * ROWS and set(whole["update"]) == {0, 7}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (small_ensemble(collect="online"), "whole epoch"),
        (ensemble_of_kind(SnapshotEnsemble), "snapshots along an epoch"),
    ],
)
def test_ensembles_that_are_measured_by_the_epoch_refuse_updates(settings, message):
    settings.check_unit("epoch")
    with pytest.raises(UserError, match=message):
        settings.check_unit("update")


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [(7, (1, 2, "epoch")), (20, (1, 2, "epoch")), (21, (20, 40, "update")), (6501, (20, 40, "update"))],
)
def test_a_long_epoch_is_counted_in_updates(steps_per_epoch, expected):
    pair = SnapshotPair(1, 2, longest_epoch=20).settle(steps_per_epoch)
    assert (pair.early, pair.late, pair.unit) == expected
    assert pair.longest_epoch is None


def test_a_limit_of_an_epoch_keeps_the_numbers_that_were_given():
    pair = SnapshotPair(0, 3, longest_epoch=20).settle(57)
    assert (pair.early, pair.late, pair.unit) == (0, 60, "update")
    with pytest.raises(UserError, match="a limit of an epoch is for snapshots in epochs"):
        SnapshotPair(20, 40, "update", longest_epoch=20)
