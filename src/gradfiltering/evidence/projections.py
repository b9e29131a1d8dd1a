"""Random projections of every row's gradient under members of the ensemble, at the late snapshot."""

import time
from dataclasses import replace

import numpy as np

from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, Measurer
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.requests import BaseModelLosses, Projections
from gradfiltering.runs.run_folder import PROJECTION_FILE


class ProjectionMeasurer(Measurer[Projections]):
    """Projects gradients in one pass, from which the cache gets the gradient log of the late snapshot as well.

    Members that are not requested are neither trained nor measured. Losses of the base model are measured along: they
    tell a diagnostic whether the proxy knows the rows.
    """

    request_type = Projections
    stage_name = ENSEMBLE_STAGE
    related_requests = (BaseModelLosses(),)

    def measure(self, request: Projections, context: MeasurementContext) -> np.ndarray:
        """Measure [M, N, K] float32, of the M members that are requested."""
        start_time = time.monotonic()
        report, snapshots = context.reports.ensemble, context.snapshots
        report.matmul_weights = count_matmul_weights(context.base_model.model)
        ensemble_settings = replace(context.ensemble, m=request.count_members(len(context.ensemble.member_ids)))
        with attach_ensemble(context, report.costs, context.heldout, ensemble_settings) as trained_ensemble:
            report.describe(trained_ensemble, snapshots)
            trained_ensemble.train([snapshots.early, snapshots.late])
            passes = EnsemblePasses(trained_ensemble, context.examples, "all rows")
            member_ids = trained_ensemble.settings.member_ids
            folders = passes.measure_sketches(member_ids, snapshots.late, context.projection)
        for member_id, result_folder in zip(member_ids, folders, strict=True):
            context.run_folder.link_projections(result_folder, member_id, snapshots.late, snapshots.unit)
        report.seconds += time.monotonic() - start_time
        return np.stack([np.load(result_folder / PROJECTION_FILE) for result_folder in folders])
