"""Diagnostics of the proxy: does it know anything of the rows that it is to judge?"""

import math

import numpy as np

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.limits import DiagnosticLimits, Diagnostics


def diagnose_proxy_knowledge(
    row_losses: np.ndarray, embedded_tokens: int, unknown_token_share: float, limits: DiagnosticLimits
) -> Diagnostics:
    """Compare the proxy's loss before any training with guessing, and count tokens that it does not know.

    Gradients of a model that predicts the responses no better than by chance say little about the rows.

    Args:
        row_losses: [N] float64, mean loss of each response under the proxy without adapters, nats per token.
        embedded_tokens: V, the number of tokens that the proxy embeds; guessing among them costs ln V.
        unknown_token_share: share of the rows' tokens that are unknown or bytes of unknown characters.
        limits: when to warn.
    """
    base_loss, chance_loss = float(np.nanmean(row_losses)), math.log(embedded_tokens)
    loss_share = base_loss / chance_loss
    guesses = loss_share > limits.chance_loss_share
    misses_tokens = unknown_token_share > limits.unknown_token_share
    values = {
        "base_loss": base_loss,
        "chance_loss": chance_loss,
        "chance_loss_share": loss_share,
        "unknown_token_share": unknown_token_share,
        "proxy_knows_rows": not (guesses or misses_tokens),
    }
    reasons = []
    if guesses:
        comparison = "worse than guessing" if loss_share >= 1 else f"{loss_share:.0%} of what guessing costs"
        reasons.append(
            f"without adapters it predicts the responses at {base_loss:.2f} nats a token, {comparison} "
            f"({chance_loss:.2f} among {embedded_tokens:,} tokens)"
        )
    if misses_tokens:
        reasons.append(f"{unknown_token_share:.0%} of the rows' tokens are unknown to it")
    if not reasons:
        return Diagnostics(values)
    return Diagnostics(
        values,
        [
            FailedDiagnostic(
                "proxy_knowledge",
                f"the proxy knows little of these rows: {' and '.join(reasons)}. Choose a proxy that was trained on "
                "text like theirs, such as SmolLM2 or GPT-2",
            )
        ],
    )
