"""The gradient log: gradient norms and losses of every row under every member, early and late."""

import time
from functools import partial
from pathlib import Path

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.lora_ensemble import ONLINE
from gradfiltering.ensembles.member_cache import ADAPTER_FOLDER
from gradfiltering.ensembles.trained_ensemble import TrainedEnsemble
from gradfiltering.ensembles.trajectory import write_trajectory
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, Measurer
from gradfiltering.models.lora import export_adapter, update_ratio
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.requests import BaseModelLosses, EpochLog, GradientLog, GradientLogPair
from gradfiltering.runs.gradient_log import read_members
from gradfiltering.runs.run_folder import TRAJECTORY_FILE


class GradientLogMeasurer(Measurer[GradientLog]):
    """Trains the ensemble where the cache lacks it, and measures both snapshots.

    Of held-out rows it measures losses, by a pass without gradients. The run folder gets the log, adapters and
    trajectory; `context.reports.ensemble` gets costs and health. Losses of the base model are measured along, because
    diagnostics compare the log with them.
    """

    request_type = GradientLog
    stage_name = ENSEMBLE_STAGE
    related_requests = (BaseModelLosses(),)

    def measure(self, request: GradientLog, context: MeasurementContext) -> GradientLogPair:
        """Measure [M, N] norms and losses at the early and the late snapshot."""
        start_time = time.monotonic()
        report, snapshots = context.reports.ensemble, context.snapshots
        report.matmul_weights = count_matmul_weights(context.base_model.model)
        report.update_ratios, report.heldout_losses = {}, {}
        logs: dict[int, EpochLog] = {}
        with attach_ensemble(context, report.costs, context.heldout) as trained_ensemble:
            report.describe(trained_ensemble, snapshots)
            trained_ensemble.train([snapshots.early, snapshots.late])
            for epoch in (snapshots.early, snapshots.late):
                logs[epoch] = _log_rows(trained_ensemble, epoch, context)
                if context.heldout is not None:
                    heldout_log = _log_heldout_rows(trained_ensemble, context.heldout, epoch, context)
                    report.heldout_losses[epoch] = float(np.mean(heldout_log.loss, dtype=np.float64))
                report.update_ratios[epoch] = _export_adapters(trained_ensemble, epoch, context)
            if context.ensemble.train_rows is not None:
                is_trained_on = np.isin(context.examples.example_ids, trained_ensemble.examples.example_ids)
                context.run_folder.write_ensemble_rows(context.examples.example_ids, is_trained_on)
            trajectory = trained_ensemble.member_cache.load_trajectory(
                trained_ensemble.settings.trained_member_ids, snapshots.late
            )
        context.run_folder.write(TRAJECTORY_FILE, partial(write_trajectory, trajectory))
        report.seconds += time.monotonic() - start_time
        return GradientLogPair(logs[snapshots.early], logs[snapshots.late])


def _log_rows(trained_ensemble: TrainedEnsemble, epoch: int, context: MeasurementContext) -> EpochLog:
    """Return the log of the training rows at an epoch, as training or a pass over them recorded it."""
    passes = EnsemblePasses(trained_ensemble, context.examples, "all rows")
    member_ids = trained_ensemble.settings.member_ids
    recorded_online = trained_ensemble.settings.collect == ONLINE and epoch > 0
    log_files = passes.online_logs(member_ids, epoch) if recorded_online else passes.measure_logs(member_ids, epoch)
    return _read_and_link(log_files, epoch, context)


def _log_heldout_rows(
    trained_ensemble: TrainedEnsemble, heldout: Examples, epoch: int, context: MeasurementContext
) -> EpochLog:
    """Return the losses of held-out rows at an epoch; their norms, too, at the late snapshot where they are wanted."""
    passes = EnsemblePasses(trained_ensemble, heldout, "held-out rows")
    with_norms = context.heldout_norms and epoch == context.snapshots.late
    measure = passes.measure_logs if with_norms else passes.measure_losses
    return _read_and_link(measure(trained_ensemble.settings.member_ids, epoch), epoch, context, heldout=True)


def _read_and_link(log_files: list[Path], epoch: int, context: MeasurementContext, heldout: bool = False) -> EpochLog:
    """Read one file a member, in order of members, and put them into the run folder."""
    for member_id, log_file in enumerate(log_files):
        context.run_folder.link_gradient_log(log_file, member_id, epoch, heldout, context.snapshots.unit)
    return read_members(log_files)


def _export_adapters(trained_ensemble: TrainedEnsemble, epoch: int, context: MeasurementContext) -> list[float]:
    """Put an epoch's adapters into the run folder.

    Returns:
        ‖ΔW‖/‖W‖ of each member.
    """
    member_ids = trained_ensemble.settings.member_ids
    adapters = trained_ensemble.load_adapters(member_ids, epoch)
    run_folder, unit = context.run_folder, context.snapshots.unit
    for member_index, member_id in enumerate(member_ids):
        adapter_folder = run_folder.adapter_folder(member_id, epoch, unit)
        if epoch > 0:
            member_folder = trained_ensemble.member_cache.find_measured_member(member_id, epoch).path
            run_folder.link_adapter(member_folder / ADAPTER_FOLDER, member_id, epoch, unit)
        else:
            write_adapter = partial(export_adapter, trained_ensemble.model, adapters, member_index)
            run_folder.write(adapter_folder, write_adapter)
        run_folder.name_base_model(adapter_folder, trained_ensemble.base_model.public_name)
    return update_ratio(trained_ensemble.model, adapters, trained_ensemble.settings.lora)
