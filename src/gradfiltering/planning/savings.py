"""Cheaper ways to run the same experiment, and the time that each would save: from the same shapes and speed."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from gradfiltering.ensembles.lora_ensemble import ONLINE
from gradfiltering.ensembles.member_cache import MemberCache
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.ensembles.trained_ensemble import TrainedEnsemble
from gradfiltering.gradients.prefix import FrozenPrefix
from gradfiltering.models.adapted_layers import ALL_LAYERS, find_layers
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.run_plan import PlannedWork, Saving, sum_known

LONG_SECONDS = 120.0  # of a run; a shorter one needs no advice
LEAST_SHARE = 0.1  # of a run's time that a change must save to be named
UPPER_SHARE = 0.25  # of the layers
FEW_UPDATES = SnapshotPair(30, 90, "update")  # as `epochs=updates` has them
IDENTITY = ("base_model", "examples", "objective", "engine", "precision", "seed")  # of members, in their key

PlanWork = Callable[[TrainedEnsemble, ModelShape, SnapshotPair], list[PlannedWork]]


@dataclass(frozen=True)
class CheaperWork:
    """The work of the stages that measure rows, with a change.

    Attributes:
        change, values: as `Saving` has them.
        planned_work: under the change.
    """

    change: str
    values: Mapping[str, int]
    planned_work: Sequence[PlannedWork]


def plan_cheaper_work(
    trained_ensemble: TrainedEnsemble,
    snapshots: SnapshotPair,
    shape: ModelShape,
    plan_work: PlanWork,
    needs_epochs: bool = False,
) -> list[CheaperWork]:
    """Plan the stages with adapters once more for each change that this ensemble allows.

    Args:
        trained_ensemble: attached, as the run has it.
        snapshots: of the run.
        shape: of the model with adapters.
        plan_work: plans these stages for another ensemble, shape and snapshots.
        needs_epochs: the run reads members after whole epochs, so snapshots cannot be counted in updates.
    """
    settings, cheaper_work = trained_ensemble.settings, []
    by_epoch = snapshots.unit == "epoch"
    if by_epoch and settings.collect != ONLINE and not settings.online_obstacle:
        online_ensemble = replace(trained_ensemble, settings=replace(settings, collect=ONLINE))
        cheaper_work.append(CheaperWork("online", {}, plan_work(online_ensemble, shape, snapshots)))
    layer_count = math.ceil(UPPER_SHARE * len(shape.layers))
    layer_list = find_layers(trained_ensemble.model.get_base_model())
    if settings.lora.layers == ALL_LAYERS and layer_list is not None and layer_count < len(shape.layers):
        upper_shape = adapt_last_layers(shape, layer_count)
        upper_ensemble = adapt_last_layers_of(trained_ensemble, layer_count, upper_shape)
        cheaper_work.append(
            CheaperWork("upper_layers", {"layers": layer_count}, plan_work(upper_ensemble, upper_shape, snapshots))
        )
    timeline = trained_ensemble.member_cache.timeline
    may_count_updates = by_epoch and not settings.update_obstacle and not needs_epochs
    if may_count_updates and timeline.count_updates(snapshots.late) > FEW_UPDATES.late:
        few_timeline = FEW_UPDATES.timeline(timeline.steps_per_epoch)
        shorter_ensemble = replace(trained_ensemble, member_cache=trained_ensemble.member_cache.along(few_timeline))
        values = {
            "early": FEW_UPDATES.early,
            "late": FEW_UPDATES.late,
            "updates": timeline.count_updates(snapshots.late),
            "train_rows": max(1, FEW_UPDATES.late // snapshots.late) * settings.batch_size,
        }
        cheaper_work.append(CheaperWork("few_updates", values, plan_work(shorter_ensemble, shape, FEW_UPDATES)))
    return cheaper_work


def adapt_last_layers(shape: ModelShape, layer_count: int) -> ModelShape:
    """Return the shape with adapters in its last layers only."""
    first_layer = len(shape.layers) - layer_count
    layers = tuple(
        layer
        if index >= first_layer
        else replace(layer, linears=tuple(replace(linear, rank=0) for linear in layer.linears))
        for index, layer in enumerate(shape.layers)
    )
    return replace(shape, layers=layers)


def adapt_last_layers_of(
    trained_ensemble: TrainedEnsemble, layer_count: int, upper_shape: ModelShape
) -> TrainedEnsemble:
    """Return an ensemble to plan with, as it would be with adapters in the last layers only; it cannot be trained.

    Args:
        trained_ensemble: with adapters in all layers.
        layer_count: last layers that have one.
        upper_shape: of the model with these adapters.
    """
    member_cache = trained_ensemble.member_cache
    lora = replace(trained_ensemble.settings.lora, layers=f"last_{layer_count}")
    settings = replace(trained_ensemble.settings, lora=lora)
    identity = {name: value for name, value in member_cache.ensemble_key.items() if name in IDENTITY}
    engine = copy(trained_ensemble.engine)
    base_model = trained_ensemble.model.get_base_model()
    layer_list = find_layers(base_model)
    if engine.name == "fused" and layer_list is not None:
        engine.prefix = FrozenPrefix(base_model, layer_list.layers, upper_shape.first_adapted_layer)
        engine.prefix.state_dtype = next(layer_list.layers.parameters()).dtype
        engine.prefix.state_width = upper_shape.width
    return replace(
        trained_ensemble,
        settings=settings,
        engine=engine,
        member_cache=MemberCache(member_cache.cache, settings, identity, member_cache.timeline),
    )


def find_savings(
    run_seconds: float | None,
    measuring_work: Sequence[PlannedWork],
    cheaper_work: Sequence[CheaperWork],
) -> list[Saving]:
    """Name the changes that make a run of more than two minutes shorter by a tenth or more, the greatest saving first.

    Args:
        run_seconds: of the whole run; None where it was not timed.
        measuring_work: of its stages that measure rows, timed.
        cheaper_work: the same stages with a change, timed.
    """
    if run_seconds is None or run_seconds <= LONG_SECONDS:
        return []
    measuring_seconds = sum_known([piece.seconds for piece in measuring_work])
    savings = []
    for cheaper in cheaper_work:
        cheaper_seconds = sum_known([piece.seconds for piece in cheaper.planned_work])
        if measuring_seconds is None or cheaper_seconds is None:
            continue
        saved_seconds = measuring_seconds - cheaper_seconds
        if saved_seconds >= LEAST_SHARE * run_seconds:
            savings.append(Saving(cheaper.change, dict(cheaper.values), saved_seconds))
    return sorted(savings, key=lambda saving: -saving.seconds)
