from gradfiltering.selectors.random import RandomSelector


def test_draws_the_budget_without_replacement_in_ascending_order(ids, evidence):
    for seed in range(20):
        chosen = RandomSelector(0.4, None).select(evidence(ids, seed), 25, None).example_ids
        assert len(chosen) == 10 and chosen == sorted(set(chosen)) and set(chosen) <= set(ids.tolist())


def test_depends_on_the_seed_and_on_no_score(ids, scores, evidence):
    selector = RandomSelector(None, 6)
    base = selector.select(evidence(ids), 25, None).example_ids
    assert selector.select(evidence(ids), 25, scores).example_ids == base
    assert selector.requests == frozenset() and not selector.uses_scores
    assert any(selector.select(evidence(ids, seed), 25, None).example_ids != base for seed in (1, 2))


def test_every_row_can_be_drawn(ids, evidence):
    drawn = {row for seed in range(60) for row in RandomSelector(0.2, None).draw_rows(ids, 25, seed)}
    assert drawn == set(ids.tolist())
