"""A proxy that knows nothing of the rows is named, with the numbers that show it."""

import math

import numpy as np
import pytest

from gradfiltering.diagnostics.limits import DiagnosticLimits
from gradfiltering.diagnostics.proxy_knowledge import diagnose_proxy_knowledge
from tests.diagnostics.limits import QUIET

LIMITS = DiagnosticLimits()


def test_values_are_the_mean_loss_against_ln_of_the_vocabulary():
    values = diagnose_proxy_knowledge(np.array([2.0, 4.0, np.nan]), 1024, 0.01, LIMITS).values
    assert values["base_loss"] == 3.0 and values["chance_loss"] == math.log(1024)
    assert values["chance_loss_share"] == pytest.approx(3 / math.log(1024), rel=1e-12)
    assert values["unknown_token_share"] == 0.01 and values["proxy_knows_rows"] is True


@pytest.mark.parametrize(
    ("loss", "unknown_share", "words"),
    [
        (9.6, 0.0, ["9.60 nats a token, worse than guessing", "(6.93 among 1,024 tokens)"]),
        (6.0, 0.0, ["6.00 nats a token, 87% of what guessing costs"]),
        (2.0, 0.3, ["30% of the rows' tokens are unknown"]),
        (8.0, 0.3, ["worse than guessing", " and 30% of the rows' tokens"]),
    ],
)
def test_a_proxy_that_knows_little_is_named(loss, unknown_share, words):
    knowledge = diagnose_proxy_knowledge(np.full(5, loss), 1024, unknown_share, LIMITS)
    assert knowledge.values["proxy_knows_rows"] is False
    (warning,) = knowledge.warnings
    assert all(word in warning for word in words) and "Choose a proxy" in warning


@pytest.mark.parametrize(("loss", "limits"), [(2.0, LIMITS), (9.6, QUIET)])
def test_within_the_limits_nothing_is_said(loss, limits):
    assert diagnose_proxy_knowledge(np.full(5, loss), 1024, 0.0, limits).warnings == []
