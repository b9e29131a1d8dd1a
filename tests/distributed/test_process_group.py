"""Two connected processes: results, errors and cached results are the same on both."""

import json
import subprocess
import sys

import pytest

RANKS = 2
SCRIPT = """
import json, sys
from datetime import timedelta
from pathlib import Path

import numpy as np
from torch import distributed

from gradfiltering.distributed.process_group import (
    gather_from_ranks, rank, run_on_rank_zero, sum_over_ranks, world_size
)
from gradfiltering.distributed.row_measurements import RowMeasurements
from gradfiltering.errors import UserError
from gradfiltering.runs import shared_folder
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder

shared_folder.WAIT_SECONDS = 0.3
folder, own_rank = Path(sys.argv[1]), int(sys.argv[2])
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=own_rank, world_size=2, timeout=timedelta(seconds=60)
)
assert (rank(), world_size()) == (own_rank, 2)
seen = {"ranks": gather_from_ranks(own_rank), "sum": sum_over_ranks(np.array([own_rank + 1.0])).tolist()}

def count_as_one():
    return [rank(), world_size(), gather_from_ranks("alone")]

seen["on rank zero"] = run_on_rank_zero(count_as_one)

def refuse():
    raise UserError("the file is empty", owner=UserError, arguments=("lr",))

try:
    run_on_rank_zero(refuse)
except UserError as error:
    seen["error"] = [str(error), error.owner is UserError, list(error.arguments)]

cache, calls = Cache(folder / "cache"), []
cache.check_shared()
distributed.barrier()
seen["left by the check"] = [path.name for path in (folder / "cache").iterdir()]
try:
    Cache(folder / f"cache of {own_rank}").check_shared()
except UserError as error:
    seen["not shared"] = [str(error), error.owner.folder.name, list(error.arguments)]

def compute_together(part_folder, text):
    calls.append(sorted(gather_from_ranks(rank())))
    (part_folder / "result.txt").write_text(f"{text} {rank()}")

def compute_alone(part_folder):
    calls.append(world_size())
    (part_folder / "result.txt").write_text("alone")

for _ in range(2):
    together = cache.get_or_compute("together", {"a": 1}, compute_together, text="by rank")
    alone = cache.get_or_compute_on_rank_zero("alone", {"a": 1}, compute_alone)
seen["cached"] = [(result.path / "result.txt").read_text() for result in (together, alone)]
seen["reused"], seen["calls"] = [together.reused, alone.reused], calls
with cache.lock("together", {"a": 2}):
    committed = cache.commit("together", {"a": 2}, lambda part: (part / "rank.txt").write_text(str(rank())), 3.0)
seen["committed"] = [(committed.path / "rank.txt").read_text(), committed.seconds]

point = cache.resume_point("together", {"a": 3})
point.save({}, {"rank": rank()})
seen["resumed"] = point.load().state
distributed.barrier()
point.delete()
distributed.barrier()
seen["deleted"] = point.load() is None

measurements = RowMeasurements(np.arange(5), ("loss",))
for batch in measurements.share([[0, 3], [1], [2, 4]]):
    measurements.record(np.array(batch), loss=np.array(batch) * 10.0)
seen["loss"] = measurements.gather()["loss"].tolist()
RunFolder(folder / f"run {own_rank}").write_text("notes.txt", "rank zero writes")
(folder / f"seen {own_rank}.json").write_text(json.dumps(seen))
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, "-c", SCRIPT, str(folder), str(rank)] for rank in range(RANKS)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(errors)
    return folder


@pytest.fixture(scope="module", params=range(RANKS))
def seen(folder, request):
    return json.loads((folder / f"seen {request.param}.json").read_text())


def test_every_rank_gets_sums_and_gathered_values(seen):
    assert seen["ranks"] == [0, 1] and seen["sum"] == [3.0]


def test_rank_zero_counts_as_one_process_while_alone(seen):
    assert seen["on rank zero"] == [0, 1, ["alone"]]


def test_error_of_rank_zero_is_raised_on_every_rank(seen):
    assert seen["error"] == ["the file is empty", True, ["lr"]]


def test_all_ranks_compute_once_and_read_rank_zeros_result(seen):
    assert seen["cached"] == ["by rank 0", "alone"] and seen["reused"] == [True, True]
    assert [call for call in seen["calls"] if isinstance(call, list)] == [[0, 1]]
    assert seen["committed"] == ["0", 3.0]


def test_only_rank_zero_computes_what_it_computes_alone(folder):
    calls = [json.loads((folder / f"seen {rank}.json").read_text())["calls"] for rank in range(RANKS)]
    assert [1 in rank_calls for rank_calls in calls] == [True, False]


def test_a_cache_that_all_ranks_see_is_taken_as_shared(seen):
    assert seen["left by the check"] == []


def test_a_cache_of_each_ranks_own_is_refused_on_every_rank(seen, folder):
    message, _, arguments = seen["not shared"]
    assert "do not share the cache folder" in message and f"({folder / 'cache of 1'})" in message
    assert "rank 1 on" in message and "rank 0 on" not in message
    assert "mount under the same path" in message and arguments == ["path"]


def test_every_rank_loads_the_checkpoint_of_rank_zero(seen):
    assert seen["resumed"] == {"rank": 0} and seen["deleted"]


def test_shared_rows_come_together_on_every_rank(seen):
    assert seen["loss"] == [[0.0, 10.0, 20.0, 30.0, 40.0]]


def test_run_folder_is_written_by_rank_zero_only(folder):
    assert (folder / "run 0" / "notes.txt").is_file() and not (folder / "run 1").exists()
