import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.scorers.gsnr_rank import RankGSNR
from tests.reference import scores as reference

RTOL = 1e-9


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_agrees_with_ranks_made_one_by_one(weight, norms, evidence):
    found = RankGSNR(1e-8, 0, weight).score(evidence(*norms)).score
    drop = reference.normalized_drop(*(norm.tolist() for norm in norms), 1e-8, 0)
    spread = reference.relative_variance(*(norm.tolist() for norm in norms), 1e-8, 0)
    ids = list(range(len(drop)))
    up, steady = reference.ranks(ids, drop), reference.ranks(ids, [-value for value in spread])
    count = len(ids)
    expected = [
        (1 - weight) * (count + 1 - a) / count + weight * (count + 1 - b) / count
        for a, b in zip(up, steady, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_more_agreement_is_never_worse_even_where_norms_rise(evidence):
    """What turns G-SNR over: of two equal rises, the one the members agree on must not score lower."""
    early, late = [[1.0, 1.0], [1.0, 1.0]], [[1.1, 1.4], [1.3, 1.0]]
    agreed, disputed = RankGSNR(1e-8, 0, 0.5).score(evidence(early, late)).score
    assert agreed > disputed


def test_scale_of_a_row_does_not_matter(norms, evidence):
    stretch = np.asarray([1, 2, 4, 8, 0.5, 0.25, 1], dtype=np.float32)
    scorer = RankGSNR(1e-12, 0, 0.5)
    scaled = scorer.score(evidence(*(norm * stretch for norm in norms))).score
    assert np.array_equal(scaled, scorer.score(evidence(*norms)).score)


def test_settings_and_members(norms, evidence):
    with pytest.raises(UserError, match="agreement must be a number in"):
        RankGSNR(1e-8, 0, 1.5)
    with pytest.raises(UserError, match="needs the variance over members"):
        RankGSNR(1e-8, 0, 0.5).score(evidence(*(norm[:1] for norm in norms)))
