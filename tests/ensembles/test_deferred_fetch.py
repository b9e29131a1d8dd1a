"""Steps whose numbers are fetched later, as on a GPU: whatever is stored and logged is the same."""

import lightning as L
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from gradfiltering.ensembles.known_gradient import attach_gradients
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.errors import UserError
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import (
    ROWS,
    assert_identical_logs,
    assert_same_member,
    ensemble_of_kind,
    small_ensemble,
)

STEPS = -(-ROWS // 4)  # of an epoch: 6
INTERVAL = 4  # divides no epoch


class FetchSeldom(L.Callback):
    """Lets a module fetch as seldom as on a GPU."""

    def on_train_start(self, trainer, module):
        module.steps_per_fetch = INTERVAL


def seldom(*more_callbacks):
    """A builder of trainers that fetch seldom."""

    def build(callbacks=(), **options):
        return quiet_trainer(callbacks=[*callbacks, FetchSeldom(), *more_callbacks], **options)

    return build


def read_files(folder):
    trajectory = pq.read_table(folder / "trajectory.parquet").to_pylist()
    adapters = [path.read_bytes() for path in sorted((folder / "adapters").rglob("*.safetensors"))]
    assert trajectory and adapters
    return trajectory, adapters


@pytest.mark.parametrize(
    "settings",
    [small_ensemble(collect="online"), ensemble_of_kind(SnapshotEnsemble)],
    ids=["online", "snapshots within an epoch"],
)
def test_seldom_fetched_training_stores_the_same(train, tmp_path, settings):
    each_step, later = train("each", settings), train("later", settings, trainer=seldom())
    assert_identical_logs(later, each_step, (1, 2))
    assert read_files(tmp_path / "later") == read_files(tmp_path / "each")


@pytest.mark.parametrize("killed_at", [2, STEPS + 3])
def test_a_checkpoint_within_an_interval_goes_on_bit_for_bit(train, tmp_path, killed_at):
    often = small_ensemble(collect="online", checkpoint_minutes=1e-9)
    cache = tmp_path / "shared"
    with pytest.raises(KilledHere):
        train("killed", often, cache=cache, trainer=seldom(Steps(until=killed_at)))
    steps = Steps()
    resumed = train("resumed", often, cache=cache, trainer=seldom(steps))
    assert steps.taken == 2 * STEPS - killed_at
    assert_identical_logs(resumed, train("fresh", often), (1, 2))
    assert read_files(tmp_path / "resumed") == read_files(tmp_path / "fresh")


def test_steps_after_the_last_checkpoint_are_taken_again_and_recorded_once(train, tmp_path):
    online = small_ensemble(collect="online")
    cache = tmp_path / "shared"

    class SaveOnce(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            saver = trainer.callbacks[0]
            saver.last_save = -np.inf if batch_index == 1 else saver.last_save

    with pytest.raises(KilledHere):  # after the checkpoint of 2 steps, and 3 more of which no number was fetched
        train("killed", online, cache=cache, trainer=seldom(SaveOnce(), Steps(until=5)))
    steps = Steps()
    resumed = train("resumed", online, cache=cache, trainer=seldom(steps))
    assert steps.taken == 2 * STEPS - 2
    assert_identical_logs(resumed, train("fresh", online), (1, 2))
    assert read_files(tmp_path / "resumed") == read_files(tmp_path / "fresh")


class LogEachStep(L.Callback):
    """Gives a trainer a logger of its own."""

    def __init__(self, folder):
        self.logger = CSVLogger(folder, version="")

    def setup(self, trainer, module, stage):
        trainer.loggers, trainer.log_every_n_steps = [self.logger], 1


def test_loggers_get_the_values_of_each_step(train, tmp_path):
    written = []
    for name in ("each", "later"):
        log_steps = LogEachStep(tmp_path / f"{name} metrics")
        train(name, trainer=seldom(log_steps) if name == "later" else counting(log_steps))
        (file,) = (tmp_path / f"{name} metrics").rglob("metrics.csv")
        written.append(np.genfromtxt(file, delimiter=",", names=True))
    each_step, later = written
    assert set(each_step.dtype.names) == {"epoch", "proxyloss", "proxygrad_norm", "step"}
    for column in each_step.dtype.names:
        np.testing.assert_allclose(later[column], each_step[column], rtol=1e-6)
    assert len(later) == 2 * STEPS


class SpoilStep(L.Callback):
    """Makes the loss of the second member's first row not finite in a step."""

    def __init__(self, bad_step, monkeypatch):
        self.bad_step, self.monkeypatch, self.measured = bad_step, monkeypatch, 0

    def on_train_start(self, trainer, module):
        measure = module.engine.measure

        def measure_badly(*arguments, **options):
            measurement = measure(*arguments, **options)
            if self.measured == self.bad_step:
                measurement.loss[1, 0] = np.nan
            self.measured += 1
            return measurement

        self.monkeypatch.setattr(module.engine, "measure", measure_badly)


@pytest.mark.parametrize("bad_step", [1, STEPS - 1, STEPS + 2])
def test_a_loss_that_is_not_finite_is_named_by_the_same_error(train, monkeypatch, bad_step):
    messages = []
    for name, build_with in (("each", counting), ("later", seldom)):
        spoil_step = SpoilStep(bad_step, monkeypatch)
        with pytest.raises(UserError, match=rf"not finite at step {bad_step} for members \[1\], rows") as error:
            train(name, small_ensemble(collect="online"), trainer=build_with(spoil_step))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_numbers_are_fetched_once_in_an_interval(train, monkeypatch):
    fetches = []
    fetch = ProxyEnsemble.fetch_measurements

    def count(module):
        if module._unfetched:
            fetches.append(len(module._unfetched))
        return fetch(module)

    monkeypatch.setattr(ProxyEnsemble, "fetch_measurements", count)
    train("later", trainer=seldom())
    assert fetches == [INTERVAL, STEPS - INTERVAL] * 2


def test_fused_steps_go_on_from_stored_moments(train, tmp_path, monkeypatch):
    """As on a GPU, whose AdamW computes all parameters at once; the one for a CPU wants the same state."""
    monkeypatch.setattr(ProxyEnsemble, "_takes_fused_steps", lambda module: True)
    cache = tmp_path / "shared"
    train("first", cache=cache)
    later = train("later", pair=(2, 3), cache=cache)
    fresh = train("fresh", pair=(2, 3))
    assert_identical_logs(later, fresh, (2, 3))
    monkeypatch.undo()
    plain = train("plain", pair=(2, 3))
    for member in range(3):
        assert_same_member(fresh, plain, member, (2, 3))


def test_attached_gradients_are_those_of_the_sum_of_products():
    parameters = [torch.randn(3, 2, requires_grad=True), torch.randn(5, requires_grad=True)]
    gradients = [torch.randn(3, 2), torch.randn(5)]
    products = sum((parameter * gradient).sum() for parameter, gradient in zip(parameters, gradients, strict=True))
    expected = torch.autograd.grad(products * 0.3 / 4, parameters)
    value = attach_gradients(torch.tensor(2.5), parameters, gradients, weight=0.3)
    assert value.item() == 2.5
    for found, wanted in zip(torch.autograd.grad(value / 4, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted)
