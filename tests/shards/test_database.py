import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.diagnostics.row_columns import ArrayColumns
from gradfiltering.shards.database import StoredColumns, read_file, read_files, write_query

RTOL = 1e-12


def both(connection, tmp_path, **arrays):
    """The same columns on disk and in memory."""
    pq.write_table(pa.table(arrays), tmp_path / "it's.parquet", row_group_size=7)
    return StoredColumns(connection, read_file(tmp_path / "it's.parquet")), ArrayColumns(arrays)


@pytest.mark.parametrize("row_count", [1, 2, 3, 50, 501])
def test_statistics_on_disk_are_those_in_memory(row_count, connection, tmp_path):
    rng = np.random.default_rng(row_count)
    columns = {
        "a": rng.normal(size=row_count),
        "few values": rng.integers(-2, 3, row_count).astype(float),
        "tokens": rng.integers(1, 9, row_count).astype(np.int32),
        "constant": np.full(row_count, 2.5),
        "zeros": np.where(rng.random(row_count) < 0.5, 0.0, -0.0),
    }
    stored, in_memory = both(connection, tmp_path, **columns)
    assert list(stored.names) == list(in_memory.names) and stored.row_count == row_count
    for name in columns:
        for method in ("mean", "median", "share_above_zero", "share_below_zero"):
            expected = getattr(in_memory, method)(name)
            np.testing.assert_allclose(getattr(stored, method)(name), expected, rtol=RTOL, err_msg=f"{method} {name}")
        assert stored.is_constant(name) == in_memory.is_constant(name)
        assert stored.is_finite(name)
    pairs = [(first, second) for first in columns for second in columns]
    for pair, ours, expected in zip(
        pairs, stored.correlate_ranks(pairs), in_memory.correlate_ranks(pairs), strict=True
    ):
        assert (ours is None) == (expected is None), pair
        if expected is not None:
            np.testing.assert_allclose(ours, expected, rtol=RTOL, atol=RTOL, err_msg=str(pair))


@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_seen(bad_value, connection, tmp_path):
    stored, in_memory = both(connection, tmp_path, a=np.array([1.0, bad_value, 2.0]), b=np.arange(3.0))
    assert not stored.is_finite("a") and not in_memory.is_finite("a") and stored.is_finite("b")


def test_a_mean_of_no_rows_is_no_number(connection, tmp_path):
    stored, _ = both(connection, tmp_path, a=np.zeros(0))
    assert np.isnan(stored.mean("a")) and np.isnan(stored.share_below_zero("a"))


@pytest.mark.parametrize(
    "name", ["run[1]", "run*", "run?", "[!a]", "score=7", "seed=1,ids=[1,2]", "a\\b", "~", 'it\'s "x"']
)
def test_a_file_is_read_whatever_its_folder_is_called(name, connection, tmp_path, monkeypatch):
    for value, folder_name in enumerate(["run1", "runs", "b", "ab", "seed=1,ids=1", name]):
        (tmp_path / folder_name).mkdir()
        pq.write_table(pa.table({"score": [float(value)]}), tmp_path / folder_name / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / name, type(tmp_path)(name)):
        assert connection.sql(read_file(folder / "rows.parquet")).fetchall() == [(5.0,)]
        write_query(connection, f"FROM {read_file(folder / 'rows.parquet')}", folder / "copy.parquet")
        two_files = read_files([folder / "rows.parquet", folder / "copy.parquet"])
        assert connection.sql(two_files).fetchall() == [(5.0,), (5.0,)]
