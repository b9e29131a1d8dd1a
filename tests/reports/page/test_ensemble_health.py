"""Health of the ensemble: closed cases, and against slow and obvious twins."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from gradfiltering.reports.page import ensemble_health as health
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.requests import EpochLog
from gradfiltering.scorers.gradient_statistics import gradient_statistics
from gradfiltering.scorers.gsnr import GSNR
from tests.reports.page.runs import plain_rows, write_bare, write_chosen, write_log
from tests.support.gradient_logs import write_epoch


def scored(folder, norms, count):
    """A run whose log is `norms` (epoch -> [M, N]), scored by G-SNR."""
    rows = plain_rows(count)
    write_bare(folder, rows)
    for epoch, norm in norms.items():
        log = EpochLog(np.arange(count), norm, norm, np.ones(count, np.int32))
        write_epoch(folder / "gradient_log", log, range(len(norm)), epoch)
    early, late = (norms[epoch].astype(np.float32) for epoch in (1, 2))
    score = GSNR(1e-8, 0).formula(gradient_statistics(early, late, 0))
    write_chosen(folder, rows, np.argsort(-score)[: count // 4].tolist(), score)
    return RunFiles(folder)


def test_stability_equals_a_plain_loop(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    early = rng.lognormal(0, 0.5, (4, 40))
    late = early * rng.uniform(0.3, 1.0, (4, 40))
    run = scored(tmp_path / "run", {1: early, 2: late}, 40)
    draws = [np.array([0, 1, 1, 3]), np.array([2, 3, 0, 0]), np.array([0, 1, 2, 3])]
    monkeypatch.setattr(health, "RESAMPLES", len(draws))
    waiting = iter(draws)
    monkeypatch.setattr(health, "draw_members", lambda rng, members: next(waiting))
    found = health.measure_stability(run)

    early, late = early.astype(np.float32).astype(float), late.astype(np.float32).astype(float)

    def score(members):
        values = []
        for row in range(40):
            s = sum(early[m, row] for m in members) / len(members)
            t = sum(late[m, row] for m in members) / len(members)
            v = sum((late[m, row] - t) ** 2 for m in members) / len(members)
            values.append((s - t) / (s + 1e-8) / (v + 1e-8))
        return values

    own = score([0, 1, 2, 3])
    best = sorted(range(40), key=lambda row: -own[row])
    correlations, overlaps, kept = [], [], np.zeros(40)
    for drawn in draws:
        other = score(drawn)
        theirs = sorted(range(40), key=lambda row: -other[row])
        correlations.append(spearmanr(own, other)[0])
        overlaps.append(len(set(best[:20]) & set(theirs[:20])) / 20)
        kept[theirs[:10]] += 1
    assert found.correlation.value == pytest.approx(np.median(correlations))
    assert found.correlation.low == pytest.approx(np.quantile(correlations, 0.025))
    assert health.TOP_SHARES[-1] == 0.5 and found.overlap[-1].value == pytest.approx(np.median(overlaps))
    np.testing.assert_allclose(found.reselected_share, kept / 3)


def test_drawn_members_are_never_all_the_same():
    rng = np.random.default_rng(0)
    assert all(len(set(health.draw_members(rng, 2).tolist())) == 2 for _ in range(50))


def test_heldout_correlation_is_spearmans(whole):
    run = RunFiles(whole)
    late = run.folder.read_gradient_log(heldout=True).epoch(2)
    expected = spearmanr(late.grad_norm.astype(float).var(0), late.loss.mean(0))[0]
    assert f"Spearman {expected:+.2f} [" in health.draw_heldout(run).reading


def test_heldout_losses_without_norms_draw_nothing(tmp_path):
    run = scored(tmp_path / "run", {1: np.ones((2, 4)), 2: np.ones((2, 4))}, 4)
    losses = np.arange(1.0, 9.0).reshape(2, 4)
    for norms, is_drawn in ((np.full((2, 4), np.nan), False), (np.square(losses), True)):
        log = EpochLog(np.arange(4), norms, losses, np.ones(4, np.int32))
        write_epoch(run.path / "gradient_log_heldout", log, range(2), 2)
        assert (health.draw_heldout(run) is not None) == is_drawn


def test_disagreement_is_variance_over_square(tmp_path):
    norm = np.stack([np.full(4, 1.0), np.full(4, 3.0)])
    run = scored(tmp_path / "run", {1: norm, 2: norm * 0.5}, 4)
    chart = health.draw_collapse(run)
    assert chart.data["y"].tolist() == pytest.approx([0.25, 0.25]), "V = 1, G = 2"
    assert "limit 0.005" in str(chart.specification())


def test_trajectories_keep_distances_that_lie_in_a_plane(whole, monkeypatch):
    run = RunFiles(whole)
    sketch = np.zeros((6, 64))
    sketch[:, :2] = [[0, 0], [3, 0], [3, 4], [0, 0], [0, 1], [0, 2]]
    states = {"member": [0, 0, 0, 1, 1, 1], "step": [0, 1, 2, 2, 1, 0], "sketch": list(sketch)}
    monkeypatch.setattr(run.folder, "read_trajectory", lambda: pd.DataFrame(states))
    chart = health.draw_trajectories(run)
    first, second = (chart.data[chart.data["series"] == name] for name in ("member 0", "member 1"))
    assert np.hypot(*(first[["x", "y"]].iloc[2] - first[["x", "y"]].iloc[0])) == pytest.approx(5, rel=1e-3)
    assert [text.rsplit(" ", 1)[1] for text in second["hover"]] == ["0", "1", "2"], "in the order of steps"
    assert "100%" in chart.reading


def test_one_member_or_another_scorer_has_no_stability(tmp_path, bare):
    assert health.measure_stability(RunFiles(bare)) is None
    write_log(bare, 12, members=1)
    rows = plain_rows(12)
    write_chosen(bare, rows, [0], np.arange(12.0))
    assert health.measure_stability(RunFiles(bare)) is None and health.draw_collapse(RunFiles(bare)) is None


@pytest.mark.parametrize(
    "target", ["os.system", "gradfiltering.scorers.random.RandomScorer", "gradfiltering.scorers.x"]
)
def test_only_gradient_scorers_of_the_project_are_built(bare, target):
    config = yaml.safe_load((bare / "config.yaml").read_text())
    config["scorer"] = {"_target_": target, "command": "true"}
    (bare / "config.yaml").write_text(yaml.safe_dump(config))
    assert health.build_gradient_scorer(RunFiles(bare)) is None
