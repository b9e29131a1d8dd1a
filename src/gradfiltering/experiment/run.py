"""The experiment, from rows to report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Examples, describe_template
from gradfiltering.data.export import warn_of_export
from gradfiltering.data.row_hygiene import check_hygiene
from gradfiltering.data.row_texts import write_row_texts
from gradfiltering.data.templates import layout_name
from gradfiltering.data.unknown_tokens import unknown_token_share
from gradfiltering.diagnostics.ensemble import diagnose_ensemble, ensemble_columns
from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.diagnostics.heldout_loss import HeldoutLosses, diagnose_heldout_loss
from gradfiltering.diagnostics.planted_truth import compare_with_truth
from gradfiltering.diagnostics.proxy_knowledge import diagnose_proxy_knowledge
from gradfiltering.diagnostics.row_columns import ArrayColumns
from gradfiltering.diagnostics.subset import diagnose_selection, diagnose_sources
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.errors import attributed_to
from gradfiltering.evidence.adaptive_size import measure_settled_evidence
from gradfiltering.evidence.base_model_losses import REFERENCE_STAGE, add_reference_nll
from gradfiltering.evidence.base_model_passes import TargetWork
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE, measure_heldout_member
from gradfiltering.evidence.measurers import check_requests_of_dataset
from gradfiltering.experiment.cached_targets import build_tuning_context, cut_heldout
from gradfiltering.experiment.checks import (
    check_experiment,
    check_objective,
    check_training_rows,
    warn_of_judging_on_validation,
)
from gradfiltering.experiment.model_loading import build_encoder, load_language_model
from gradfiltering.experiment.open_run import OpenRun, open_run
from gradfiltering.experiment.parts import Experiment, ModelParts
from gradfiltering.experiment.planning_of_run import PlannedRun, compare_with_plan, plan_experiment
from gradfiltering.experiment.stage_list import list_stages
from gradfiltering.finetuning.fine_tune import (
    TrainedModel,
    average_losses_by_source,
    fine_tune_all,
)
from gradfiltering.finetuning.training_sets import CANDIDATE, build_baseline_sets
from gradfiltering.judging.answers import generate_answers
from gradfiltering.judging.pair_judging import check_judging, judge_pairs
from gradfiltering.judging.prompts import Prompt, load_prompts
from gradfiltering.judging.reference_metrics import measure_all_responses
from gradfiltering.judging.responses import write_responses
from gradfiltering.judging.verdict_summary import summarize_verdicts, warn_of_unreadable_verdicts
from gradfiltering.judging.verdicts import write_verdicts
from gradfiltering.methods.subset_files import write_known_rows, write_scores, write_subset
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import loss_unit, reads_pairs
from gradfiltering.reports.screen import format_details, print_result
from gradfiltering.requests import BaseModelLosses, Evidence, GradientLog
from gradfiltering.runs.logs import announce, screen
from gradfiltering.scorers.base import Scores, score_rows
from gradfiltering.selectors.base import Selection, shortfall_warnings

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class TunedTarget:
    """The fine-tuned models of a run.

    Attributes:
        base_model: the frozen target and its tokenizer.
        models: the candidate and its baselines, by name.
    """

    base_model: LanguageModel
    models: Mapping[str, TrainedModel]

    @property
    def flops(self) -> int:
        """An estimate of the work done in this run."""
        return sum(model.result.flops for model in self.models.values() if not model.result.reused)


def run_experiment(experiment: Experiment) -> None:
    """Run the stages of an experiment in order, up to its last one.

    Rows become examples, examples are measured, measurements become scores, scores a subset; the
    target is fine-tuned on it and on its baselines, a judge compares their answers, and a page
    shows the run. Everything is written into the run folder as it becomes known.

    Raises:
        UserError: something that the user can mend.
    """
    check_experiment(experiment)
    refuse_tuning_rows(experiment)
    with open_run(experiment) as run:
        run.stages.set_plan(list_stages(experiment), {})
        dataset = run.stages.run("data", experiment.source.load, experiment.seed)
        run.stages.set_plan(list_stages(experiment, dataset), {})
        report_contents(run, dataset)
        with attributed_to(experiment.method.scorer, "validation", "task"):
            check_requests_of_dataset(experiment.method.requests, dataset)
        check_objective(experiment, dataset)
        objective = experiment.proxy.objective
        run.stages.add_to_summary(
            objective={"name": type(objective).__name__, "pairs": reads_pairs(objective), "unit": loss_unit(objective)}
        )
        if experiment.reaches("select"):
            experiment.export.check(dataset.schema)
        experiment.method.budget_rows(dataset.counted_rows)  # refuses a budget that the dataset does not have
        # Prompts are loaded now, so that a missing file shows before anything is trained.
        prompts = load_judging_prompts(experiment, run, dataset)
        dataset = report_hygiene(experiment, run, dataset, prompts)
        check_judge(experiment, run)

        proxy = run.stages.run("base_model", load_model, experiment.proxy, experiment, run)
        planned = plan_experiment(experiment, run, encode_rows(experiment, run, dataset, proxy), prompts)
        if experiment.planning.only:
            return
        rows = measure_rows(experiment, run, planned)
        selection = select_subset(experiment, run, rows)

        if experiment.reaches("target"):
            target = run.stages.run("target", train_models, experiment, run, rows, selection, proxy)
            results = {
                name: {
                    **asdict(model.result),
                    "heldout_by_source": average_losses_by_source(model, dataset.heldout_sources),
                }
                for name, model in target.models.items()
            }
            run.stages.add_to_summary(target=results)
            if experiment.reaches("judge"):
                run.stages.run("judge", judge_models, experiment, run, dataset, target, prompts)
        run.stages.add_to_summary(plan=compare_with_plan(planned.plan.to_json(), run.stages.summary["cost"]))
        run.stages.add_to_summary(verdict=run_on_rank_zero(reach_run_verdict, run))
        if experiment.page.page:
            run.stages.run("report", run_on_rank_zero, write_run_page, experiment, run, dataset)
        run_on_rank_zero(write_run_cards, run)
        run.stages.end()
        logger.info("results\n%s", format_details(run.stages.summary))
        print_result(run.stages.summary, run.folder.path, screen())
        log_results(run)


def refuse_tuning_rows(experiment: Experiment) -> None:
    """Refuse the seeds and rows of a tuning whose settings the run is to report on."""
    folders = experiment.page.tuning
    if folders:
        from gradfiltering.reports.tuning_record import refuse_tuning_runs

        with attributed_to(experiment.page, "tuning"):
            refuse_tuning_runs(folders, experiment.seed, experiment.config["data"])


def report_contents(run: OpenRun, dataset: InstructionDataset) -> None:
    """Say how many rows are of each schema and what of them is not used, before anything is computed."""
    run.stages.add_to_summary(contents=asdict(dataset.contents))
    if dataset.other_part:
        run.stages.add_to_summary(study_part={"rows": dataset.counted_rows, "all_rows": len(dataset)})
        announce(f"{dataset.counted_rows:,} of {len(dataset):,} rows are of this part of the study")
    for line in dataset.contents.describe():
        announce(f"{dataset.origin}: {line}")


def report_model(run: OpenRun, dataset: InstructionDataset, role: str, model: LanguageModel) -> None:
    """Note a model, and say by which prompt template it sees the rows: each has its own where that is `auto`.

    Args:
        run: the open run.
        dataset: the rows.
        role: proxy or target.
        model: the model with its tokenizer.
    """
    run.stages.add_to_summary(
        base_models={**run.stages.summary.get("base_models", {}), role: {"name": model.name, "path": model.path}}
    )
    layout = layout_name(dataset.template_for(model.tokenizer), model.tokenizer)
    run.stages.add_to_summary(templates={**run.stages.summary.get("templates", {}), role: layout})
    announce(f"prompt template of the {role}: {describe_template(dataset, model.tokenizer)}")


def report_hygiene(
    experiment: Experiment, run: OpenRun, dataset: InstructionDataset, prompts: Sequence[Prompt]
) -> InstructionDataset:
    """List the rows that show signs of poor quality, and return the dataset without those that are to be left out."""
    evaluation_turns = [*(dataset.heldout_turns() or ()), *(prompt.turn for prompt in prompts)]
    hygiene = check_hygiene(dataset, [turn.question for turn in evaluation_turns], experiment.cache)
    run.folder.write_hygiene(hygiene.hits)
    dropped = hygiene.rows_to_drop(dataset.drop)
    run.stages.add_to_summary(hygiene={"rows": len(dataset), "counts": hygiene.counts, "dropped": len(dropped)})
    return replace(dataset, dropped=dropped)


def load_judging_prompts(experiment: Experiment, run: OpenRun, dataset: InstructionDataset) -> list[Prompt]:
    """Load the prompts of the judge, where the run gets that far, and refuse judging that could not succeed."""
    if not experiment.reaches("judge"):
        return []
    judging, heldout_turns = experiment.judging, dataset.heldout_turns()
    heldout_rows = None if heldout_turns is None else [asdict(turn) for turn in heldout_turns]
    prompts = load_prompts(judging.prompts.values(), heldout_rows)
    run_on_rank_zero(
        check_judging,
        judging.judge,
        prompts,
        experiment.target.baselines,
        judging.repeats,
        judging.generation.max_new_tokens,
    )
    judged_on_validation = warn_of_judging_on_validation(experiment, prompts)
    run.stages.add_diagnostics({}, [FailedDiagnostic("judged_on_validation", text) for text in judged_on_validation])
    return prompts


def check_judge(experiment: Experiment, run: OpenRun) -> None:
    """Hold the judge against labelled pairs before anything is trained, where it is to be checked and used."""
    judging = experiment.judging
    if judging.check.labelled_pairs is None or not experiment.reaches("judge"):
        return
    agreement = run.stages.run("judge_check", run_on_rank_zero, judging.check.measure, judging.judge, experiment.seed)
    run.stages.add_to_summary(judge_agreement=asdict(agreement))
    run.stages.add_warnings(agreement.warnings())


def load_model(parts: ModelParts, experiment: Experiment, run: OpenRun) -> LanguageModel:
    """Load a base model, or take one from the cache that this project trains from scratch."""
    return load_language_model(parts.base_model, experiment.cache, experiment.seed, run.build_trainer)


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
    if GradientLog() in evidence.results:
        measure_heldout_loss(experiment, run, context)
    add_measurements_to_summary(experiment, run, evidence, context)
    scores = None
    if scorer is not None and experiment.reaches("score"):
        scores = run.stages.run("score", scorer.score, evidence)
        write_scores(run.folder, scores, examples.unscored)
        run.stages.add_to_summary(data=examples.summary(len(dataset), scores.unscored))
    return MeasuredRows(dataset, examples, planned.heldout_cut, planned.total_rows, planned.is_cut, evidence, scores)


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


def add_measurements_to_summary(
    experiment: Experiment, run: OpenRun, evidence: Evidence, context: MeasurementContext
) -> None:
    """Add costs and diagnostics of proxy and ensemble to the summary."""
    if BaseModelLosses() in evidence.results:
        knowledge = diagnose_proxy_knowledge(
            row_losses=evidence.get(BaseModelLosses()).row_losses,
            embedded_tokens=context.base_model.embedding_count,
            unknown_token_share=unknown_token_share(context.examples, context.base_model.tokenizer),
            limits=experiment.limits,
        )
        run.stages.add_diagnostics(knowledge.values, knowledge.failed)
    if GradientLog() in evidence.results:
        ensemble_report = context.reports.ensemble
        run.stages.add_to_summary(proxy=ensemble_report.summary())
        findings = diagnose_ensemble(
            columns=ArrayColumns(ensemble_columns(evidence.get(GradientLog()))),
            early_epoch=context.snapshots.early,
            late_epoch=context.snapshots.late,
            update_ratios=ensemble_report.update_ratios,
            limits=experiment.limits,
            unit=context.snapshots.unit,
        )
        heldout_losses = collect_heldout_losses(evidence, context)
        heldout_findings = diagnose_heldout_loss(
            heldout_losses, context.snapshots.early, context.snapshots.late, context.snapshots.unit
        )
        for ensemble_findings in (findings, heldout_findings):
            run.stages.add_diagnostics(ensemble_findings.values, ensemble_findings.failed)
    if context.reports.task_gradients.requests:
        run.stages.add_to_summary(influence=context.reports.task_gradients.summary())


def select_subset(experiment: Experiment, run: OpenRun, rows: MeasuredRows) -> Selection | None:
    """Select the subset, unless the run ends before or the target selects while it trains."""
    method = experiment.method
    if not experiment.reaches("select") or method.selects_while_training:
        return None
    selection = run.stages.run("select", method.select_rows, rows.evidence, rows.total_rows, rows.scores)
    assert selection is not None, "this method selects before the training"
    write_selection(experiment, run, rows, selection, rows.scores)
    return selection


def write_selection(
    experiment: Experiment, run: OpenRun, rows: MeasuredRows, selection: Selection, scores: Scores | None
) -> None:
    """Write the subset into the run folder, and its facts and diagnostics into the summary."""
    total_rows = rows.total_rows
    write_subset(run.folder, rows.dataset, selection.example_ids, scores, selection.trace, experiment.export)
    run.stages.add_warnings(warn_of_export(rows.dataset, selection.example_ids, experiment.export))
    run.stages.add_to_summary(selection=selection.summary(experiment.choices, total_rows, scores))
    run.stages.add_warnings(shortfall_warnings(experiment.method.budget_rows(total_rows), selection))
    selected_ids, limits = selection.example_ids, experiment.limits
    base_losses = rows.evidence.results.get(BaseModelLosses())
    for findings in (
        diagnose_selection(rows.evidence, selected_ids, scores, base_losses, limits),
        diagnose_sources(rows.dataset.sources, selected_ids, limits),
        compare_with_truth(rows.dataset.kinds, selected_ids, scores, experiment.seed, limits),
    ):
        run.stages.add_diagnostics(findings.values, findings.failed)


def train_models(
    experiment: Experiment, run: OpenRun, rows: MeasuredRows, selection: Selection | None, proxy: LanguageModel
) -> TunedTarget:
    """Fine-tune the target on the subset and on the rows of its baselines."""
    method, parts = experiment.method, experiment.target
    measured_with_target = method.scoring_model == "target"
    is_same_model = parts.base_model == experiment.proxy.base_model  # loaded once: adapters leave it as it was
    target = proxy if is_same_model else load_model(parts, experiment, run)
    target_rows = build_encoder(parts, target, experiment, rows.dataset).encode_all(rows.dataset)
    if rows.is_cut:
        drawn_ids = rows.examples.example_ids.tolist()
        target_rows = replace(target_rows, examples=target_rows.examples.select(drawn_ids))
    target_rows = cut_heldout(target_rows, rows.heldout)
    if target_rows.examples.truncated and not measured_with_target:
        run.stages.add_warnings([warn_of_cut_target_rows(target_rows.examples)])
    target.check_examples(target_rows.examples)
    if not measured_with_target:
        report_model(run, rows.dataset, "target", target)
    target_work = TargetWork(target, experiment.proxy.batches, experiment.cache, run.device)
    heldout = None if target_rows.heldout is None else add_reference_nll(target_work, target_rows.heldout)
    context = build_tuning_context(experiment, run, target_work, replace(target_rows, heldout=heldout))
    total_rows = rows.total_rows
    selection, candidate = method.train_candidate(selection, rows.evidence, total_rows, rows.scores, context)
    if method.selects_while_training:
        write_selection(experiment, run, rows, selection, scores=None)
    baseline_sets = build_baseline_sets(
        parts.baselines,
        selection.example_ids,
        candidate.result.steps,
        rows.examples.example_ids,
        total_rows,
        experiment.seed,
    )
    return TunedTarget(target, {CANDIDATE: candidate, **fine_tune_all(baseline_sets, context)})


def warn_of_cut_target_rows(examples: Examples) -> str:
    """Warn that the target does not read all of its rows."""
    return (
        f"the target was trained on rows cut to {examples.max_tokens:,} tokens: {examples.truncated:,} of "
        f"{len(examples):,} lost {examples.lost_tokens:,} tokens; allow longer examples, or take another target"
    )


def judge_models(
    experiment: Experiment,
    run: OpenRun,
    dataset: InstructionDataset,
    target: TunedTarget,
    prompts: Sequence[Prompt],
) -> None:
    """Let all models answer the prompts, and a judge compare the candidate with its baselines."""
    judging = experiment.judging
    run.stages.add_warnings(judging.judge.list_warnings(prompts))
    answers = generate_answers(
        adapter_folders={name: model.adapter_folder for name, model in target.models.items()},
        language_model=target.base_model,
        prompts=prompts,
        template_name=dataset.template_for(target.base_model.tokenizer),
        settings=judging.generation,
        cache=experiment.cache,
        device=run.device,
    )
    for model_name, responses in answers.responses.items():
        run_on_rank_zero(write_responses, run.folder.responses_file(model_name), responses)
    # A judge may cost money: rank 0 asks it, once.
    verdicts = run_on_rank_zero(judge_pairs, judging.judge, prompts, answers.responses, CANDIDATE, judging.repeats)
    run_on_rank_zero(write_verdicts, run.folder.verdicts_file, verdicts)
    verdict_summary = summarize_verdicts(
        verdicts,
        prompts,
        answers.responses,
        judging.other_judges,
        judging.resamples,
        judging.confidence,
        experiment.seed,
    )
    run.stages.add_warnings(warn_of_unreadable_verdicts(verdict_summary["pws"]))
    run.stages.add_to_summary(
        metrics=measure_all_responses(prompts, answers.responses),
        answers={"reused_seconds": answers.reused_seconds},
        **verdict_summary,
    )


def reach_run_verdict(run: OpenRun) -> dict[str, Any]:
    """Reach the verdict on the subset, and find the command that would settle it."""
    from gradfiltering.reports.verdict import judge_run

    return judge_run(run.folder.path)


def write_run_page(experiment: Experiment, run: OpenRun, dataset: InstructionDataset) -> None:
    """Write the page of the run, and the rows' texts that it shows."""
    from gradfiltering.reports.page.run_page import write_page

    write_row_texts(run.folder.path, dataset, experiment.cache)
    write_page(run.folder.path, experiment.page.rows, experiment.page.figures)


def write_run_cards(run: OpenRun) -> None:
    """Write the cards of subset and adapter."""
    from gradfiltering.reports.cards import write_cards

    write_cards(run.folder.path)


def log_results(run: OpenRun) -> None:
    """Log what the run left in its experiment loggers."""
    from gradfiltering.reports.experiment_logger import log_run

    for run_logger in run.loggers:
        log_run(run_logger, run.folder.path)
