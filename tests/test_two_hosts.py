"""Two hosts, each with a network of its own, give what one process gives; without a shared cache they do not start."""

import signal
import time
from functools import partial

import numpy as np
import pytest

from tests.support.ddp_training import COLLECT, ROWS, keep_measurements, proxy_context, trainer_of
from tests.support.hosts import two_hosts
from tests.support.pipeline import summary
from tests.support.processes import LONG_ENOUGH, finish
from tests.support.run_comparison import (
    SMALL,
    assert_same_adapters,
    assert_same_choice,
    assert_same_log,
    assert_same_run,
    at,
    one_process,
)

RTOL = 1e-8  # float64, before the log is stored as float32
FEW_ROWS = 25  # three batches of 8 and one of 1, of which the second host gets nothing
MANY_ROWS = ["data.rows=200"]  # 25 updates an epoch
# Else the launcher on the first host, which holds on to its first meeting, never tells a new host where to find it.
REPLACEABLE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
OVERRIDES = [*SMALL, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", f"data.rows={FEW_ROWS}"]

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts():
    with two_hosts() as pair:
        yield pair


def finish_all(processes):
    done = [finish(process) for process in processes]
    assert [host.returncode for host in done] == [0, 0], done[0].stderr + done[1].stderr
    return done


def test_a_run_on_two_hosts_is_that_of_one_process(hosts, tmp_path):
    few = ["until=select", "selector.fraction=0.2"]
    one = one_process(tmp_path / "one", tmp_path / "cache of one", f"data.rows={FEW_ROWS}", *few)
    both = tmp_path / "both"
    command = ["train.py", *OVERRIDES, *few, *at(both, tmp_path / "cache")]
    done = finish_all([host.torchrun(tmp_path / f"tmp {host.namespace}", *command) for host in hosts])
    assert summary(both)["proxy"]["trained"] == 2 * 2, "the hosts trained nothing"
    assert_same_run(one, both, FEW_ROWS)
    assert [host.stdout.count("summary.json") for host in done] == [1, 0], "the screen belongs to the first host"
    assert not list((tmp_path / "cache").glob("shared*")), "the file that all hosts looked for was left"


def test_logs_of_two_hosts_in_float64_are_those_of_one_process(hosts, tmp_path):
    command = ["-m", "tests.support.ddp_training", str(tmp_path / "both"), "2", "2"]
    finish_all([host.torchrun(tmp_path / f"tmp {host.namespace}", *command) for host in hosts])
    for rows in ROWS:
        for collect in COLLECT:
            place = f"rank=0/rows={rows}/{collect}"
            keep_measurements(proxy_context(tmp_path / "one", rows, collect, trainer_of(1)), tmp_path / "one" / place)
            for rank in range(2):
                assert_same_measurements(tmp_path / "one" / place, tmp_path / "both" / f"rank={rank}" / place[7:])


def assert_same_measurements(expected_folder, found_folder, passes_before=0):
    """`passes_before`: those that were measured and stored before the processes that are compared had started."""
    with np.load(expected_folder / "measured.npz") as expected, np.load(found_folder / "measured.npz") as found:
        pass_count = sum(name.startswith("loss/") for name in found.files)
        assert pass_count + passes_before == sum(name.startswith("loss/") for name in expected.files)
        for position in range(pass_count):
            for name in ("grad_norm", "loss"):
                expected_values = expected[f"{name}/{position + passes_before}"]
                assert expected_values.dtype == np.float64
                np.testing.assert_allclose(found[f"{name}/{position}"], expected_values, rtol=RTOL, err_msg=name)


def mount_own(folder, shared):
    """A shell command that lays a host's own folder over the shared one, as a disk of its own would be."""
    folder.mkdir()
    return f"mount --bind '{folder}' '{shared}'"


@pytest.mark.parametrize("difference", ["of another path", "of the same path on a disk of its own"])
def test_hosts_without_a_shared_cache_end_at_once(difference, hosts, tmp_path):
    shared = tmp_path / "cache"
    shared.mkdir()
    caches, mounts = [shared, shared], ""
    if difference == "of another path":
        caches = [shared, tmp_path / "another"]
    else:
        mounts = mount_own(tmp_path / "disk", shared)
    launches = [
        partial(host.torchrun, tmp_path / f"tmp {host.namespace}", "train.py", *OVERRIDES, *at(tmp_path / "run", cache))
        for host, cache in zip(hosts, caches, strict=True)
    ]
    done = [finish(process) for process in (launches[0](), launches[1](mounts=mounts))]
    assert done[0].returncode == 1, done[0].stderr
    assert done[0].stderr.count("do not share the cache folder") == 1, done[0].stderr
    assert "mount under the same path" in done[0].stderr and f"cache.path={shared}" in done[0].stderr
    assert "do not share" not in done[1].stderr, "the first host speaks for all"
    assert not list((tmp_path / "run").glob("*")), "a run was begun"
    assert not list(shared.glob("*")), "the cache was used"


@pytest.mark.parametrize(("collect", "epoch"), [("online", 1), ("snapshot", 2)])
def test_a_host_that_fails_mid_epoch_is_replaced(collect, epoch, hosts, tmp_path):
    """The other host waits for the one in its place; both go on from the last checkpoint, to the same numbers."""
    command = ["-m", "tests.support.failing_host", str(tmp_path / "both"), collect, str(epoch)]
    launches = [
        partial(
            host.torchrun, tmp_path / f"tmp {host.namespace}", *command, options=["--max_restarts=3"], **REPLACEABLE
        )
        for host in hosts
    ]
    first, failing = (start() for start in launches)
    assert finish(failing).returncode == -signal.SIGKILL and (tmp_path / "both" / "failed").exists()
    finish_all([first, launches[1]()])
    place = f"rank=0/{collect}"
    keep_measurements(proxy_context(tmp_path / "one", ROWS[1], collect, trainer_of(1)), tmp_path / "one" / place)
    for rank in range(2):
        assert_same_measurements(tmp_path / "one" / place, tmp_path / "both" / f"rank={rank}" / collect, epoch - 1)


def test_a_run_goes_on_when_a_host_is_killed_and_replaced(hosts, tmp_path):
    few = ["until=select", "selector.fraction=0.2"]
    one = one_process(tmp_path / "one", tmp_path / "cache of one", *MANY_ROWS, *few)
    both, cache = tmp_path / "both", tmp_path / "cache"
    command = ["train.py", *OVERRIDES, *MANY_ROWS, "ensemble.checkpoint_minutes=1e-4", *few, *at(both, cache)]
    launches = [
        partial(
            host.torchrun, tmp_path / f"tmp {host.namespace}", *command, options=["--max_restarts=3"], **REPLACEABLE
        )
        for host in hosts
    ]
    first, killed = (start() for start in launches)
    deadline = time.monotonic() + LONG_ENOUGH
    while not list(cache.glob("interrupted/*/artifact.json")):
        assert first.poll() is None and killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    hosts[1].kill_all()
    assert finish(killed).returncode == -signal.SIGKILL
    assert not list(both.glob("gradient_log/*")), "the host was killed too late to show anything"
    finish_all([first, launches[1]()])
    assert_same_log(one, both, 200)
    assert_same_adapters(one, both)
    assert_same_choice(one, both)
