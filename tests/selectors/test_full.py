from gradfiltering.selectors.full import FullSelector


def test_takes_every_row_that_can_be_trained_on(ids, scores, evidence):
    assert FullSelector().select(evidence(ids), 25, None).example_ids == ids.tolist()
    assert FullSelector().select(evidence(ids, 1), 25, scores).example_ids == ids.tolist()
    assert FullSelector.requests == frozenset() and not FullSelector.uses_scores
