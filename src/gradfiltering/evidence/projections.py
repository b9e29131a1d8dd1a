"""Random projections of every row's gradient under every member, at the late snapshot."""

import time

import numpy as np

from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, Measurer
from gradfiltering.requests import GradientLog, Projections
from gradfiltering.runs.run_folder import PROJECTION_FILE


class ProjectionMeasurer(Measurer[Projections]):
    """Projects gradients in one pass, which makes the gradient log of the late snapshot as well."""

    request_type = Projections
    stage_name = ENSEMBLE_STAGE
    related_requests = (GradientLog(),)

    def measure(self, request: Projections, context: MeasurementContext) -> np.ndarray:
        """Measure [M, N, K] float32."""
        start_time = time.monotonic()
        report, late_epoch = context.reports.ensemble, context.snapshots.late
        with attach_ensemble(context, report.costs, context.heldout) as trained_ensemble:
            trained_ensemble.train([context.snapshots.early, late_epoch])
            passes = EnsemblePasses(trained_ensemble, context.examples, "all rows")
            member_ids = trained_ensemble.settings.member_ids
            folders = passes.measure_sketches(member_ids, late_epoch, context.projection)
        for member_id, result_folder in zip(member_ids, folders, strict=True):
            context.run_folder.link_projections(result_folder, member_id, late_epoch, context.snapshots.unit)
        report.seconds += time.monotonic() - start_time
        return np.stack([np.load(result_folder / PROJECTION_FILE) for result_folder in folders])
