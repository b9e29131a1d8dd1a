import numpy as np
import pytest

from gradfiltering.distributed.row_measurements import Column, RowMeasurements, WorkShare

EXAMPLE_IDS = np.array([2, 5, 9], dtype=np.int64)


def test_batches_in_any_order_come_out_by_example_id():
    measurements = RowMeasurements(EXAMPLE_IDS, {"loss": Column(), "projection": Column((2,), np.float32)}, members=2)
    measurements.record(np.array([9, 2]), loss=np.array([[3.0, 1.0], [6.0, 4.0]]), projection=np.ones((2, 2, 2)))
    measurements.record(np.array([5]), loss=np.array([[2.0], [5.0]]), projection=np.zeros((2, 1, 2)))
    tables = measurements.gather()
    np.testing.assert_array_equal(tables["loss"], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert tables["projection"].dtype == np.float32
    np.testing.assert_array_equal(tables["projection"][0, :, 0], [1, 0, 1])


def test_members_may_see_different_rows():
    measurements = RowMeasurements(EXAMPLE_IDS, ("loss",), members=2)
    measurements.record(np.array([[2, 5, 9], [9, 5, 2]]), loss=np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(measurements.gather()["loss"], [[1, 2, 3], [1, 2, 3]])


def test_one_member_needs_no_axis_of_its_own():
    measurements = RowMeasurements(EXAMPLE_IDS, ("loss",))
    measurements.record(EXAMPLE_IDS, loss=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(measurements.gather()["loss"], [[1, 2, 3]])


@pytest.mark.parametrize(("ids", "message"), [([2, 5], "1 are missing"), ([2, 5, 9, 2], "1 were made more than once")])
def test_rows_missing_or_measured_twice_are_a_defect(ids, message):
    measurements = RowMeasurements(EXAMPLE_IDS, ("loss",))
    for example_id in ids:
        measurements.record(np.array([example_id]), loss=np.ones(1))
    with pytest.raises(RuntimeError, match=message):
        measurements.gather()


def test_restored_measurements_go_on_where_they_stopped():
    first = RowMeasurements(EXAMPLE_IDS, ("loss",))
    first.record(np.array([5]), loss=np.array([7.0]))
    second = RowMeasurements(EXAMPLE_IDS, ("loss",))
    second.restore(first.state())
    second.record(np.array([2, 9]), loss=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(second.gather()["loss"], [[1, 7, 2]])


def test_shares_hold_each_piece_exactly_once():
    pieces = list(range(7))
    shares = [WorkShare(rank, 3)(pieces) for rank in range(3)]
    assert sorted(piece for share in shares for piece in share) == pieces
