"""In float64 several processes give what one gives, to rounding: the log before it is written, and the target."""

from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.support.ddp_training import (
    BUDGET,
    COLLECT,
    HELDOUT,
    PAIRS,
    ROWS,
    SAMPLE_RATES,
    train_all,
    train_preferences,
    trainer_of,
)
from tests.support.processes import TORCHRUN, run_in_processes

RTOL = 1e-8  # float64, over two epochs; found: 1e-15
TARGET_RTOL = 1e-10  # of a tensor's largest entry; found: 1e-15
IDU_RTOL = 1e-6  # the gradients behind a predicted change are kept in float32

pytestmark = pytest.mark.slow
several = pytest.mark.parametrize(
    ("processes", "launcher"), [(2, []), (3, [*TORCHRUN, "3"])], ids=["2 by Lightning", "3 by torchrun"]
)
any_rows = pytest.mark.parametrize("rows", ROWS, ids=["divisible", "not divisible"])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train_all(folder, trainer_of(1))
    train_preferences(folder, trainer_of(1))
    return folder / "rank=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of each process, by number of processes; each training is done once."""

    @cache
    def run(processes, *launcher):
        folder = tmp_path_factory.mktemp(f"in-{processes}")
        run_in_processes(folder / "tmp", *launcher, "-m", "tests.support.ddp_training", str(folder), str(processes))
        return [folder / f"rank={rank}" for rank in range(processes)]

    return run


def measured(folder, rows, collect):
    with np.load(folder / f"rows={rows}" / collect / "measured.npz") as file:
        return dict(file)


@several
@any_rows
@pytest.mark.parametrize("collect", COLLECT)
def test_gradient_log_after_two_epochs_is_that_of_one_process(one, trained, processes, launcher, collect, rows):
    alone = measured(one, rows, collect)
    together = [measured(folder, rows, collect) for folder in trained(processes, *launcher)]
    for name, expected in alone.items():
        if not name.startswith("times"):
            assert expected.dtype == np.float64 and expected.shape[1] in (rows, HELDOUT)
            for found in together:
                np.testing.assert_allclose(found[name], expected, rtol=RTOL, err_msg=f"{name}: {collect}, {rows} rows")
    logs = [norms for name, norms in alone.items() if name.startswith("grad_norm") and norms.shape[1] == rows]
    assert len(logs) == (2 if collect == "online" else 4), "the steps of training record theirs in either way"
    early, late = logs[-2:]
    assert not np.allclose(early, late, rtol=1e-3), "nothing was learned in between"


@several
@any_rows
@pytest.mark.parametrize("collect", COLLECT)
def test_each_example_is_measured_once_and_no_process_idles(trained, processes, launcher, collect, rows):
    together = [measured(folder, rows, collect) for folder in trained(processes, *launcher)]
    for name in (name for name in together[0] if name.startswith("times")):
        parts = [found[name] for found in together]
        np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
        if parts[0].shape[1] == rows:
            assert all(part.any() for part in parts), f"{name}: a process had nothing to do"


@several
@any_rows
def test_target_is_that_of_one_process(one, trained, processes, launcher, rows):
    for folder in trained(processes, *launcher):
        assert_same_target(one, folder, f"rows={rows}/target")


@several
@any_rows
def test_target_with_sharded_layers_is_that_of_one_process(one, trained, processes, launcher, rows):
    folders = trained(processes, *launcher)
    for folder in folders:
        assert_same_target(one, folder, f"rows={rows}/target", f"rows={rows}/sharded")
    held_shares = [float(np.load(folder / f"rows={rows}" / "sharded" / "held_share.npy")) for folder in folders]
    assert sum(held_shares) == pytest.approx(1) and max(held_shares) < 0.8, "the layers were not spread"
    assert [file.name for file in (folders[0] / f"rows={rows}" / "sharded" / "adapter").glob("*.safetensors")] == [
        "adapter_model.safetensors"
    ]


@several
def test_pairs_are_measured_and_learnt_as_in_one_process(one, trained, processes, launcher):
    for collect in COLLECT:
        with np.load(one / PAIRS / collect / "measured.npz") as alone:
            for folder in trained(processes, *launcher):
                with np.load(folder / PAIRS / collect / "measured.npz") as found:
                    for name in (name for name in alone.files if not name.startswith("times")):
                        np.testing.assert_allclose(found[name], alone[name], rtol=RTOL, err_msg=f"{name}: {collect}")
    for folder in trained(processes, *launcher):
        assert_same_target(one, folder, f"{PAIRS}/target")


@several
@any_rows
@pytest.mark.parametrize("rate", SAMPLE_RATES, ids=["a row a round", "rounds of several updates"])
def test_lead_selects_the_rows_it_selects_in_one_process(one, trained, processes, launcher, rows, rate):
    place = f"rows={rows}/lead={rate}/target/candidate"
    alone = pq.read_table(one / place / "rounds.parquet").to_pylist()
    assert alone[-1]["distinct"] == BUDGET
    sizes = {len(entry["example_id"]) for entry in alone}
    assert sizes == {1} if rate < 1 else alone[-1]["updates"] > len(alone), "not the rounds that were to be tried"
    for folder in trained(processes, *launcher)[:1]:  # rank zero writes for all
        together = pq.read_table(folder / place / "rounds.parquet").to_pylist()
        assert [(entry["cluster"], entry["example_id"]) for entry in together] == [
            (entry["cluster"], entry["example_id"]) for entry in alone
        ]
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(found["loss"], expected["loss"], rtol=RTOL)
            np.testing.assert_allclose(found["idu"], expected["idu"], rtol=IDU_RTOL)
        assert_same_target(one, folder, place)


def assert_same_target(one, other, place, other_place=None):
    folders = one / place, other / (other_place or place)
    alone, found = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders)
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TARGET_RTOL * np.abs(value).max(), err_msg=name)
