"""One trained member, looked at several times along an epoch."""

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.errors import UserError
from tests.ensembles.test_reuse import STEPS
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.small_ensembles import ROWS, assert_identical_logs, ensemble_of_kind, small_ensemble


def snapshots(m=3, **changes):
    return ensemble_of_kind(SnapshotEnsemble, small_ensemble(m=m, **changes))


class Watch(L.Callback):
    """Copies the adapters after every step."""

    def __init__(self):
        self.after, self.taken = {}, 0

    def on_train_batch_end(self, trainer, module, *_):
        self.taken += 1
        self.after[self.taken] = {name: value.clone() for name, value in module.adapters.items()}


def test_steps_are_evenly_spaced_and_end_with_the_epoch():
    assert [snapshots(3).describe_measurement(m, 1, 6).step for m in range(3)] == [2, 4, None]
    assert [snapshots(4).describe_measurement(m, 2, 6).step for m in range(4)] == [2, 3, 5, None]
    assert [snapshots(6).describe_measurement(m, 2, 6).step for m in range(6)] == [1, 2, 3, 4, 5, None]
    assert {snapshots(4).describe_measurement(m, 0, 6) for m in range(4)} == {
        snapshots(1).describe_measurement(0, 0, 6)
    }
    assert small_ensemble().steps_per_epoch(ROWS) == STEPS


def test_a_snapshot_is_the_adapter_after_that_step(train, tmp_path):
    watch = Watch()
    log = train("run", snapshots(3), trainer=counting(watch))
    assert train.report.costs.trained == 2 and train.report.members == 3 and log.members == [0, 1, 2]
    assert watch.taken == 2 * STEPS
    for member, step in enumerate((2, 4, STEPS)):
        for epoch in (1, 2):
            folder = tmp_path / "run" / "adapters" / f"member={member:02d}" / f"epoch={epoch:02d}"
            kept = load_file(folder / "adapter_model.safetensors")
            seen = watch.after[(epoch - 1) * STEPS + step]
            for name, value in seen.items():
                assert torch.equal(kept[name.replace(".default.", ".")], value[0].cpu()), (member, epoch, name)
    norms = log.epoch(2).grad_norm
    assert not np.allclose(norms[0], norms[1], rtol=1e-3) and not np.allclose(norms[1], norms[2], rtol=1e-3)


def test_last_snapshot_is_member_0_of_the_lora_ensemble(train, tmp_path):
    cache, steps = tmp_path / "shared", Steps()
    lora = train("lora", small_ensemble(m=1), cache=cache)
    along = train("along", snapshots(3), cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS, "the steps within the epochs were not there"
    assert train.report.costs.logged == 2 * 2 * 2, "the epochs' ends had been logged before"
    fresh = train("fresh", snapshots(3))
    assert_identical_logs(along, fresh, (1, 2))
    for epoch in (1, 2):
        np.testing.assert_array_equal(along.epoch(epoch).grad_norm[2], lora.epoch(epoch).grad_norm[0])
    none = Steps()
    train("lora again", small_ensemble(m=1), cache=cache, trainer=counting(none))
    train("along again", snapshots(3), cache=cache, trainer=counting(none))
    assert none.taken == 0 and train.report.reused


def test_a_snapshot_depends_on_its_step_not_on_their_number(train, tmp_path):
    cache = tmp_path / "shared"
    three, six = train("three", snapshots(3), cache=cache), train("six", snapshots(6), cache=cache)
    for member in range(3):
        np.testing.assert_array_equal(three.epoch(2).grad_norm[member], six.epoch(2).grad_norm[2 * member + 1])
    steps = Steps()
    train("two", snapshots(2), cache=cache, trainer=counting(steps))
    assert steps.taken == 0, "its steps are among the six"


def test_before_training_all_are_one_and_measured_once(train):
    log = train("run", snapshots(3), (0, 1))
    assert train.report.costs.logged == 2 * (1 + 3)  # rows and held-out rows
    assert np.ptp(log.epoch(0).grad_norm, axis=0).max() == 0 < np.ptp(log.epoch(1).grad_norm, axis=0).min()


def test_a_killed_run_resumes_and_ends_the_same(train, tmp_path):
    cache, how = tmp_path / "shared", snapshots(3, checkpoint_minutes=1e-9)
    with pytest.raises(KilledHere):
        train("killed", how, cache=cache, trainer=counting(Steps(STEPS + 3)))
    steps = Steps()
    resumed = train("resumed", how, cache=cache, trainer=counting(steps))
    assert steps.taken == STEPS - 3
    assert_identical_logs(resumed, train("whole", snapshots(3)), (1, 2))


def test_checkpoint_without_snapshots_is_not_resumed(train, tmp_path):
    cache = tmp_path / "shared"
    with pytest.raises(KilledHere):
        train("killed", small_ensemble(m=1, checkpoint_minutes=1e-9), cache=cache, trainer=counting(Steps(STEPS + 3)))
    steps = Steps()
    along = train("along", snapshots(3), cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS, "epoch 1 lacks its snapshots, and step 2 of epoch 2 was not kept"
    assert_identical_logs(along, train("whole", snapshots(3)), (1, 2))


def test_more_snapshots_than_steps_are_refused(train):
    with pytest.raises(UserError, match=f"epoch of {STEPS} steps has no 9 snapshots; ask for {STEPS} or fewer"):
        train("run", snapshots(9))


def test_online_is_refused():
    with pytest.raises(UserError, match="cannot collect online"):
        snapshots(collect="online")
