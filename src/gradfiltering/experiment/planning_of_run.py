"""The plan of an experiment: made, shown before anything heavy starts, and compared with what followed.

What plans is imported where it is called, as it brings the libraries of models along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradfiltering.data.examples import Examples
from gradfiltering.data.templates import tokenize_prompts
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.ensembles.lora_ensemble import AUTO
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import BASE_MODEL_STAGE, sort_requests
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stage_list import list_stages
from gradfiltering.judging.generation import render_prompts
from gradfiltering.judging.prompts import Prompt
from gradfiltering.methods.score_and_select import ScoreAndSelect
from gradfiltering.models.language_model import EmptySource, TrainableSource
from gradfiltering.reports.plan_table import print_plan
from gradfiltering.requests import Request, TaskGradients
from gradfiltering.runs.logs import announce, screen
from gradfiltering.scorers.ifd import IFD

if TYPE_CHECKING:
    from gradfiltering.planning.run_plan import RunPlan
    from gradfiltering.planning.target_work import PlannedTarget


@dataclass(frozen=True)
class PlannedRun:
    """A run with its plan.

    Attributes:
        context: with the rows that are taken.
        total_rows: rows that budgets count: those drawn, or all of the dataset.
        plan: of the run.
    """

    context: MeasurementContext
    total_rows: int
    plan: "RunPlan"

    @property
    def heldout_cut(self) -> Examples | None:
        """The held-out rows, where they were drawn from more."""
        heldout = self.context.heldout
        return heldout if heldout is not None and heldout.unscored else None

    @property
    def is_cut(self) -> bool:
        """True where rows were drawn from the pool."""
        return self.total_rows < self.context.dataset.counted_rows


def plan_experiment(
    experiment: Experiment, run: OpenRun, context: MeasurementContext, prompts: Sequence[Prompt]
) -> PlannedRun:
    """Plan a run, cut its rows to the time given, and print the plan where the run takes more than a few seconds.

    Args:
        experiment: its parts.
        run: the open run; the summary gets the plan.
        context: of all rows.
        prompts: of the judge.

    Raises:
        UserError: even a few rows take longer than the time given.
    """
    from gradfiltering.planning.plan_request import PlanRequest
    from gradfiltering.planning.row_fitting import fit_rows
    from gradfiltering.planning.run_speed import SHORT_SECONDS

    method = experiment.method
    request = PlanRequest(
        requests=method.requests,
        context=context,
        first_members=experiment.proxy.size.start,
        total_rows=context.dataset.counted_rows,
        target=_describe_target(experiment, run, context, prompts),
        notes=_list_notes(experiment),
        heldout_member=experiment.proxy.heldout_member,
        requests_under_ifd=list_requests_under_ifd(experiment, context.examples),
    )
    request, plan = fit_rows(request, experiment.planning, method.budget_rows)
    plan_content = plan.to_json()
    run.stages.add_to_summary(plan=plan_content)
    if len(request.context.examples) < len(context.examples):
        announce(
            f"{plan.rows:,} of {plan.pool_rows:,} rows, so that the run takes {experiment.planning.minutes:g} minutes "
            f"(drawn with seed {plan.seed}; the others are listed as unscored)"
        )
        train_rows = context.ensemble.train_rows
        if train_rows is not None and plan.rows < train_rows:
            announce(f"the ensemble trains on all of them, fewer than the {train_rows:,} rows asked for")
    if context.heldout is not None and request.context.heldout is not None:
        heldout_rows, all_heldout_rows = len(request.context.heldout), len(context.heldout)
        if heldout_rows < all_heldout_rows:
            announce(
                f"{heldout_rows:,} of {all_heldout_rows:,} held-out rows are measured, so that the run takes "
                f"{experiment.planning.minutes:g} minutes"
            )
    if experiment.planning.only or plan.seconds is None or plan.seconds > SHORT_SECONDS:
        run_on_rank_zero(print_plan, plan_content, screen())
    run.stages.set_plan(list_stages(experiment, context.dataset), plan.planned_seconds)
    return PlannedRun(request.context.settle_snapshots(), request.total_rows, plan)


def compare_with_plan(plan_content: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan with what each of its stages really took.

    Args:
        plan_content: of the summary.
        costs: stage -> `seconds`, `flops` and `peak_bytes`, as the summary holds them.
    """
    stages = []
    for stage in plan_content["stages"]:
        cost = costs.get(stage["name"], {})
        stages.append({**stage, "actual_seconds": cost.get("seconds"), "actual_peak_bytes": cost.get("peak_bytes")})
    return {**plan_content, "stages": stages}


def list_requests_under_ifd(experiment: Experiment, examples: Examples) -> frozenset[Request[Any]] | None:
    """List what a run would measure were its rows scored by IFD, by forward passes of the base model alone.

    Returns:
        The requests; None where IFD is no substitute: for a scorer that looks at the rows of a task, for a selector
        that reads gradients itself, for preference rows, of which it would see one answer, for other kinds of methods,
        for a run that scores nothing, and for members or snapshots that are found by the scores.
    """
    method, proxy = experiment.method, experiment.proxy
    if proxy.ensemble.m == AUTO or not isinstance(proxy.snapshots, SnapshotPair):
        return None
    if not isinstance(method, ScoreAndSelect) or examples.is_paired or not experiment.reaches("score"):
        return None
    if any(isinstance(request, TaskGradients) for request in method.requests):
        return None
    requests = replace(method, row_scorer=IFD()).requests
    return requests if set(sort_requests(requests)) == {BASE_MODEL_STAGE} else None


def _describe_target(
    experiment: Experiment, run: OpenRun, context: MeasurementContext, prompts: Sequence[Prompt]
) -> "PlannedTarget | None":
    """Describe the target without loading it; prompts are counted by the proxy's tokenizer."""
    from gradfiltering.experiment.cached_targets import CachedTargets
    from gradfiltering.finetuning.fine_tune import TARGETS
    from gradfiltering.planning.model_shapes import read_shape
    from gradfiltering.planning.target_work import PlannedTarget

    if not experiment.reaches("target"):
        return None
    parts, source = experiment.target, experiment.target.base_model
    is_proxy = experiment.proxy.base_model == source
    model = context.base_model.model if is_proxy else _build_empty(source, context.device)
    if model is None:
        return None
    has_targets = bool(context.cache.list_keys(TARGETS))  # else nothing needs to be looked for
    tokenizer, judging = context.base_model.tokenizer, experiment.judging
    prompt_lengths: list[int] = []
    if experiment.reaches("judge") and prompts:
        texts = render_prompts(prompts, context.dataset.template_for(tokenizer), tokenizer)
        room = judging.generation.prompt_room(source.context_length)
        prompt_lengths = [min(room, max(1, len(token_ids))) for token_ids in tokenize_prompts(texts, tokenizer)]
    return PlannedTarget(
        shape=read_shape(model),
        settings=parts.tuning,
        baselines=parts.baselines,
        selected_rows=experiment.method.budget_rows(context.dataset.counted_rows),
        is_proxy=is_proxy,
        generation=judging.generation if prompt_lengths else None,
        prompt_lengths=prompt_lengths,
        device_type=context.device.type,
        cached=CachedTargets(experiment, run, context, prompts) if is_proxy and has_targets else None,
    )


def _build_empty(source: Any, device: torch.device) -> nn.Module | None:
    return source.build_empty(device) if isinstance(source, EmptySource) else None


def _list_notes(experiment: Experiment) -> dict[str, list[str]]:
    """List what is not counted, by stage."""
    from gradfiltering.planning.target_work import JUDGE_STAGE, TARGET_STAGE

    notes: dict[str, list[str]] = {}
    if experiment.reaches("target"):
        if experiment.method.selects_while_training:
            notes[TARGET_STAGE] = ["rows are selected as the target trains; counted as epochs over as many rows"]
        elif (
            isinstance(experiment.target.base_model, TrainableSource)
            and experiment.target.base_model != experiment.proxy.base_model
        ):
            notes[TARGET_STAGE] = ["the target is trained from scratch first, unless the cache has it: not counted"]
        elif not isinstance(experiment.target.base_model, EmptySource):
            notes[TARGET_STAGE] = ["the target's shape is not known before it is loaded: not counted"]
    if experiment.reaches("judge") and experiment.choices.get("judge") != "reference":
        notes[JUDGE_STAGE] = ["the judge itself is not counted"]
    return notes
