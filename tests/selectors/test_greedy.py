import numpy as np

from gradfiltering.selectors.greedy import FIRST_CANDIDATES, lazy_argmax


def test_finds_the_best_value_below_loose_bounds():
    rng = np.random.default_rng(0)
    for count in (1, 5, FIRST_CANDIDATES, 500):
        gains = rng.uniform(0, 1, count)
        values = gains - rng.uniform(0, 0.1, count)
        bounds = gains + rng.uniform(0, 0.5, count)
        best, value = lazy_argmax(bounds, lambda rows, v=values: v[rows])
        assert best == int(np.argmax(values)) and value == values.max()


def test_among_equals_the_first_is_taken():
    flat = np.ones(400)
    best, _ = lazy_argmax(flat.copy(), lambda rows: flat[rows])
    assert best == 0


def test_looks_at_few_when_bounds_are_tight():
    gains = np.random.default_rng(1).uniform(0, 1, 10_000)
    looked: list[int] = []

    def evaluate(rows):
        looked.extend(rows.tolist())
        return gains[rows]

    best, _ = lazy_argmax(gains.copy(), evaluate)
    assert best == int(np.argmax(gains)) and len(looked) == FIRST_CANDIDATES


def test_nothing_to_choose():
    best, value = lazy_argmax(np.full(3, -np.inf), lambda rows: rows * 1.0)
    assert (best, value) == (-1, -np.inf)
