"""Token ids of rows."""

from collections.abc import Sequence

from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.requests import RowTokens


class RowTokenMeasurer(Measurer[RowTokens]):
    """Hands out the rows as token ids, prompt and response."""

    request_type = RowTokens

    def measure(self, request: RowTokens, context: MeasurementContext) -> Sequence[Sequence[int]]:
        """Return a view of the rows on disk."""
        token_ids: Sequence[Sequence[int]] = context.examples.table["input_ids"]
        return token_ids
