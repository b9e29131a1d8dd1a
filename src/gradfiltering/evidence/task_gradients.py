"""Gradients at checkpoints of the proxy's training, on its rows and on validation rows, for scores by influence."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gradfiltering.data.examples import Encoder, Examples, Rows
from gradfiltering.data.validation_rows import ValidationRows
from gradfiltering.distributed.process_group import first_then_all, once, rank
from gradfiltering.ensembles.lora_ensemble import EnsembleSettings, Reading
from gradfiltering.ensembles.member_cache import PROJECTIONS
from gradfiltering.errors import UserError
from gradfiltering.evidence.gradient_log import HELDOUT_LOG, LOG, BatchSettings, EnsembleWork, opened
from gradfiltering.gradients.adam_direction import AdamProjection
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.projection import GradientSketch, Projection
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.weights import count_matmul_weights
from gradfiltering.requests import CheckpointGradients, TaskGradients
from gradfiltering.runs.cache import Workspace, link
from gradfiltering.runs.gradient_log import leaf, read_members

FOLDER, PARTS = "influence", {LOG: "rows", HELDOUT_LOG: "validation"}  # of the run folder


@dataclass(frozen=True)
class InfluenceResult:
    """What was measured for each need, and what it took in this run (units as in `ProxyResult`)."""

    gradients: dict[TaskGradients, CheckpointGradients]
    seconds: float
    tokens: int
    trained: int
    logged: int
    reused_seconds: float
    flops: int

    @property
    def reused(self) -> bool:
        """Whether all of it was found in the store."""
        return not self.trained and not self.logged

    def summary(self) -> dict[str, Any]:
        """The part of `summary.json` about it."""
        cost = {name: getattr(self, name) for name in ("seconds", "tokens", "trained", "logged", "reused_seconds")}
        of = []
        for need, found in self.gradients.items():
            names, counts = np.unique(found.validation_tasks, return_counts=True)
            tasks = dict(zip(names.tolist(), counts.tolist(), strict=True))
            about = {"members": need.members, "checkpoints": list(need.checkpoints), "rates": found.learning_rates}
            of.append({**about, "validation_loss": found.validation_losses, "validation_rows": tasks})
        return {**cost, "gradients": of}


def members_of(need: TaskGradients, settings: EnsembleSettings) -> EnsembleSettings:
    """The ensemble of only the members that a need looks at.

    Raises:
        UserError: they are not trained members as they are after an epoch.
    """
    few = replace(settings, m=need.members)
    if any(few.reading(member, need.checkpoints[0], need.members) != Reading(member) for member in few.members):
        raise UserError(
            f"{type(settings).__name__} with scorer.members={need.members}: these scores look at trained members "
            "as they are after an epoch; choose ensemble=lora or ensemble=bootstrap"
        )
    return few


def measure_influence(
    wanted: Mapping[TaskGradients, ValidationRows],
    encoder: Encoder,
    examples: Examples,
    base_model: LanguageModel,
    settings: EnsembleSettings,
    engine: Callable[..., GradientEngine],
    batch: BatchSettings,
    workspace: Workspace,
    projection: Projection,
) -> InfluenceResult:
    """Trains the members that are asked for up to their checkpoints and projects their gradients there.

    A member does not depend on how many there are, so those that nobody asks for are not trained.

    Args:
        wanted: each need with its validation rows.
        encoder: makes tokens of these.
        examples: rows to train on and to score.
        backbone: frozen model and tokenizer.
        settings: the ensemble.
        engine: builds a gradient engine around a `model`.
        batch: how work is cut up.
        workspace: run folder, store, seed, trainer.
        projection: of all gradients.
    """
    started, parameters = time.monotonic(), count_matmul_weights(base_model.model)
    found, works = {}, []
    for need, validation in wanted.items():
        heldout, tasks = first_then_all(validation.encode, encoder)
        few = members_of(need, settings)
        with opened(base_model, Rows(examples, heldout), few, engine, batch, workspace) as work:
            work.train(need.checkpoints)
            found[need] = _gradients(work, need, tasks, few, projection)
            works.append(work)
    tokens = sum(work.tokens for work in works)
    return InfluenceResult(
        gradients=found,
        seconds=time.monotonic() - started,
        tokens=tokens,
        trained=sum(work.trained for work in works),
        logged=sum(work.logged for work in works),
        reused_seconds=sum(work.reused_seconds for work in works),
        flops=4 * parameters * tokens,
    )


def _gradients(
    work: EnsembleWork, need: TaskGradients, tasks: np.ndarray, settings: EnsembleSettings, projection: Projection
) -> CheckpointGradients:
    """Projections of members that are trained up to all checkpoints."""
    found = CheckpointGradients([], [], tasks, [], {})
    for epoch in need.checkpoints:
        states = [work.start([member], epoch) for member in settings.members]
        adams = [AdamProjection(projection, state.moments, settings.betas, settings.eps) for state in states]
        found.row_directions.append([_read(work, *one, epoch, LOG) for one in enumerate(adams)])
        found.validation_gradients.append(
            [_read(work, member, projection, epoch, HELDOUT_LOG) for member in settings.members]
        )
        done = states[0].steps
        steps = range(done - done // epoch, done)  # of this epoch
        found.learning_rates.append(settings.lr * float(np.mean([settings.rate_share(step) for step in steps])))
    return replace(found, validation_losses=_losses(work, need))


def _read(work: EnsembleWork, member: int, sketch: GradientSketch, epoch: int, name: str) -> np.ndarray:
    """[N, K] float32, read from the disk as needed; the run folder gets it as well."""
    folder = work.sketch(member, epoch, name, sketch)
    if rank() == 0:
        link(folder, leaf(work.workspace.run_dir / FOLDER / PARTS[name], member, epoch))
    return once(partial(np.load, mmap_mode="r"), folder / PROJECTIONS)


def _losses(work: EnsembleWork, need: TaskGradients) -> dict[int, float]:
    """Mean validation losses, as far as the logs made beside the projections are still in the store."""
    losses = {}
    for epoch in need.checkpoints:
        files = once(work.kept.all_files, work.members, epoch, work.hashes[HELDOUT_LOG], False)
        if files:
            losses[epoch] = float(np.mean(once(read_members, files).loss, dtype=np.float64))
    return losses
