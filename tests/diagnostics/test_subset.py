from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from gradfiltering.diagnostics.subset import (
    MEANING_BELOW_ZERO,
    diagnose_selection,
    diagnose_sources,
    meaning_below_zero,
)
from gradfiltering.requests import (
    EpochLog,
    Evidence,
    GradientLog,
    GradientLogPair,
    LossMeasurement,
    ResponseLosses,
    ResponseLossPair,
)
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.learnability import Learnability
from gradfiltering.scorers.raw_drop import RawDrop
from tests.diagnostics.limits import QUIET

RTOL = 1e-12
TOKENS = np.asarray([10, 8, 6, 4, 2])
EVIDENCE = Evidence(np.asarray([0, 2, 3, 5, 6]), 0, TOKENS, TOKENS)
BASE_LOSSES = LossMeasurement(np.asarray([2.0, 2.0, 2.0, 1.0, 3.0]), None)
NORMS = {"g_early": np.arange(5.0), "g_late": np.ones(5)}


def scores(values, **columns):
    return Scores(EVIDENCE.example_ids, np.asarray(values, dtype=float), columns)


class TestSelectionDiagnostics:
    def test_closed_form(self):
        found = diagnose_selection(EVIDENCE, [2, 5], scores([3, 2, 1, -1, 0], **NORMS), BASE_LOSSES, QUIET).values
        assert found["response_tokens"] == {"pool": 6.0, "selected": 6.0}
        assert found["negative_selected_share"] == 0.5
        assert found["easiness"] == 0.75
        np.testing.assert_allclose(
            found["score_spearman"]["response_tokens"],
            spearmanr([3, 2, 1, -1, 0], [10, 8, 6, 4, 2]).statistic,
            rtol=RTOL,
        )
        np.testing.assert_allclose(
            found["score_spearman"]["base_loss"],
            spearmanr([3, 2, 1, -1, 0], BASE_LOSSES.row_losses).statistic,
            rtol=RTOL,
        )

    @pytest.mark.parametrize(("given", "is_constant"), [([0, 0, 0, 0, 0], True), ([0, 0, 0, 0, 1e-300], False)])
    def test_equal_scores_are_named(self, given, is_constant):
        found = diagnose_selection(EVIDENCE, [2, 5], scores(given), BASE_LOSSES, QUIET)
        assert found.values["score_is_constant"] is is_constant
        assert any("every row has the same score" in text for text in found.warnings) is is_constant

    def test_correlation_with_the_statistics_behind_the_score(self):
        columns = {"g_late": np.asarray([5.0, 4, 3, 2, 1]), "variance_late": np.full(5, np.nan)}
        given = scores([1, 2, 3, 4, 5], **columns)
        found = diagnose_selection(EVIDENCE, [0], given, BASE_LOSSES, QUIET).values["score_spearman"]
        np.testing.assert_allclose(found["g_late"], -1.0, rtol=RTOL)
        assert "variance_late" not in found, "one member's variance is unknown"

    def test_without_scores_or_base_losses_only_what_is_known_is_said(self):
        found = diagnose_selection(EVIDENCE, [0, 2], None, None, replace(QUIET, easiness=9.0, length_correlation=0.0))
        assert set(found.values) == {"response_tokens"} and found.warnings == []

    @pytest.mark.parametrize(
        ("limit", "silent", "loud", "message", "remedies"),
        [
            ("negative_selected_share", 0.5, 0.49, "50% of the chosen rows have a negative score (limit 49%)",
             ["Select fewer rows", "pair of epochs"]),
            ("length_correlation", 0.91, 0.89, "follows response length (Spearman +0.90, limit ±0.89)",
             ["another scorer"]),
            ("easiness", 0.74, 0.76, "trivially easy: their loss under the base model is 0.75",
             ["select more rows", "random scores"]),
        ],
    )  # fmt: skip
    def test_each_warning_comes_when_its_limit_is_crossed(self, limit, silent, loud, message, remedies):
        given = scores([3, 2, 1, -1, 0], **NORMS)
        assert (
            diagnose_selection(EVIDENCE, [2, 5], given, BASE_LOSSES, replace(QUIET, **{limit: silent})).warnings == []
        )
        (warning,) = diagnose_selection(EVIDENCE, [2, 5], given, BASE_LOSSES, replace(QUIET, **{limit: loud})).warnings
        assert message in warning and all(remedy in warning for remedy in remedies), warning

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (("g_early", "g_late", "variance_late"), "their norms rose"),
            (("loss_early", "loss_late"), "loss on them rose"),
            (("ifd", "loss_given_prompt", "loss_alone"), "IFD is not below the scorer's keep_below"),
            (("influence_all",), "away from the validation rows"),
        ],
    )
    def test_a_negative_score_is_explained_by_what_its_scorer_measured(self, columns, message):
        given = scores([3, 2, 1, -1, 0], **dict.fromkeys(columns, np.arange(5.0)))
        limits = replace(QUIET, negative_selected_share=0.0)
        (warning,) = diagnose_selection(EVIDENCE, [2, 5], given, BASE_LOSSES, limits).warnings
        assert message in warning and "Select fewer rows" in warning
        assert "norms" not in warning or "g_early" in columns

    def test_scorers_leave_the_statistics_that_explain_their_sign(self):
        need = ResponseLosses("plain", 64)
        answers = ResponseLossPair(np.asarray([3.0, 1, 1, 1]), np.full(4, 2.0), {})
        tokens = np.full(4, 3)
        early, late = np.asarray([[2.0, 3.0, 1.0, 4.0]] * 2), np.asarray([[1.0, 2.0, 5.0, 3.0]] * 2)
        logs = GradientLogPair(
            EpochLog(np.arange(4), early, early, tokens), EpochLog(np.arange(4), late, late / 2, tokens)
        )
        evidence = Evidence(np.arange(4), 0, tokens, tokens, None, {GradientLog(): logs, need: answers})
        scorers = (RawDrop(1e-8, 0), Learnability(), IFD("perplexity", "plain", 64, 1.0))
        found = [scorer.score(evidence) for scorer in scorers]
        assert all((one.score < 0).any() for one in found), "this example has a negative score under each of them"
        assert [meaning_below_zero(one.columns) for one in found] == list(MEANING_BELOW_ZERO.values())

    @pytest.mark.parametrize("columns", [(), ("base_perplexity",), ("ifd", "learnability")])
    def test_a_sign_that_says_nothing_is_not_reported(self, columns):
        """Of lengths, of ranks under negative weights, of the middle of the perplexities."""
        given = scores([3, 2, 1, -1, 0], **dict.fromkeys(columns, np.arange(5.0)))
        found = diagnose_selection(EVIDENCE, [2, 5], given, BASE_LOSSES, replace(QUIET, negative_selected_share=0.0))
        assert "negative_selected_share" not in found.values and found.warnings == []

    def test_short_rows_are_reported_as_long_ones_are(self):
        limits = replace(QUIET, length_correlation=0.7)
        (warning,) = diagnose_selection(EVIDENCE, [2], scores([1, 2, 3, 4, 5]), BASE_LOSSES, limits).warnings
        assert "Spearman -1.00" in warning


def test_sources_compare_the_spread_of_the_subset_with_the_pools():
    sources = ["a", "b", "c", "d"] * 5
    even = diagnose_sources(sources, [0, 1, 2, 3], QUIET).values["sources"]
    assert even["effective"] == pytest.approx(1.0) and even["share"]["a"] == {"pool": 0.25, "selected": 0.25}
    found = diagnose_sources(sources, [0, 4, 8], replace(QUIET, source_spread=0.26))
    assert found.values["sources"]["effective"] == pytest.approx(0.25), "one of four even sources"
    assert len(found.warnings) == 1 and "25%" in found.warnings[0] and "random scores" in found.warnings[0]
    assert diagnose_sources(sources, [0, 4, 8], replace(QUIET, source_spread=0.24)).warnings == []
    assert diagnose_sources(None, [0], QUIET).values == {}
    assert diagnose_sources([str(n) for n in range(500)], [0], QUIET).values == {}, "ids are not sources"
