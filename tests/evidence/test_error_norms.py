"""EL2N equals a computation one row at a time, however the rows are batched."""

import numpy as np
import pytest

from gradfiltering.requests import ErrorNorms
from tests.reference import base_model as reference

RTOL = 1e-4  # float32 forward passes in other batches


@pytest.mark.parametrize("tokens", [1, 100, 100_000])
def test_error_norms_equal_one_row_at_a_time(tokens, base_model, rows, measure, make_context):
    expected = []
    for row in make_context(base_model, rows).examples.table:
        spans = row["supervised"]
        positions = [p for a, b in zip(spans[::2], spans[1::2], strict=True) for p in range(a, b)]
        expected.append(reference.error_norm(base_model.model, row["input_ids"], positions))
    np.testing.assert_allclose(measure(ErrorNorms(), base_model, rows, tokens=tokens), expected, rtol=RTOL)
