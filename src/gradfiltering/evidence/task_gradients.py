"""Gradients at checkpoints of the proxy's training, of its rows and of validation rows, for scores by influence."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.validation_rows import validation_rows
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble, SnapshotMeasurement
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model_losses import add_reference_nll
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.evidence.measurers import TASK_GRADIENT_STAGE, Measurer
from gradfiltering.gradients.adam_direction import AdamProjection
from gradfiltering.models.weights import count_frozen_weights, count_matmul_weights
from gradfiltering.requests import CheckpointGradients, TaskGradients
from gradfiltering.runs.gradient_log import PARQUET_FILE, read_members
from gradfiltering.runs.run_folder import PROJECTION_FILE, RunFolder


class TaskGradientMeasurer(Measurer[TaskGradients]):
    """Trains the requested members up to their checkpoints and projects gradients there.

    A member does not depend on how many there are, so those that nobody requests are not trained.
    """

    request_type = TaskGradients
    stage_name = TASK_GRADIENT_STAGE

    def check(self, request: TaskGradients, trained_ensemble: LoraEnsemble) -> None:
        """Refuse members that are not trained ones as they are after an epoch."""
        take_members(request, trained_ensemble)

    def check_dataset(self, request: TaskGradients, dataset: InstructionDataset) -> None:
        """Refuse validation rows that do not exist or do not fit."""
        validation_rows(dataset, request.validation, request.task)

    def measure(self, request: TaskGradients, context: MeasurementContext) -> CheckpointGradients:
        """Measure projections of all rows' Adam directions and of validation rows' gradients."""
        start_time = time.monotonic()
        report = context.reports.task_gradients
        report.matmul_weights = count_matmul_weights(context.base_model.model)
        validation = validation_rows(context.dataset, request.validation, request.task)
        validation_examples, tasks = validation.encode(context.encoder)
        validation_examples = add_reference_nll(context, validation_examples)
        ensemble_settings = take_members(request, context.ensemble)
        result = CheckpointGradients([], [], tasks, [], {})
        # Its checkpoints are epochs, whatever the snapshots of the gradient log are counted in.
        context = replace(context, snapshots=SnapshotPair(0, max(request.checkpoints)))
        with attach_ensemble(context, report.costs, validation_examples, ensemble_settings) as trained_ensemble:
            report.frozen_weights = count_frozen_weights(trained_ensemble.model)
            trained_ensemble.train(request.checkpoints)
            row_passes = EnsemblePasses(trained_ensemble, context.examples, "all rows")
            validation_passes = EnsemblePasses(trained_ensemble, validation_examples, "validation rows")
            for epoch in request.checkpoints:
                states = [trained_ensemble.load_state([member_id], epoch) for member_id in ensemble_settings.member_ids]
                sketches = [
                    AdamProjection(context.projection, state.moments, ensemble_settings.betas, ensemble_settings.eps)
                    for state in states
                ]
                row_folders = [
                    row_passes.measure_sketches([member_id], epoch, gradient_sketch)[0]
                    for member_id, gradient_sketch in zip(ensemble_settings.member_ids, sketches, strict=True)
                ]
                validation_folders = [
                    validation_passes.measure_sketches([member_id], epoch, context.projection)[0]
                    for member_id in ensemble_settings.member_ids
                ]
                result.row_directions.append(_open_and_link(row_folders, epoch, context.run_folder, False))
                result.validation_gradients.append(_open_and_link(validation_folders, epoch, context.run_folder, True))
                result.learning_rates.append(_mean_learning_rate(ensemble_settings, epoch, states[0].steps))
                # Made beside the projections, but a cache may have been pruned since.
                logs = [log for log in validation_passes.find_logs(ensemble_settings.member_ids, epoch).values() if log]
                if logs:
                    losses = read_members([log.path / PARQUET_FILE for log in logs]).loss
                    result.validation_losses[epoch] = float(np.mean(losses, dtype=np.float64))
        report.seconds += time.monotonic() - start_time
        task_names, task_counts = np.unique(tasks, return_counts=True)
        report.requests.append(
            {
                "members": request.members,
                "checkpoints": list(request.checkpoints),
                "rates": result.learning_rates,
                "validation_loss": result.validation_losses,
                "validation_rows": dict(zip(task_names.tolist(), task_counts.tolist(), strict=True)),
            }
        )
        return result


def take_members(request: TaskGradients, ensemble_settings: LoraEnsemble) -> LoraEnsemble:
    """Return the settings of an ensemble of only the members that a request reads.

    Raises:
        UserError: they are not trained members as they are after an epoch.
    """
    reduced_settings = replace(ensemble_settings, m=request.members)
    for member_id in reduced_settings.member_ids:
        measurement = reduced_settings.describe_measurement(member_id, request.checkpoints[0], request.members)
        if measurement != SnapshotMeasurement(member_id):
            raise UserError(
                f"{type(ensemble_settings).__name__} with gradients of {request.members} members at checkpoints: "
                "these are gradients of trained members as they are after an epoch; choose a LoRA or bootstrap ensemble"
            )
    return reduced_settings


def _mean_learning_rate(ensemble_settings: LoraEnsemble, epoch: int, steps_taken: int) -> float:
    """Average the learning rate over the steps of the epoch that ends after so many steps."""
    epoch_steps = range(steps_taken - steps_taken // epoch, steps_taken)
    return ensemble_settings.lr * float(np.mean([ensemble_settings.warmup_factor(step) for step in epoch_steps]))


def _open_and_link(folders: list[Path], epoch: int, run_folder: RunFolder, validation: bool) -> list[np.ndarray]:
    """Open each member's projections, [N, K] float32, read from the disk as needed; the run folder gets them too."""
    for member_id, result_folder in enumerate(folders):
        run_folder.link_influence(result_folder, member_id, epoch, validation)
    return [np.load(result_folder / PROJECTION_FILE, mmap_mode="r") for result_folder in folders]
