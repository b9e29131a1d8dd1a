"""Shares of an outcome's variance that the factors of a balanced design explain."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class VarianceShare:
    """Share of the outcome's variance that goes with one factor.

    Attributes:
        factor: name of the factor.
        first_order: explained by the factor by itself, in [0, 1].
        total: explained by the factor and by its interactions with all others, in [0, 1], at least `first_order`.
    """

    factor: str
    first_order: float
    total: float


def share_variance(
    outcomes: Mapping[tuple[Hashable, ...], float], factor_names: Sequence[str]
) -> tuple[VarianceShare, ...]:
    r"""Share the variance of an outcome out over the factors of a full design, each cell weighing the same.

    The first-order share of factor i is \(\mathrm{Var}(\mathrm{E}[Y|x_i]) / \mathrm{Var}(Y)\), the total one
    \(1 - \mathrm{Var}(\mathrm{E}[Y|x_{\sim i}]) / \mathrm{Var}(Y)\) (Sobol', 1993; Homma and Saltelli, 1996). In a full
    design both are sums of squares of the analysis of variance as shares of their total, with nothing estimated
    beyond the levels that were tried. Seeds may be a factor: its total is what chance does. First-order shares sum to 1
    where there is no interaction, and total ones to more than 1 where there is one.

    Args:
        outcomes: outcome of each combination of levels, one level for each factor.
        factor_names: [K] names of the factors, in the order of the levels.

    Returns:
        A share for each factor, in their order.

    Raises:
        ValueError: combinations of levels are missing or have another number of levels, an outcome is not finite, or
            all outcomes are equal.
    """
    factor_count = len(factor_names)
    if not outcomes or any(len(levels) != factor_count for levels in outcomes):
        raise ValueError(f"each outcome needs a level for each of {', '.join(factor_names)}")
    factor_levels = [list(dict.fromkeys(levels[index] for levels in outcomes)) for index in range(factor_count)]
    missing_cells = [cell for cell in product(*factor_levels) if cell not in outcomes]
    if missing_cells:
        raise ValueError(
            f"the design is not full: {len(missing_cells)} combinations of {', '.join(factor_names)} have no outcome, "
            f"first {missing_cells[0]}"
        )
    cells = np.array([outcomes[cell] for cell in product(*factor_levels)], dtype=float)
    if not np.isfinite(cells).all():
        raise ValueError("an outcome is not finite")
    cells = cells.reshape([len(levels) for levels in factor_levels])
    variance = float(cells.var())
    if variance == 0:
        raise ValueError("all outcomes are equal: there is no variance to share out")
    shares = []
    for index, factor_name in enumerate(factor_names):
        other_axes = tuple(axis for axis in range(factor_count) if axis != index)
        first_order = float(cells.mean(axis=other_axes).var()) / variance
        total = 1 - float(cells.mean(axis=index).var()) / variance
        shares.append(VarianceShare(factor_name, first_order, total))
    return tuple(shares)
