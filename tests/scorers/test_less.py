import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import CheckpointGradients, Evidence
from gradfiltering.scorers.less import BLOCK_ROWS, LESS, take_turns, task_influences
from tests.reference import less as reference

RTOL = 1e-6
IDS = np.asarray([0, 2, 3, 7, 8, 11, 20, 21, 30])
TOKENS = np.full(len(IDS), 4)
TASKS, RATES = ["b", "a", "b", "a", "a"], [2e-5, 1e-5, 5e-6]


def scorer(**changes) -> LESS:
    usual = {"checkpoints": [1, 2, 4], "members": 1, "validation": None, "task": "auto", "combine": "max"}
    return LESS(**{**usual, **changes})


def gradients(members=1, seed=0, tasks=TASKS, rates=RATES) -> CheckpointGradients:
    rng = np.random.default_rng(seed)
    draw = lambda count: [  # noqa: E731
        [rng.normal(size=(count, 6)).astype(np.float32) for _ in range(members)] for _ in rates
    ]
    return CheckpointGradients(draw(len(IDS)), draw(len(tasks)), np.asarray(tasks), list(rates), {})


def scored(by: LESS, found: CheckpointGradients):
    return by.score(Evidence(IDS, 0, TOKENS, TOKENS, None, {by.gradients_request: found}))


def one_by_one(found: CheckpointGradients, member=0):
    rows, validation = (
        [one[member].astype(float) for one in part] for part in (found.row_directions, found.validation_gradients)
    )  # fmt: skip
    return np.asarray(reference.influences(rows, validation, found.validation_tasks.tolist(), found.learning_rates))


def test_score_equals_cosines_taken_one_by_one():
    found = gradients()
    scores, expected = scored(scorer(), found), one_by_one(found)
    np.testing.assert_allclose(scores.score, expected.max(1), rtol=RTOL)
    assert scores.example_ids.tolist() == IDS.tolist() and set(scores.columns) == {"influence_a", "influence_b"}
    np.testing.assert_allclose(scores.columns["influence_b"], expected[:, 1], rtol=RTOL)


def test_members_are_averaged():
    found = gradients(members=2)
    expected = (one_by_one(found, 0) + one_by_one(found, 1)) / 2
    np.testing.assert_allclose(scored(scorer(members=2), found).score, expected.max(1), rtol=RTOL)


def test_score_is_1_along_the_validation_gradient_and_minus_1_against():
    aim = np.asarray([[1.0, 2.0, -1.0]])
    rows = np.concatenate([aim * 5, -aim, np.zeros((7, 3))])
    found = CheckpointGradients([[rows]] * 3, [[aim]] * 3, np.asarray(["all"]), RATES, {})
    np.testing.assert_allclose(scored(scorer(), found).score, [1, -1, *[0] * 7], atol=1e-12)


def test_neither_length_nor_blocks_of_rows_matter():
    rng = np.random.default_rng(1)
    rows, validation, tasks = rng.normal(size=(BLOCK_ROWS + 3, 3)), rng.normal(size=(2, 3)), np.asarray([0, 0])
    first = task_influences(rows, validation, tasks)
    scaled = task_influences(rows[::-1] * rng.uniform(1, 9, (len(rows), 1)), validation * 3, tasks)
    np.testing.assert_allclose(scaled[::-1], first, rtol=RTOL)


def test_scale_of_the_rates_does_not_matter_but_their_proportion_does():
    one, doubled = gradients(), gradients(rates=[2 * rate for rate in RATES])
    np.testing.assert_allclose(scored(scorer(), doubled).score, scored(scorer(), one).score, rtol=RTOL)
    alone = gradients(rates=[1.0, 0.0, 0.0])
    only_first = CheckpointGradients(
        alone.row_directions[:1], alone.validation_gradients[:1], alone.validation_tasks, [0.3], {}
    )
    found = scored(scorer(checkpoints=[1]), only_first).score
    np.testing.assert_allclose(scored(scorer(), alone).score, found, rtol=RTOL)


def test_round_robin_serves_every_task_in_turn():
    by_task = np.asarray([[9.0, 0.1], [8.0, 0.2], [7.0, 0.3], [0.0, 0.9]])
    assert take_turns(by_task) == [0, 3, 1, 2]


def test_the_first_k_by_turns_hold_the_best_rows_of_every_task():
    found = gradients()
    by_turns, by_max = scored(scorer(combine="round_robin"), found), scored(scorer(), found)
    assert by_turns.columns.keys() == by_max.columns.keys()
    order = by_turns.order.tolist()
    assert order[0] == np.argmax(by_turns.columns["influence_a"])
    second = by_turns.columns["influence_b"].copy()
    second[order[0]] = -np.inf
    assert order[1] == np.argmax(second)
    assert by_turns.score.max() == 1 and by_turns.score.min() > 0 and len(set(by_turns.score)) == len(IDS)


def test_with_one_task_turns_are_the_plain_order():
    found = gradients(tasks=["all"] * 5)
    by_turns, by_max = scored(scorer(combine="round_robin"), found), scored(scorer(), found)
    assert by_turns.order.tolist() == by_max.order.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": []}, "give different epochs"),
        ({"checkpoints": [0, 1]}, r"checkpoints\[0\] must be a positive whole number"),
        ({"checkpoints": [1, 1]}, "give different epochs"),
        ({"checkpoints": 2}, "checkpoints must be a list"),
        ({"members": 0}, "members must be a positive"),
        ({"combine": "sum"}, "combine must be one of: max, round_robin"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        scorer(**changes)


def test_more_members_than_there_are_is_refused_before_training():
    with pytest.raises(UserError, match="3 members are read, and the ensemble has 2"):
        scorer(members=3).check_members(2)
    scorer(members=2).check_members(2)


def test_tasks_without_number_and_rates_of_zero_are_refused():
    many = [str(number) for number in range(101)]
    with pytest.raises(UserError, match="name 101 tasks, and at most 100"):
        scored(scorer(), gradients(tasks=many))
    with pytest.raises(UserError, match="all of these are 0"):
        scored(scorer(), gradients(rates=[0.0, 0.0, 0.0]))


def test_needs_gradients_at_its_checkpoints_and_nothing_else():
    (need,) = scorer(checkpoints=[4, 1, 2], task="skill").requests
    assert need == scorer(task="skill").gradients_request and need.checkpoints == (1, 2, 4)
    assert scorer(combine="round_robin").gradients_request == scorer().gradients_request
