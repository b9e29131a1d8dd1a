from gradfiltering.selectors.full import FullSelector


def test_takes_every_row_that_can_be_trained_on(ids, scores):
    assert FullSelector().select(ids, 25, None, 0) == ids.tolist()
    assert FullSelector().select(ids, 25, scores, 1) == ids.tolist()
    assert FullSelector.needs == frozenset()
