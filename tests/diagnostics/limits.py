"""Limits of diagnostics that nothing crosses."""

from gradfiltering.diagnostics.limits import DiagnosticLimits

QUIET = DiagnosticLimits(
    positive_drop_share=0.0, median_relative_drop=-1e9, relative_variance=0.0, update_ratio=1e9,
    negative_selected_share=1.0, length_correlation=1.0, member_agreement=-1.0, source_spread=0.0, easiness=0.0,
    chance_loss_share=1e9, unknown_token_share=1.0,
    bootstrap=200, confidence=0.95,
)  # fmt: skip
