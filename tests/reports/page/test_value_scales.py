"""Bins and axes hold every value, near or far."""

import numpy as np

from gradfiltering.reports.page.value_scales import SymmetricLog, assign_bins


def test_every_value_is_in_a_bin():
    edges, bins = assign_bins(np.array([0.0, 1.0, 2.0, 2.0]), 4)
    assert np.bincount(bins, minlength=4).tolist() == [1, 0, 1, 2] and edges[0] == 0 and edges[-1] == 2


def test_a_long_tail_goes_into_the_outermost_bin():
    edges, bins = assign_bins(np.append(np.linspace(0, 1, 999), 1e6), 10)
    assert edges[-1] < 2 and len(bins) == 1000 and (bins == 9).sum() >= 100


def test_a_constant_has_a_histogram():
    edges, bins = assign_bins(np.full(5, 2.0), 4)
    assert len(set(bins)) == 1 and edges[0] < 2 < edges[-1]


def test_magnitudes_far_apart_get_a_logarithmic_scale():
    assert SymmetricLog.fit(np.linspace(-1, 1, 100)).unit == 0, "a plain scale will do"
    values = np.array([-(10.0**k) for k in range(-3, 3)] + [10.0**k for k in range(-3, 5)])
    scale = SymmetricLog.fit(values)
    assert scale.unit > 0
    np.testing.assert_allclose(scale.invert(scale.apply(values)), values)
    ticks = scale.tick_values(-100, 1e4)
    assert ticks == sorted(ticks) and len(ticks) > 3 and ticks[0] >= -100 and ticks[-1] <= 1e4
