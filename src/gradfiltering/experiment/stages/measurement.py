"""Measurement of the rows with the proxy, and their scores."""

from dataclasses import dataclass, replace

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Examples
from gradfiltering.data.unknown_tokens import unknown_token_share
from gradfiltering.diagnostics.ensemble import diagnose_ensemble, ensemble_columns
from gradfiltering.diagnostics.heldout_loss import HeldoutLosses, diagnose_heldout_loss
from gradfiltering.diagnostics.proxy_knowledge import diagnose_proxy_knowledge
from gradfiltering.diagnostics.row_columns import ArrayColumns
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.errors import attributed_to
from gradfiltering.evidence.adaptive_size import measure_settled_evidence
from gradfiltering.evidence.base_model_losses import REFERENCE_STAGE, add_reference_nll
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE, measure_heldout_member
from gradfiltering.experiment.checks import check_training_rows
from gradfiltering.experiment.model_loading import build_encoder, report_model
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.planning_of_run import PlannedRun
from gradfiltering.methods.subset_files import write_known_rows, write_scores
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.requests import BaseModelLosses, Evidence, GradientLog
from gradfiltering.runs.logs import announce, screen
from gradfiltering.scorers.base import Scores, score_rows


@dataclass(frozen=True)
class MeasuredRows:
    """The rows of a run, and what was measured of them.

    Attributes:
        dataset: as the user gave it.
        examples: tokenised for the model they were measured with.
        heldout: the held-out rows that were drawn for the time given; None where all of them are measured.
        total_rows: rows that budgets count: all of the dataset, or those that were drawn for the time given.
        is_cut: True where rows were drawn.
        evidence: what scorer and selector read.
        scores: None where nothing reads scores.
    """

    dataset: InstructionDataset
    examples: Examples
    heldout: Examples | None
    total_rows: int
    is_cut: bool
    evidence: Evidence
    scores: Scores | None


def encode_rows(
    experiment: Experiment, run: OpenRun, dataset: InstructionDataset, proxy: LanguageModel
) -> MeasurementContext:
    """Tokenise the rows, and put together everything that they are measured with."""
    parts, method = experiment.proxy, experiment.method
    with attributed_to(experiment.source, "columns"):
        encoder = build_encoder(parts, proxy, experiment, dataset)
        rows = encoder.encode_all(dataset)
    proxy.check_examples(rows.examples)
    check_training_rows(parts.ensemble, len(rows.examples))
    report_model(run, dataset, method.scoring_model, proxy)
    run_on_rank_zero(encoder.show_example, dataset, rows.examples, screen())
    return MeasurementContext(
        base_model=proxy,
        dataset=dataset,
        examples=rows.examples,
        heldout=rows.heldout,
        encoder=encoder,
        objective=parts.objective,
        ensemble=parts.ensemble,
        build_engine=parts.build_engine,
        snapshots=parts.snapshots.first_pair,
        projection=parts.projection,
        embeddings=parts.embeddings,
        batches=parts.batches,
        cache=experiment.cache,
        run_folder=run.folder,
        seed=experiment.seed,
        build_trainer=run.build_trainer,
        heldout_norms=experiment.page.heldout_norms,
    )


def measure_rows(experiment: Experiment, run: OpenRun, planned: PlannedRun) -> MeasuredRows:
    """Measure what the method requests of the rows and no more, and score them."""
    parts, method = experiment.proxy, experiment.method
    context = measure_reference(run, planned.context)
    dataset, examples = context.dataset, context.examples
    run.stages.add_to_summary(data=examples.summary(len(dataset)), counted_rows=planned.total_rows)
    run.stages.add_warnings(examples.warnings())
    write_known_rows(run.folder, dataset, examples)
    scorer = method.scorer

    def score_partial_evidence(partial_evidence: Evidence) -> np.ndarray:
        assert scorer is not None, "check_experiment refuses a search for the number of members where nothing scores"
        return score_rows(scorer, partial_evidence, {})

    evidence, context = measure_settled_evidence(
        requests=method.requests,
        context=context,
        snapshots=parts.snapshots,
        size=parts.size,
        score_rows=score_partial_evidence,
        selected_rows=method.budget_rows(planned.total_rows),
        run_stage=run.stages.run,
    )
    logs_gradients = GradientLog() in evidence.results
    if logs_gradients:
        measure_heldout_loss(experiment, run, context)
    context.device_states.clear()
    if BaseModelLosses() in evidence.results:
        diagnose_proxy(experiment, run, evidence, context)
    if logs_gradients:
        diagnose_members(experiment, run, evidence, context)
    if context.reports.ensemble.members:
        run.stages.add_to_summary(proxy=context.reports.ensemble.summary())
    if context.reports.task_gradients.requests:
        run.stages.add_to_summary(influence=context.reports.task_gradients.summary())
    scores = run_scorer(experiment, run, evidence, context)
    return MeasuredRows(dataset, examples, planned.heldout_cut, planned.total_rows, planned.is_cut, evidence, scores)


def run_scorer(experiment: Experiment, run: OpenRun, evidence: Evidence, context: MeasurementContext) -> Scores | None:
    """Score the rows; None where the method scores nothing, or the run ends before."""
    scorer = experiment.method.scorer
    if scorer is None or not experiment.reaches("score"):
        return None
    scores = run.stages.run("score", scorer.score, evidence)
    write_scores(run.folder, scores, context.examples.unscored)
    run.stages.add_to_summary(data=context.examples.summary(len(context.dataset), scores.unscored))
    return scores


def measure_reference(run: OpenRun, context: MeasurementContext) -> MeasurementContext:
    """Measure the base model's log-probabilities of both answers, once, where the rows are preferences."""
    if not context.examples.is_paired:
        return context

    def measure() -> MeasurementContext:
        heldout = None if context.heldout is None else add_reference_nll(context, context.heldout)
        return replace(context, examples=add_reference_nll(context, context.examples), heldout=heldout)

    return run.stages.run(REFERENCE_STAGE, measure)


def measure_heldout_loss(experiment: Experiment, run: OpenRun, context: MeasurementContext) -> None:
    """Train and measure one more member on a split of its own, where the ensemble's held-out loss needs it."""
    settings = experiment.proxy.heldout_member
    split = settings.split(context.examples, context.heldout is not None, context.seed)
    if split is not None:
        report = run.stages.run(HELDOUT_MEMBER_STAGE, measure_heldout_member, context, split)
        context.reports.heldout_member = report
        run.stages.add_to_summary(heldout_member=report.summary())
    elif context.heldout is None and settings.train:
        announce(f"no held-out loss: {len(context.examples)} rows are too few to hold some of them out")


def diagnose_proxy(experiment: Experiment, run: OpenRun, evidence: Evidence, context: MeasurementContext) -> None:
    """Add what the proxy knows of the rows without adapters."""
    findings = diagnose_proxy_knowledge(
        row_losses=evidence.get(BaseModelLosses()).row_losses,
        embedded_tokens=context.base_model.embedding_count,
        unknown_token_share=unknown_token_share(context.examples, context.base_model.tokenizer),
        limits=experiment.limits,
    )
    run.stages.add_diagnostics(findings.values, findings.failed)


def diagnose_members(experiment: Experiment, run: OpenRun, evidence: Evidence, context: MeasurementContext) -> None:
    """Add how the norms of the ensemble and its held-out loss fell."""
    ensemble_report, snapshots = context.reports.ensemble, context.snapshots
    findings = diagnose_ensemble(
        columns=ArrayColumns(ensemble_columns(evidence.get(GradientLog()))),
        early_epoch=snapshots.early,
        late_epoch=snapshots.late,
        update_ratios=ensemble_report.update_ratios,
        limits=experiment.limits,
        unit=snapshots.unit,
    )
    heldout_losses = collect_heldout_losses(evidence, context)
    heldout_findings = diagnose_heldout_loss(heldout_losses, snapshots.early, snapshots.late, snapshots.unit)
    for ensemble_findings in (findings, heldout_findings):
        run.stages.add_diagnostics(ensemble_findings.values, ensemble_findings.failed)


def collect_heldout_losses(evidence: Evidence, context: MeasurementContext) -> HeldoutLosses | None:
    """Collect the losses of the extra member, or else of the ensemble, on rows that they were not trained on."""
    extra_member = context.reports.heldout_member
    if extra_member is not None:
        return HeldoutLosses(
            extra_member.base_loss, extra_member.losses, extra_member.heldout_rows, origin="extra_member"
        )
    base_loss = evidence.get(BaseModelLosses()).heldout_loss
    if context.heldout is None or base_loss is None:
        return None
    return HeldoutLosses(base_loss, context.reports.ensemble.heldout_losses, len(context.heldout), origin="dataset")
