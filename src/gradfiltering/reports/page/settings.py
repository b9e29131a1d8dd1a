"""Settings of a run's page, apart from what draws it, which takes long to import."""

from collections.abc import Sequence
from typing import Literal

from gradfiltering.options import NonNegativeInt, options


@options
class PageSettings:
    """Content of a run's page.

    Attributes:
        page: whether to write one.
        rows: number of rows it holds with their text, or `all`.
        figures: whether to write the charts as PNG and SVG files too.
        heldout_norms: measure gradient norms of the held-out rows at the late snapshot, for the chart of V_t against
            their losses; else losses alone, half of the work.
        tuning: folders of the sweeps in which the settings were found that this run reports on.
    """

    page: bool = True
    rows: NonNegativeInt | Literal["all"] = 5000
    figures: bool = True
    heldout_norms: bool = False
    tuning: Sequence[str] = ()
