import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import BaseModelLosses, GradientLog, ResponseLosses, ResponseLossPair
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.length import LengthScorer
from gradfiltering.scorers.loss import LossScorer
from gradfiltering.scorers.rank_fusion import RankFusion

PARTS = {"loss": LossScorer(), "length": LengthScorer()}
NEED = ResponseLosses("plain", 64)


def test_is_the_weighted_mean_of_ranks(measured):
    given = measured(4, response_tokens=[1, 2, 3, 4], losses=np.asarray([0.4, 0.1, 0.3, 0.2]))
    scores = RankFusion(PARTS, {"loss": 3.0, "length": 1.0}).score(given)
    np.testing.assert_allclose(scores.score, [(3 * 4 + 1) / 16, (3 + 2) / 16, (3 * 3 + 3) / 16, (3 * 2 + 4) / 16])
    assert scores.columns["loss"].tolist() == [0.4, 0.1, 0.3, 0.2] and set(scores.columns) == {"loss", "length"}


def test_a_negative_weight_turns_its_part_over(measured):
    given = measured(3, losses=np.asarray([0.4, 0.1, 0.3]))
    assert RankFusion({"loss": LossScorer()}, {"loss": -1.0}).score(given).rank.tolist() == [3, 1, 2]


def test_units_do_not_matter(measured):
    losses = np.random.default_rng(0).uniform(0, 3, 30)
    first, second = (
        RankFusion(PARTS, {"loss": 1.0, "length": 1.0}).score(measured(30, response_tokens=np.arange(30), losses=some))
        for some in (losses, 1000 * losses**3)
    )
    assert np.array_equal(first.score, second.score)


def test_rows_that_a_part_cannot_score_are_unscored(measured):
    pairs = ResponseLossPair(np.asarray([1.0, np.nan, 1.0]), np.asarray([2.0, np.nan, 3.0]), {1: "one token"})
    given = measured(3, response_tokens=[1, 2, 3], results={NEED: pairs})
    parts = {"ifd": IFD("loss", "plain", 64, 1.0), "length": LengthScorer()}
    scores = RankFusion(parts, {"ifd": 1.0, "length": 1.0}).score(given)
    assert scores.example_ids.tolist() == [0, 4] and scores.unscored == [(2, "one token")]


def test_needs_and_refuses_what_its_parts_do():
    scorer = RankFusion({"gsnr": GSNR(1e-8, 0), "loss": LossScorer()}, {"gsnr": 1.0, "loss": 1.0})
    assert scorer.requests == {GradientLog(), BaseModelLosses()}
    with pytest.raises(UserError, match="needs the variance over members"):
        scorer.check_members(1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"loss": 1.0}, "name the same"), ({"loss": 0.0, "length": 0.0}, "all weights are 0")],
)
def test_weights_must_fit(weights, message):
    with pytest.raises(UserError, match=message):
        RankFusion(PARTS, weights)
