import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.errors import UserError
from gradfiltering.runs.gradient_log import SCHEMA, read_members
from gradfiltering.shards.measurement_shards import MeasurementShards, has_all_files, merge_shards

IDS, MEMBERS = np.array([2, 3, 5, 8, 13, 21, 34]), 3
TOKENS = np.arange(1, 8, dtype=np.int32)
NORMS, LOSSES = np.random.default_rng(0).normal(size=(2, MEMBERS, len(IDS)))


def merge(shards: MeasurementShards, file_names=None):
    return merge_shards(
        shards.folder, shards.list_files() if file_names is None else file_names, IDS, TOKENS, MEMBERS, LoraEnsemble
    )


def record_all(shards: MeasurementShards, batch_rows: int = 2, rows=None) -> MeasurementShards:
    """Record rows in batches, of which each member sees them in an order of its own."""
    positions = np.stack(
        [np.random.default_rng(m).permutation(len(IDS) if rows is None else rows) for m in range(MEMBERS)]
    )
    for start in range(0, positions.shape[1], batch_rows):
        batch = positions[:, start : start + batch_rows]
        shards.record(IDS[batch], *(np.take_along_axis(values, batch, 1) for values in (NORMS, LOSSES)))
    return shards


@pytest.mark.parametrize("shard_rows", [1, 4, 1000])
def test_members_come_out_in_the_order_of_ids(shard_rows, tmp_path):
    shards = record_all(MeasurementShards(tmp_path / "new", MEMBERS, shard_rows))
    log = read_members(merge(shards))
    np.testing.assert_array_equal(log.example_ids, IDS)
    np.testing.assert_array_equal(log.grad_norm, NORMS.astype(np.float32))
    np.testing.assert_array_equal(log.loss, LOSSES.astype(np.float32))
    np.testing.assert_array_equal(log.response_tokens, TOKENS)
    assert pq.read_schema(merge(shards)[0]) == SCHEMA
    assert len(shards.list_files()) == {1: 4, 4: 4, 1000: 1}[shard_rows]


@pytest.mark.parametrize("folder_name", ["member=0", "loss=1", "work[1]", "*"])
def test_measurements_are_their_own_in_any_folder(folder_name, tmp_path):
    record_all(MeasurementShards(tmp_path / "work1", MEMBERS)).list_files()
    merged = read_members(merge(record_all(MeasurementShards(tmp_path / folder_name, MEMBERS))))
    np.testing.assert_array_equal(merged.grad_norm, NORMS.astype(np.float32))
    np.testing.assert_array_equal(merged.loss, LOSSES.astype(np.float32))


def test_rows_are_merged_in_pieces_and_nothing_else_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("gradfiltering.shards.measurement_shards.SHARD_ROWS", 3)
    merged_files = merge(record_all(MeasurementShards(tmp_path, MEMBERS)))
    assert [pq.read_metadata(merged_file).num_row_groups for merged_file in merged_files] == [3, 3, 3]
    np.testing.assert_array_equal(read_members(merged_files).grad_norm, NORMS.astype(np.float32))
    assert all(path.suffix == ".parquet" for path in tmp_path.iterdir())


WRITE_AND_MERGE = """
import re, sys
from pathlib import Path
import numpy as np
from gradfiltering.shards.measurement_shards import SHARD_ROWS, MeasurementShards, merge_shards

def anonymous_mib():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

row_ids = np.arange(5 * SHARD_ROWS)
numbers = np.random.default_rng(0).standard_normal((1, len(row_ids)))
tokens = np.full(len(row_ids), 7, np.int32)
shards = MeasurementShards(Path(sys.argv[1]), 1)
written = []
for first_row in range(0, len(row_ids), 512):
    batch = slice(first_row, first_row + 512)
    shards.record(row_ids[batch], numbers[:, batch], numbers[:, batch])
    written.append(anonymous_mib())
merge_shards(shards.folder, shards.list_files(), row_ids, tokens, 1, object)
print(written[130], written[-1], anonymous_mib())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_files_that_were_written_leave_no_memory_behind(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", WRITE_AND_MERGE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    after_first_file, after_last_file, after_merging = map(float, process.stdout.split())
    assert after_last_file - after_first_file < 15
    assert after_merging - after_last_file < 15  # Arrow's allocator keeps 50 and more unless it is told not to


def test_no_rows_make_empty_files(tmp_path):
    none = np.zeros(0, dtype=np.int64)
    (merged_file,) = merge_shards(tmp_path, [], none, none.astype(np.int32), 1, LoraEnsemble)
    assert len(read_members([merged_file]).example_ids) == 0


def test_rows_that_all_members_see_alike_need_their_ids_once(tmp_path):
    shards = MeasurementShards(tmp_path, MEMBERS)
    shards.record(IDS, NORMS, LOSSES)
    np.testing.assert_array_equal(read_members(merge(shards)).grad_norm, NORMS.astype(np.float32))


def test_norms_that_were_not_measured_are_null(tmp_path):
    shards = MeasurementShards(tmp_path, MEMBERS)
    shards.record(IDS, None, LOSSES)
    merged_files = merge(shards)
    log = read_members(merged_files)
    np.testing.assert_array_equal(log.loss, LOSSES.astype(np.float32))
    assert np.isnan(log.grad_norm).all() and not log.has_norms
    assert pq.read_table(merged_files[0])["grad_norm"].null_count == len(IDS)


def test_losses_alone_must_be_finite_too(tmp_path):
    shards = MeasurementShards(tmp_path, MEMBERS)
    shards.record(IDS, None, np.where(IDS == 8, np.nan, LOSSES))
    with pytest.raises(UserError, match=r"not finite for 3 of 3 members, rows \[8\]"):
        merge(shards)


def test_what_was_written_before_an_interruption_is_gone_on_from(tmp_path):
    first = MeasurementShards(tmp_path, MEMBERS)
    first.record(IDS[:3], NORMS[:, :3], LOSSES[:, :3])
    saved_names = first.list_files()
    first.record(IDS[3:5], NORMS[:, 3:5], LOSSES[:, 3:5])
    first.list_files()  # after the last checkpoint: measured again
    second = MeasurementShards(tmp_path, MEMBERS)
    second.restore(saved_names)
    second.record(IDS[3:], NORMS[:, 3:], LOSSES[:, 3:])
    np.testing.assert_array_equal(read_members(merge(second)).loss, LOSSES.astype(np.float32))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (range(6), r"of 21 measurements of rows 3 are missing \(first row 34\)"),
        ([*range(7), 4], r"of 21 measurements of rows 3 were made more than once \(first row 13\)"),
        ([0, 1, 2, 2, 4, 5, 6], r"3 are missing \(first row 8\) and 3 were made more than once \(first row 5\)"),
    ],
)
def test_a_row_that_was_not_measured_exactly_once_is_named(recorded, message, tmp_path):
    shards, rows = MeasurementShards(tmp_path, MEMBERS), list(recorded)
    shards.record(IDS[rows], NORMS[:, rows], LOSSES[:, rows])
    with pytest.raises(UserError, match=message):
        merge(shards)


def test_a_row_that_nobody_asked_for_is_named(tmp_path):
    shards = MeasurementShards(tmp_path, MEMBERS)
    shards.record(np.append(IDS, 99), *(np.hstack([values, values[:, :1]]) for values in (NORMS, LOSSES)))
    with pytest.raises(UserError, match=r"rows 3 are of other rows \(first row 99\)"):
        merge(shards)


def test_one_member_that_lacks_a_row_is_seen(tmp_path):
    shards = MeasurementShards(tmp_path, MEMBERS)
    ids = np.stack([IDS, IDS, IDS[[0, 1, 2, 3, 4, 5, 5]]])
    shards.record(ids, NORMS, LOSSES)
    with pytest.raises(
        UserError, match=r"1 are missing \(first row 34\) and 1 were made more than once \(first row 21"
    ):
        merge(shards)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("bad_value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_name_members_and_rows(column, bad_value, tmp_path):
    values = np.stack([NORMS, LOSSES])
    values[column, 1, [3, 5]] = bad_value
    shards = MeasurementShards(tmp_path, MEMBERS)
    shards.record(IDS, *values)
    with pytest.raises(UserError, match=r"not finite for 1 of 3 members, rows \[8, 21\]; lower") as refusal:
        merge(shards)
    assert (refusal.value.owner, refusal.value.arguments) == (LoraEnsemble, ("lr", "clip_norm"))


def test_a_file_that_another_host_does_not_see_is_an_error_with_a_remedy(tmp_path):
    shards = record_all(MeasurementShards(tmp_path, MEMBERS))
    names = [*shards.list_files(), "rank=1-abc.parquet"]
    assert has_all_files(tmp_path, names[:-1]) and not has_all_files(tmp_path, names)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / names[0]).read_bytes()[:-3])
    assert not has_all_files(tmp_path, ["cut.parquet"])
    with pytest.raises(UserError, match=r"rank=1-abc.parquet was written by another process .* share"):
        merge(shards, names)
