import numpy as np
import pytest
import torch

from gradfiltering.methods.lead.lead_schedule import RoundGradients
from tests.reference import lead as reference


def test_change_is_predicted_from_first_and_last_round():
    gradients = RoundGradients()
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6))).float()
    assert gradients.predict_change(0, 0.1) == 0
    for cluster, mean in zip((0, 1, 0), means, strict=False):
        gradients.add_round(cluster, mean)
    last_gradient = means[2].tolist()
    for cluster, first_gradient in ((1, means[1].tolist()), (0, means[0].tolist()), (2, None)):
        expected = reference.predicted_change(0.1, last_gradient, first_gradient)
        assert gradients.predict_change(cluster, 0.1) == pytest.approx(expected, rel=1e-4)
