"""Work of an ensemble for the evidence of a run: training of members, and their passes over rows at snapshots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.ensembles.device_states import keeps_on_device
from gradfiltering.ensembles.heldout_member import HeldoutSplit, heldout_member_seed
from gradfiltering.ensembles.lora_ensemble import ONLINE
from gradfiltering.ensembles.member_cache import MemberCache
from gradfiltering.ensembles.prefix_states import count_prefix_bytes, has_prefix_states
from gradfiltering.ensembles.trained_ensemble import TrainedEnsemble
from gradfiltering.evidence.base_model_losses import find_losses
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.ensemble_passes import EnsemblePasses
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, TASK_GRADIENT_STAGE
from gradfiltering.gradients.adam_direction import MOMENT_NAMES, AdamProjection
from gradfiltering.gradients.projection import GradientSketch, Projection
from gradfiltering.models.lora import Adapters
from gradfiltering.planning.memory_estimates import adapter_bytes, member_bytes
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.operations import TokenCounts, frozen_operations, gradient_operations, loss_operations
from gradfiltering.planning.row_passes import count_pass, count_training
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.requests import Projections, TaskGradients
from gradfiltering.runs.cache import CachedResult


def plan_ensemble(
    trained_ensemble: TrainedEnsemble,
    epochs: Sequence[int],
    context: MeasurementContext,
    shape: ModelShape,
    batch_tokens: int,
    logs_gradients: bool,
    projections: Projections | None,
) -> list[PlannedWork]:
    """Plan the training of an ensemble and its passes over rows, but for what the cache has.

    Args:
        trained_ensemble: attached; what it has trained is looked up.
        epochs: the snapshots.
        context: knows the rows, the projection, and whether the norms of held-out rows are measured.
        shape: of the model with adapters.
        batch_tokens: padded tokens computed at once, over members.
        logs_gradients: norms and losses are requested at all snapshots, and losses of held-out rows.
        projections: requested at the last snapshot; None for none.
    """
    member_ids = list(trained_ensemble.settings.member_ids)
    planned_work = plan_training(trained_ensemble, epochs, ENSEMBLE_STAGE, shape)
    for epoch in epochs:
        passes = EnsemblePasses(trained_ensemble, context.examples, "all rows")
        needs_log_pass = logs_gradients and (trained_ensemble.settings.collect != ONLINE or epoch == 0)
        logged_members = member_ids if needs_log_pass else []
        if projections is not None and epoch == epochs[-1]:
            projected_count = projections.count_members(len(member_ids))
            sketches = passes.find_sketches(member_ids[:projected_count], epoch, context.projection)
            planned_work.append(plan_pass(passes, epoch, sketches, ENSEMBLE_STAGE, shape, batch_tokens))
            logged_members = logged_members[projected_count:]  # the pass that projects gradients logs their norms
        if logged_members:
            logs = passes.find_logs(logged_members, epoch)
            planned_work.append(plan_pass(passes, epoch, logs, ENSEMBLE_STAGE, shape, batch_tokens))
        if logs_gradients and context.heldout is not None:
            passes = EnsemblePasses(trained_ensemble, context.heldout, "held-out rows")
            with_norms = context.heldout_norms and epoch == epochs[-1]
            results = passes.find_logs(member_ids, epoch) if with_norms else passes.find_losses(member_ids, epoch)
            heldout_pass = plan_pass(passes, epoch, results, ENSEMBLE_STAGE, shape, batch_tokens, with_norms)
            planned_work.append(replace(heldout_pass, is_per_row=False))
    return planned_work


def plan_pass(
    passes: EnsemblePasses,
    epoch: int,
    results: Mapping[int, CachedResult | None],
    stage_name: str,
    shape: ModelShape,
    batch_tokens: int,
    with_gradients: bool = True,
) -> PlannedWork:
    """Plan a pass of members over rows at a snapshot, but for the members that the cache has.

    Args:
        passes: of the ensemble over these rows.
        epoch: the snapshot.
        results: of each member in the cache; None where the pass makes it.
        stage_name: of the pass.
        shape: of the model with adapters.
        batch_tokens: padded tokens computed at once, over members.
        with_gradients: norms are measured, not losses alone.
    """
    trained_ensemble, member_cache, examples = passes.ensemble, passes.member_cache, passes.examples
    missing_members = [member_id for member_id, result in results.items() if result is None]
    measurements = {member_cache.describe_measurement(member_id, epoch) for member_id in missing_members}
    all_measurements = {member_cache.describe_measurement(member_id, epoch) for member_id in results}
    member_count = len(measurements or all_measurements)
    counts = count_pass(examples, max(1, batch_tokens // member_count), member_count)
    count_operations = count_gradients if with_gradients else count_losses
    measured_text = f"{'gradients' if with_gradients else 'losses'} of {passes.row_description}"
    return PlannedWork(
        stage=stage_name,
        description=f"{measured_text} after {member_cache.timeline.unit} {epoch}, {_count_members(member_count)}",
        counts=counts,
        all_operations=count_operations(trained_ensemble, examples, shape, counts, member_count),
        kind="gradients" if with_gradients else "losses",
        reused=not measurements,
    )


def plan_heldout_member(
    trained_ensemble: TrainedEnsemble,
    split: HeldoutSplit,
    epochs: Sequence[int],
    shape: ModelShape,
    batch_tokens: int,
    context: MeasurementContext,
) -> list[PlannedWork]:
    """Plan the extra member that the held-out loss is of: its training on a part of the rows, its losses on the rest.

    Args:
        trained_ensemble: the ensemble that it is a member more of.
        split: its rows.
        epochs: the snapshots.
        shape: of the model with adapters.
        batch_tokens: padded tokens computed at once.
        context: knows the base model's losses in the cache.
    """
    ensemble_cache, settings = trained_ensemble.member_cache, trained_ensemble.settings.single_member()
    seed = heldout_member_seed(trained_ensemble.seed)
    identity = {name: ensemble_cache.ensemble_key[name] for name in ("base_model", "objective", "engine", "precision")}
    identity |= {"examples": hash_examples(split.training), "seed": seed}
    timeline = replace(ensemble_cache.timeline, steps_per_epoch=settings.steps_per_epoch(len(split.training)))
    extra_member = replace(
        trained_ensemble,
        examples=split.training,
        settings=settings,
        member_cache=MemberCache(ensemble_cache.cache, settings, identity, timeline),
        seed=seed,
    )
    planned_work = plan_training(extra_member, epochs, HELDOUT_MEMBER_STAGE, shape)
    passes = EnsemblePasses(extra_member, split.heldout, "rows that it never saw")
    for epoch in epochs:
        losses = passes.find_losses(settings.member_ids, epoch)
        planned_work.append(
            plan_pass(passes, epoch, losses, HELDOUT_MEMBER_STAGE, shape, batch_tokens, with_gradients=False)
        )
    if split.heldout.is_paired:  # of other rows the losses of all rows are measured before
        counts = count_pass(split.heldout, trained_ensemble.batches.forward_tokens(trained_ensemble.device))
        description, operations = "their losses under the base model", loss_operations(shape, counts)
        is_cached = find_losses(context, context.objective, split.heldout) is not None
        planned_work.append(PlannedWork(HELDOUT_MEMBER_STAGE, description, counts, operations, "losses", is_cached))
    return planned_work


def plan_training(
    trained_ensemble: TrainedEnsemble, epochs: Sequence[int], stage_name: str, shape: ModelShape
) -> list[PlannedWork]:
    """Plan the training of an ensemble's members up to the last of these epochs, from where the cache has them."""
    settings, examples = trained_ensemble.settings, trained_ensemble.examples
    plans = {
        member_id: trained_ensemble.member_cache.plan_training(member_id, epochs)
        for member_id in settings.trained_member_ids
    }
    planned_work = []
    for plan in sorted(set(plans.values())):
        member_ids = [member_id for member_id, member_plan in plans.items() if member_plan == plan]
        is_cached = plan.start_moment == plan.last_moment
        timeline = trained_ensemble.member_cache.timeline
        first_moment = 0 if is_cached else plan.start_moment
        updates = range(timeline.count_updates(first_moment), timeline.count_updates(plan.last_moment))
        if not updates:
            continue
        counts = count_training(
            examples,
            settings,
            member_ids,
            updates,
            trained_ensemble.seed,
            trained_ensemble.engine.chunk_tokens,
            trained_ensemble.device.type,
        )
        operations = count_gradients(trained_ensemble, examples, shape, counts)
        moments_text = f"{timeline.unit}s {first_moment + 1} to {plan.last_moment}"
        if plan.last_moment == first_moment + 1:
            moments_text = f"{timeline.unit} {plan.last_moment}"
        description = f"training of {_count_members(len(member_ids))}, {moments_text}"
        stored_members = len(member_ids) * len(timeline.list_moments(first_moment, plan.last_moment))
        planned_work.append(
            PlannedWork(
                stage=stage_name,
                description=description,
                counts=counts,
                all_operations=operations,
                kind="training",
                reused=is_cached,
                stored_bytes=stored_members * member_bytes(shape),
                stored_members=stored_members,
                step_rows=settings.batch_size,
                exchanged_bytes=len(member_ids) * adapter_bytes(shape),
            )
        )
    return planned_work


def plan_task_gradients(
    request: TaskGradients,
    trained_ensemble: TrainedEnsemble,
    validation: Examples,
    shape: ModelShape,
    batch_tokens: int,
    trained_epochs: int,
    projection: Projection,
) -> list[PlannedWork]:
    """Plan gradients at checkpoints, of all rows and of validation rows, member by member, but for what the cache has.

    Args:
        request: names members and checkpoints.
        trained_ensemble: of these members.
        validation: the validation rows.
        shape: of the model with adapters.
        batch_tokens: padded tokens computed at once.
        trained_epochs: epochs of its members that an earlier stage of the run trains.
        projection: of the gradients.
    """
    planned_work = []
    settings = trained_ensemble.settings
    without_moments: dict[str, Adapters] = {name: {} for name in MOMENT_NAMES}  # the key of a result names none
    adam_projection = AdamProjection(projection, without_moments, settings.betas, settings.eps)
    if max(request.checkpoints) > trained_epochs:
        planned_work += plan_training(trained_ensemble, request.checkpoints, TASK_GRADIENT_STAGE, shape)
    row_sets: list[tuple[str, Examples, GradientSketch]] = [
        ("all rows", trained_ensemble.examples, adam_projection),
        ("validation rows", validation, projection),
    ]
    for description, examples, gradient_sketch in row_sets:
        passes, one_pass = EnsemblePasses(trained_ensemble, examples, description), count_pass(examples, batch_tokens)
        results = [
            result
            for epoch in request.checkpoints
            for result in passes.find_sketches(settings.member_ids, epoch, gradient_sketch).values()
        ]
        due_count = sum(result is None for result in results)
        for pass_count, is_cached in ((due_count, False), (len(results) - due_count, True)):
            if not pass_count:
                continue
            counts = one_pass.times(pass_count)
            planned_work.append(
                PlannedWork(
                    TASK_GRADIENT_STAGE,
                    f"gradients of {description}, {pass_count} of {len(results)} passes at checkpoints",
                    counts,
                    count_gradients(trained_ensemble, examples, shape, counts, 1),
                    "gradients",
                    reused=is_cached,
                )
            )
    return planned_work


def plan_frozen_layers(
    trained_ensemble: TrainedEnsemble,
    row_description: str,
    examples: Examples,
    shape: ModelShape,
    reading_work: Sequence[PlannedWork],
    is_per_row: bool = False,
) -> list[PlannedWork]:
    """Plan what the layers below the first adapter take, where it is computed once for each row and kept.

    The first stage that has anything to compute from it takes the time. Where none has, and the cache has none of it
    either, nothing is planned.

    Args:
        trained_ensemble: attached.
        row_description: the rows in words.
        examples: the rows.
        shape: of the model with adapters.
        reading_work: all work that goes on from these layers, in the order of its stages.
        is_per_row: the rows are those of the pool.
    """
    prefix = trained_ensemble.engine.prefix
    if prefix is None or not reading_work or not keeps_prefix(trained_ensemble, examples):
        return []
    counts = count_pass(examples, trained_ensemble.batches.forward_tokens(trained_ensemble.device))
    is_on_device = keeps_on_device(prefix, examples, trained_ensemble.device, trained_ensemble.batches)
    model_hash = trained_ensemble.member_cache.ensemble_key["base_model"]
    is_cached = not is_on_device and has_prefix_states(
        trained_ensemble.member_cache.cache, prefix, examples, model_hash
    )
    due_stages = [piece.stage for piece in reading_work if piece.operations]
    if not due_stages and not is_cached:
        return []
    kept_bytes = count_prefix_bytes(prefix, examples)
    return [
        PlannedWork(
            stage=due_stages[0] if due_stages else reading_work[0].stage,
            description=f"frozen layers {prefix.layer_range} of {row_description}, once",
            counts=counts,
            all_operations=frozen_operations(shape, counts),
            kind="losses",
            reused=is_cached,
            is_per_row=is_per_row,
            stored_bytes=0 if is_on_device else kept_bytes,
            device_bytes=kept_bytes if is_on_device else 0,
        )
    ]


def keeps_prefix(trained_ensemble: TrainedEnsemble, examples: Examples) -> bool:
    """Return True where what enters the first adapted layer is kept for these rows, in the cache or on the device."""
    prefix = trained_ensemble.engine.prefix
    return prefix is not None and count_prefix_bytes(prefix, examples) <= trained_ensemble.batches.prefix_limit_bytes


def count_gradients(
    trained_ensemble: TrainedEnsemble,
    examples: Examples,
    shape: ModelShape,
    counts: TokenCounts,
    sharing_members: int | None = None,
) -> int:
    """Count gradients of a stack; layers below the first adapter are left out where they are kept.

    Args:
        trained_ensemble: attached.
        examples: the rows.
        shape: of the model with adapters.
        counts: over members.
        sharing_members: members that see the same batch, so that they share these layers; None where each has its own.
    """
    operations = gradient_operations(shape, counts, trained_ensemble.engine.name == "fused")
    return operations - _count_spared(trained_ensemble, examples, shape, counts, sharing_members)


def count_losses(
    trained_ensemble: TrainedEnsemble, examples: Examples, shape: ModelShape, counts: TokenCounts, sharing_members: int
) -> int:
    """Count losses of a stack, without gradients; arguments as of `count_gradients`."""
    operations = loss_operations(
        shape, counts, with_adapters=True, responses_only=trained_ensemble.engine.name == "fused"
    )
    return operations - _count_spared(trained_ensemble, examples, shape, counts, sharing_members)


def _count_spared(
    trained_ensemble: TrainedEnsemble,
    examples: Examples,
    shape: ModelShape,
    counts: TokenCounts,
    sharing_members: int | None,
) -> int:
    """Count what members need not go through of the layers below the first adapter."""
    if trained_ensemble.engine.prefix is None:
        return 0
    frozen = frozen_operations(shape, counts)
    if keeps_prefix(trained_ensemble, examples):
        return frozen
    return 0 if sharing_members is None else frozen - frozen // sharing_members


def _count_members(member_count: int) -> str:
    return f"{member_count} member{'s' if member_count > 1 else ''}"
