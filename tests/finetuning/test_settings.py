import numpy as np
import pytest

from gradfiltering.errors import UserError
from tests.support.small_targets import tuning_settings


@pytest.mark.parametrize("change", [{"epochs": 0}, {"schedule": "steps"}, {"warmup_share": 1.0}, {"records": 1}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} must be"):
        tuning_settings(**change)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 0.5, 0]), ("cosine", [0.5, 1, 0.5, 0])],
)
def test_learning_rate_warms_up_and_decays(schedule, expected):
    settings = tuning_settings(schedule=schedule, warmup_share=0.2, lr=0.01)
    rates = [settings.learning_rate(progress, length=5) for progress in (0, 1, 3, 5)]
    np.testing.assert_allclose(rates, 0.01 * np.array(expected), atol=1e-12)
