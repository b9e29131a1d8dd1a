"""Numbers as the tables of pages, cards and sweeps show them."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number with the given decimals; a missing number is a dash."""
    return "–" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def format_interval(interval: Mapping[str, Any] | None) -> str:
    """Write a value with its interval."""
    if interval is None or interval["value"] is None:
        return "–"
    if interval["low"] is None:
        return format_number(interval["value"])
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
