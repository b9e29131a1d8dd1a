import numpy as np
import torch

from gradfiltering.scorers.influence import adam_direction, influence, round_robin

RTOL = 1e-6
BETAS, EPS = (0.9, 0.999), 1e-8


def test_direction_is_what_adams_own_moments_give():
    """After some real steps, Adam is given one more gradient; its moments then make the direction."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1e-3, betas=BETAS, eps=EPS)
    for _ in range(5):
        weight.grad = torch.randn(12, dtype=torch.float64)
        adam.step()
    before = {name: value.clone() for name, value in adam.state[weight].items()}
    gradient = torch.randn(3, 12, dtype=torch.float64)
    found = adam_direction(gradient, before["exp_avg"], before["exp_avg_sq"], BETAS, EPS)
    for own, direction in zip(gradient, found, strict=True):
        adam.state[weight].update({name: value.clone() for name, value in before.items()})
        weight.grad = own.clone()
        adam.step()
        state = adam.state[weight]
        expected = state["exp_avg"] / torch.sqrt(state["exp_avg_sq"] + EPS)
        torch.testing.assert_close(direction, expected, rtol=RTOL, atol=0)


def test_score_equals_cosines_taken_one_by_one():
    rng = np.random.default_rng(0)
    tasks, rates = np.asarray(["b", "a", "b", "a", "a"]), [2e-5, 1e-5, 5e-6]
    ours = [rng.normal(size=(9, 6)).astype(np.float32) for _ in rates]
    theirs = [rng.normal(size=(5, 6)).astype(np.float32) for _ in rates]
    score, by_task = influence(ours, theirs, tasks, rates)
    for row in range(9):
        expected = []
        for name in ("a", "b"):
            total = 0.0
            for mine, others, rate in zip(ours, theirs, rates, strict=True):
                own = mine[row].astype(float)
                cosines = [
                    own @ other / np.linalg.norm(own) / np.linalg.norm(other)
                    for other in others[tasks == name].astype(float)
                ]
                total += rate * sum(cosines) / len(cosines)
            expected.append(total)
        np.testing.assert_allclose(by_task[row], expected, rtol=RTOL)
        np.testing.assert_allclose(score[row], max(expected), rtol=RTOL)


def test_length_of_a_gradient_does_not_matter():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(4, 3)), rng.normal(size=(2, 3))
    first, _ = influence([ours], [theirs], np.zeros(2), [1.0])
    second, _ = influence([ours * np.asarray([[1], [2], [3], [9]])], [theirs], np.zeros(2), [1.0])
    np.testing.assert_allclose(first, second, rtol=RTOL)


def test_round_robin_serves_every_task_in_turn():
    by_task = np.asarray([[9.0, 0.1], [8.0, 0.2], [7.0, 0.3], [0.0, 0.9]])
    assert round_robin(by_task, 3) == [0, 3, 1]
    assert sorted(round_robin(by_task, 4)) == [0, 1, 2, 3]
