from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.context import EnsembleReport
from gradfiltering.methods.diagnostics import (
    BELOW_ZERO,
    Limits,
    describe_negative_scores,
    diagnose_ensemble,
    diagnose_score_preference,
    diagnose_sources,
    spearman,
)
from gradfiltering.requests import (
    EpochLog,
    Evidence,
    GradientLog,
    GradientLogPair,
    LossMeasurement,
    ResponseLosses,
    ResponseLossPair,
)  # fmt: skip
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.learnability import Learnability
from gradfiltering.scorers.raw_drop import RawDrop

EPOCHS = SnapshotPair(1, 2)
RTOL = 1e-6  # logged norms are float32
QUIET = Limits(
    positive_drop_share=0.0, median_relative_drop=-np.inf, relative_variance=0.0, update_ratio=np.inf,
    negative_selected_share=1.0, length_correlation=1.0, member_agreement=-1.0, source_spread=0.0, easiness=0.0,
    bootstrap=200, confidence=0.95,
)  # fmt: skip
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


def trained(update_ratio=0.1, heldout=(1.8, 1.5)) -> EnsembleReport:
    heldout_loss = {} if heldout is None else dict(zip((1, 2), heldout, strict=True))
    ratios = {1: [0.01, 0.03], 2: [update_ratio] * 2}
    return EnsembleReport(snapshots=EPOCHS, members=2, update_ratios=ratios, heldout_losses=heldout_loss)


def ensemble(log, limits=QUIET, bare=2.0, **fields):
    return diagnose_ensemble(log, EPOCHS, trained(**fields), LossMeasurement(np.ones(4), bare), limits)


class TestOfEnsemble:
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
        assert found["heldout_loss"] == {"bare": 2.0, "1": 1.8, "2": 1.5}

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

    def test_one_member_has_neither_variance_nor_agreement_and_no_warning_of_them(self, log):
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
             ["epochs=e2_e4", "ensemble.lr", "init_b_std", "scorer=inverse_variance"]),
            ("median_relative_drop", 0.27, 0.28, False, "median relative drop +0.271", ["ensemble.lr"]),
            ("relative_variance", 0.0199, 0.0201, False, "V/G² is 0.0200 at epoch 2", ["ensemble.m", "init_b_std"]),
            ("update_ratio", 0.09, 0.11, True, "grown to 0.10 of the frozen weights (limit 0.09)",
             ["lower ensemble.lr", "weight_decay"]),
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
        assert f"Spearman {agreement:.2f} only" in warning and "raise ensemble.m" in warning

    @pytest.mark.parametrize(
        ("bare", "heldout", "warns"),
        [
            (2.0, (1.0, 1.99), False), (2.0, (1.0, 2.0), True), (2.0, (1.0, 2.5), True), (None, (1.0, 2.5), False),
            (2.0, None, False), (2.0, (1.0, float("nan")), True),
        ],
    )  # fmt: skip
    def test_a_proxy_that_learned_nothing_is_reported(self, bare, heldout, warns, log):
        warnings = ensemble(log(), bare=bare, heldout=heldout).warnings
        assert len(warnings) == int(warns)
        assert not warns or ("held-out loss did not fall" in warnings[0] and "ensemble.lr" in warnings[0])


class TestSpearman:
    def test_agrees_with_scipy_on_ties(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            first, second = rng.integers(0, 6, 30).astype(float), rng.normal(size=30)
            np.testing.assert_allclose(spearman(first, second), spearmanr(first, second).statistic, rtol=1e-12)

    def test_is_unknown_where_a_side_does_not_vary(self):
        assert spearman(np.ones(5), np.arange(5.0)) is None and spearman(np.arange(5.0), np.ones(5)) is None
        assert spearman(np.arange(2.0), np.arange(2.0)) is None


EXAMPLES = SimpleNamespace(example_ids=np.asarray([0, 2, 3, 5, 6]), response_tokens=np.asarray([10, 8, 6, 4, 2]))
BARE = LossMeasurement(np.asarray([2.0, 2.0, 2.0, 1.0, 3.0]), None)
NORMS = {"g_early": np.arange(5.0), "g_late": np.ones(5)}


def scores(values, **columns):
    return Scores(EXAMPLES.example_ids, np.asarray(values, dtype=float), columns)


class TestOfSelection:
    def test_closed_form(self):
        found = diagnose_score_preference(EXAMPLES, [2, 5], scores([3, 2, 1, -1, 0], **NORMS), BARE, QUIET).values
        assert found["response_tokens"] == {"pool": 6.0, "selected": 6.0}
        assert found["negative_selected_share"] == 0.5
        assert found["easiness"] == 0.75
        np.testing.assert_allclose(
            found["score_spearman"]["response_tokens"],
            spearmanr([3, 2, 1, -1, 0], [10, 8, 6, 4, 2]).statistic,
            rtol=RTOL,
        )
        np.testing.assert_allclose(
            found["score_spearman"]["bare_loss"], spearmanr([3, 2, 1, -1, 0], BARE.row_losses).statistic, rtol=RTOL
        )

    def test_correlation_with_the_statistics_behind_the_score(self):
        columns = {"g_late": np.asarray([5.0, 4, 3, 2, 1]), "variance_late": np.full(5, np.nan)}
        found = diagnose_score_preference(EXAMPLES, [0], scores([1, 2, 3, 4, 5], **columns), BARE, QUIET).values[
            "score_spearman"
        ]
        np.testing.assert_allclose(found["g_late"], -1.0, rtol=RTOL)
        assert "variance_late" not in found, "one member's variance is unknown"

    def test_without_scores_or_bare_losses_only_what_is_known_is_said(self):
        found = diagnose_score_preference(
            EXAMPLES, [0, 2], None, None, replace(QUIET, easiness=9.0, length_correlation=0.0)
        )
        assert set(found.values) == {"response_tokens"} and found.warnings == []

    @pytest.mark.parametrize(
        ("limit", "silent", "loud", "message", "remedies"),
        [
            ("negative_selected_share", 0.5, 0.49, "50% of the chosen rows have a negative score (limit 49%)",
             ["Lower selector.fraction", "epoch pair"]),
            ("length_correlation", 0.91, 0.89, "follows response length (Spearman +0.90, limit ±0.89)",
             ["another scorer"]),
            ("easiness", 0.74, 0.76, "trivially easy: their loss under the bare proxy is 0.75",
             ["raise selector.fraction", "scorer=random"]),
        ],
    )  # fmt: skip
    def test_each_warning_comes_when_its_limit_is_crossed(self, limit, silent, loud, message, remedies):
        given = scores([3, 2, 1, -1, 0], **NORMS)
        assert (
            diagnose_score_preference(EXAMPLES, [2, 5], given, BARE, replace(QUIET, **{limit: silent})).warnings == []
        )
        (warning,) = diagnose_score_preference(EXAMPLES, [2, 5], given, BARE, replace(QUIET, **{limit: loud})).warnings
        assert message in warning and all(remedy in warning for remedy in remedies), warning

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (("g_early", "g_late", "variance_late"), "their norms rose"),
            (("loss_early", "loss_late"), "loss on them rose"),
            (("ifd", "loss_given_prompt", "loss_alone"), "IFD is not below scorer.keep_below"),
            (("influence_all",), "away from the validation rows"),
        ],
    )
    def test_a_negative_score_is_explained_by_what_its_scorer_measured(self, columns, message):
        given = scores([3, 2, 1, -1, 0], **dict.fromkeys(columns, np.arange(5.0)))
        (warning,) = diagnose_score_preference(
            EXAMPLES, [2, 5], given, BARE, replace(QUIET, negative_selected_share=0.0)
        ).warnings
        assert message in warning and "Lower selector.fraction" in warning
        assert "norms" not in warning or "g_early" in columns

    def test_scorers_leave_the_statistics_that_their_sign_is_explained_by(self, log):
        need = ResponseLosses("plain", 64)
        answers = ResponseLossPair(np.asarray([3.0, 1, 1, 1]), np.full(4, 2.0), {})
        logs, tokens = log(late=[[1.0, 2.0, 5.0, 3.0]] * 2), np.full(4, 3)
        evidence = Evidence(np.arange(4), 0, tokens, tokens, None, {GradientLog(): logs, need: answers})
        scorers = (RawDrop(1e-8, 0), Learnability(), IFD("perplexity", "plain", 64, 1.0))
        found = [scorer.score(evidence) for scorer in scorers]
        assert all((one.score < 0).any() for one in found), "this example has a negative score under each of them"
        assert [describe_negative_scores(one) for one in found] == list(BELOW_ZERO.values())

    @pytest.mark.parametrize("columns", [(), ("bare_perplexity",), ("ifd", "learnability")])
    def test_a_sign_that_says_nothing_is_not_reported(self, columns):
        """Of lengths, of ranks under negative weights, of the middle of the perplexities."""
        given = scores([3, 2, 1, -1, 0], **dict.fromkeys(columns, np.arange(5.0)))
        found = diagnose_score_preference(EXAMPLES, [2, 5], given, BARE, replace(QUIET, negative_selected_share=0.0))
        assert "negative_selected_share" not in found.values and found.warnings == []

    def test_short_rows_are_reported_as_long_ones_are(self):
        limits = replace(QUIET, length_correlation=0.7)
        (warning,) = diagnose_score_preference(EXAMPLES, [2], scores([1, 2, 3, 4, 5]), BARE, limits).warnings
        assert "Spearman -1.00" in warning


def test_sources_compare_the_spread_of_the_subset_with_the_pools():
    sources = ["a", "b", "c", "d"] * 5
    even = diagnose_sources(sources, [0, 1, 2, 3], QUIET).values["sources"]
    assert even["effective"] == pytest.approx(1.0) and even["share"]["a"] == {"pool": 0.25, "selected": 0.25}
    found = diagnose_sources(sources, [0, 4, 8], replace(QUIET, source_spread=0.26))
    assert found.values["sources"]["effective"] == pytest.approx(0.25), "one of four even sources"
    assert len(found.warnings) == 1 and "25%" in found.warnings[0] and "scorer=random" in found.warnings[0]
    assert diagnose_sources(sources, [0, 4, 8], replace(QUIET, source_spread=0.24)).warnings == []
    assert diagnose_sources(None, [0], QUIET).values == {}
    assert diagnose_sources([str(n) for n in range(500)], [0], QUIET).values == {}, "ids are not sources"
