from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from gradfiltering.diagnostics.ensemble import diagnose_ensemble, ensemble_columns
from gradfiltering.diagnostics.row_columns import ArrayColumns
from gradfiltering.requests import EpochLog, GradientLogPair
from tests.diagnostics.limits import QUIET

RTOL = 1e-6  # logged norms are float32
EARLY = [[2.0, 2.0, 1.0, 4.0], [2.0, 4.0, 1.0, 4.0]]
LATE = [[1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 2.0]]  # means: 2 -> 1, 3 -> 2.5, 1 -> 2, 4 -> 2.5


@pytest.fixture
def log():
    def make(early=EARLY, late=LATE) -> GradientLogPair:
        logs = []
        for epoch, norms in ((1, early), (2, late)):
            norms = np.asarray(norms, dtype=np.float32)
            ids, tokens = np.arange(norms.shape[1]), np.full(norms.shape[1], 3, dtype=np.int32)
            logs.append(EpochLog(ids, norms, norms / np.float32(epoch), tokens))
        return GradientLogPair(*logs)

    return make


def ensemble(log, limits=QUIET, update_ratio=0.1):
    ratios = {1: [0.01, 0.03], 2: [update_ratio] * 2}
    return diagnose_ensemble(ArrayColumns(ensemble_columns(log)), 1, 2, ratios, limits)


class TestEnsembleDiagnostics:
    def test_closed_form(self, log):
        found = ensemble(log()).values
        assert found["positive_drop_share"] == 0.75
        np.testing.assert_allclose(found["median_relative_drop"], np.median([0.5, 1 / 6, -1.0, 0.375]), rtol=RTOL)
        # Epoch 2: variances 0, 0.25, 0, 0.25 over squared means 1, 6.25, 4, 6.25.
        assert set(found["relative_variance"]) == {"1", "2"}
        np.testing.assert_allclose(found["relative_variance"]["2"], np.median([0, 0.04, 0, 0.04]), rtol=RTOL)
        np.testing.assert_allclose(found["relative_variance"]["1"], 0.0, atol=0)
        np.testing.assert_allclose(found["update_ratio"]["1"], 0.02, rtol=RTOL)
        np.testing.assert_allclose(found["train_loss"]["2"], np.mean(LATE) / 2, rtol=RTOL)

    def test_agreement_is_the_mean_over_pairs_of_the_members_own_drops(self, log):
        rng = np.random.default_rng(0)
        early, late = (rng.uniform(1, 2, (3, 40)).astype(np.float32) for _ in range(2))
        drops = (early.astype(float) - late) / early.astype(float)
        pairs = [spearmanr(drops[a], drops[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
        np.testing.assert_allclose(ensemble(log(early, late)).values["member_agreement"], np.mean(pairs), rtol=RTOL)

    def test_members_that_rank_alike_agree_fully(self, log):
        early = np.full((3, 5), 2.0)
        late = np.asarray([[1.0, 1.1, 1.2, 1.3, 1.4]] * 3) * np.asarray([[1.0], [0.9], [1.2]])
        np.testing.assert_allclose(ensemble(log(early, late)).values["member_agreement"], 1.0, rtol=RTOL)

    def test_one_member_has_neither_variance_nor_agreement(self, log):
        limits = replace(QUIET, relative_variance=1.0, member_agreement=1.0)
        found = ensemble(log(EARLY[:1], LATE[:1]), limits)
        assert found.values["relative_variance"] == {"1": None, "2": None}
        assert found.values["member_agreement"] is None and found.warnings == []

    def test_gradients_of_zero_leave_numbers_finite(self, log):
        zeros = np.zeros((2, 4))
        found = ensemble(log(zeros, zeros)).values
        assert found["positive_drop_share"] == 0.0 and found["median_relative_drop"] == 0.0
        assert found["relative_variance"] == {"1": 0.0, "2": 0.0}

    def test_within_all_limits_nothing_is_said(self, log):
        assert ensemble(log()).warnings == []

    # Values of the log above: share 0.75, median 0.271, V/G² 0.02 at epoch 2, update 0.1, agreement of the drops.
    @pytest.mark.parametrize(
        ("limit", "below", "above", "warns_below", "message", "remedies"),
        [
            ("positive_drop_share", 0.75, 0.76, False, "75% of examples (limit 76%)",
             ["later pair of epochs", "learning rate", "init_b_std", "inverse variance"]),
            ("median_relative_drop", 0.27, 0.28, False, "median relative drop +0.271", ["learning rate"]),
            ("relative_variance", 0.0199, 0.0201, False, "V/G² is 0.0200 at epoch 2",
             ["number of members", "init_b_std"]),
            ("update_ratio", 0.09, 0.11, True, "grown to 0.10 of the frozen weights (limit 0.09)",
             ["lower the learning rate", "weight decay"]),
        ],
    )  # fmt: skip
    def test_each_warning_comes_when_its_limit_is_crossed(
        self, limit, below, above, warns_below, message, remedies, log
    ):
        silent, loud = (above, below) if warns_below else (below, above)
        assert ensemble(log(), replace(QUIET, **{limit: silent})).warnings == []
        (warning,) = ensemble(log(), replace(QUIET, **{limit: loud})).warnings
        assert message in warning
        assert all(remedy in warning for remedy in remedies), warning

    def test_disagreeing_members_are_reported(self, log):
        agreement = ensemble(log()).values["member_agreement"]
        assert ensemble(log(), replace(QUIET, member_agreement=agreement)).warnings == []
        (warning,) = ensemble(log(), replace(QUIET, member_agreement=agreement + 1e-6)).warnings
        assert f"Spearman {agreement:.2f} only" in warning and "more members" in warning
