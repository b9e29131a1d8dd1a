"""The loss of the extra member on rows that it never saw, before training and after both snapshots."""

import time
from dataclasses import replace

from gradfiltering.ensembles.heldout_member import HeldoutSplit, heldout_member_seed
from gradfiltering.evidence.base_model_losses import measure_base_loss_of_part
from gradfiltering.evidence.context import HeldoutMemberReport, MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.models.weights import count_frozen_weights, count_matmul_weights

HELDOUT_MEMBER_STAGE = "heldout_member"


def measure_heldout_member(context: MeasurementContext, split: HeldoutSplit) -> HeldoutMemberReport:
    """Train the extra member where the cache lacks it, and measure its losses; nothing of it is in the run folder.

    Args:
        context: of the ensemble, whose snapshots are looked at.
        split: the member's rows.
    """
    start_time = time.monotonic()
    report = HeldoutMemberReport(
        matmul_weights=count_matmul_weights(context.base_model.model),
        training_rows=len(split.training),
        heldout_rows=len(split.heldout),
        base_loss=measure_base_loss_of_part(context, split.heldout),
    )
    member_context = replace(
        context,
        examples=split.training,
        heldout=None,
        seed=heldout_member_seed(context.seed),
        batches=replace(context.batches, tokens=context.reports.ensemble.costs.batch_tokens or context.batches.tokens),
    )
    snapshots, settings = context.snapshots, context.ensemble.single_member()
    with attach_ensemble(member_context, report.costs, split.heldout, settings) as trained_member:
        report.frozen_weights = count_frozen_weights(trained_member.model)
        trained_member.train([snapshots.early, snapshots.late])
        passes = EnsemblePasses(trained_member, split.heldout, "rows that the extra member never saw")
        for epoch in (snapshots.early, snapshots.late):
            report.losses[epoch] = passes.measure_mean_loss(settings.member_ids, epoch)
    report.seconds = time.monotonic() - start_time
    return report
