"""The stages of a run, in order."""

from dataclasses import asdict

from rich.console import Console

from gradfiltering.distributed import process_group as devices
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stages import Plan, choose_method
from gradfiltering.reports import screen


def run_stages(experiment: Experiment) -> None:
    """Runs the stages in order, up to `experiment.until`."""
    from gradfiltering.data.examples import Encoder
    from gradfiltering.data.row_texts import write_row_texts
    from gradfiltering.evidence.adaptive_size import measure_settled_evidence
    from gradfiltering.evidence.context import MeasurementContext
    from gradfiltering.experiment import start as opening
    from gradfiltering.experiment.model_loading import load_language_model
    from gradfiltering.finetuning.fine_tune import FineTuningContext, fine_tune_all
    from gradfiltering.finetuning.training_sets import CANDIDATE, build_baseline_sets
    from gradfiltering.judging.answers import generate_answers
    from gradfiltering.judging.pair_judging import check_judging, judge_pairs
    from gradfiltering.judging.prompts import Prompt, load_prompts
    from gradfiltering.judging.reference_metrics import measure_all_responses
    from gradfiltering.judging.responses import write_responses
    from gradfiltering.judging.verdict_summary import summarize_verdicts
    from gradfiltering.judging.verdicts import write_verdicts
    from gradfiltering.methods import diagnostics
    from gradfiltering.methods.subset_files import write_known_rows, write_scores, write_subset
    from gradfiltering.reports import cards
    from gradfiltering.reports import experiment_logger as tracking
    from gradfiltering.reports.page.run_page import write_page
    from gradfiltering.requests import BaseModelLosses, GradientLog
    from gradfiltering.runs.run_folder import RunFolder
    from gradfiltering.scorers.base import Scores, score_rows
    from gradfiltering.selectors.base import Selection, shortfall_warnings

    part, seed, against = experiment, experiment.seed, experiment.target.baselines
    proxy, judging = experiment.proxy, experiment.judging
    method = choose_method(part.target.data, part.until, part.scorer, part.selector, part.target.lead)
    plan = Plan(part.until, method)
    plan.check_asked(experiment.overrides)
    score_requests = method.scorer.requests if method.scorer is not None else frozenset()
    members = proxy.size.fewest_members(proxy.ensemble, proxy.snapshots, score_requests)
    plan.check(members, proxy.ensemble, proxy.base_model, part.target.base_model, against, judging.generation)
    with opening.opened(experiment) as (run, logger, workspace):
        # Records -> examples. Prompts are loaded now, so that a missing file shows before anything is trained.
        records = run.stage_of("data", part.source.load, seed)
        asked = method.budget_rows(len(records))
        prompts: list[Prompt] = []
        if plan.reached("judge"):
            turns = records.heldout_turns()
            heldout_turns = None if turns is None else [asdict(turn) for turn in turns]
            prompts = load_prompts(judging.prompts.values(), heldout_turns)
            answer_tokens = judging.generation.max_new_tokens
            devices.once(check_judging, judging.judge, prompts, against, judging.repeats, answer_tokens)
        plan.check_dataset(records)
        run.warn(plan.judged_on_validation(prompts))
        base_model = run.stage_of(
            "backbone", load_language_model, proxy.base_model, part.cache, seed, workspace.trainer
        )
        encoder = Encoder(base_model.tokenizer, min(proxy.max_tokens, base_model.context_length), part.cache)
        rows = encoder.encode_all(records)
        examples, ids = rows.examples, rows.examples.example_ids
        devices.once(encoder.show_example, records, examples, Console())
        run.add(data=examples.summary(len(records)))
        write_known_rows(run.folder, records, examples)

        # Examples -> the evidence that scorer and selector request, and no more.
        context = MeasurementContext(
            base_model=base_model,
            dataset=records,
            examples=examples,
            heldout=rows.heldout,
            encoder=encoder,
            objective=proxy.objective,
            ensemble=proxy.ensemble,
            build_engine=proxy.build_engine,
            snapshots=proxy.snapshots.first_pair,
            projection=proxy.projection,
            embeddings=proxy.embeddings,
            batches=proxy.batches,
            cache=part.cache,
            run_folder=RunFolder(run.folder),
            seed=seed,
            build_trainer=workspace.trainer,
        )
        evidence, context = measure_settled_evidence(
            requests=method.requests,
            context=context,
            snapshots=proxy.snapshots,
            size=proxy.size,
            score_rows=lambda round_evidence: score_rows(part.scorer, round_evidence, {}),
            selected_rows=asked,
            run_stage=run.stage_of,
        )
        scores = None
        if GradientLog() in evidence.results:
            logs, losses = evidence.get(GradientLog()), evidence.get(BaseModelLosses())
            report = context.reports.ensemble
            run.add(proxy=report.summary())
            run.diagnose(diagnostics.of_ensemble(logs, context.snapshots, report, losses, part.limits))
        if plan.influences:
            run.add(influence=context.reports.task_gradients.summary())

        # What they look at -> scores -> subset.
        if plan.reached("score") and method.scorer is not None:
            scores = run.stage_of("score", method.scorer.score, evidence)
            write_scores(run.folder, scores, examples.unscored)
            run.add(data=examples.summary(len(records), scores.unscored))

        def settle(choice: Selection, scores: Scores | None) -> None:
            """Writes the subset, and what there is to say about it."""
            chosen, losses = choice.example_ids, evidence.results.get(BaseModelLosses())
            write_subset(run.folder, records, chosen, scores, choice.trace)
            run.add(selection=choice.summary(run.choices, len(records), scores))
            run.warn(shortfall_warnings(asked, choice))
            run.diagnose(diagnostics.of_choice(chosen, examples, records, scores, losses, seed, part.limits))

        selection = None
        if plan.reached("select") and not method.selects_while_training:
            selection = run.stage_of("select", method.select_rows, evidence, len(records), scores)
            settle(selection, scores)

        # Subset -> adapters -> answers -> verdicts.
        if plan.reached("target"):
            with run.stage("target") as cost:
                target = base_model
                if method.scoring_model != "target":
                    target = load_language_model(part.target.base_model, part.cache, seed, workspace.trainer)
                encoder = Encoder(target.tokenizer, min(part.target.max_tokens, target.context_length), part.cache)
                rows = encoder.encode_all(records)
                training = FineTuningContext(
                    base_model=target,
                    examples=rows.examples,
                    heldout=rows.heldout,
                    settings=part.target.tuning,
                    objective=proxy.objective,
                    cache=part.cache,
                    run_folder=RunFolder(run.folder),
                    seed=seed,
                    build_trainer=workspace.trainer,
                )
                selection, candidate = method.train_candidate(selection, evidence, len(records), scores, training)
                if method.selects_while_training:
                    settle(selection, None)
                baselines = build_baseline_sets(against, len(selection.example_ids), ids, len(records), seed)
                models = {CANDIDATE: candidate, **fine_tune_all(baselines, training)}
                tuned = {name: model.result for name, model in models.items()}
                cost.update(flops=sum(result.flops for result in tuned.values() if not result.reused))
            run.add(target={name: asdict(result) for name, result in tuned.items()})
        if plan.reached("judge"):
            with run.stage("judge"):
                run.warn(judging.judge.list_warnings(prompts))
                answers = generate_answers(
                    {name: model.adapter_folder for name, model in models.items()},
                    target,
                    prompts,
                    records.template,
                    judging.generation,
                    part.cache,
                    workspace.trainer().strategy.root_device,
                )
                for name, responses in answers.responses.items():
                    devices.once(write_responses, run.folder / "responses" / f"{name}.jsonl", responses)
                verdicts = devices.once(
                    judge_pairs, judging.judge, prompts, answers.responses, CANDIDATE, judging.repeats
                )
                devices.once(write_verdicts, run.folder / "verdicts.jsonl", verdicts)
            run.add(
                metrics=measure_all_responses(prompts, answers.responses),
                answers={"reused_seconds": answers.reused_seconds},
            )
            run.add(
                **summarize_verdicts(
                    verdicts,
                    prompts,
                    answers.responses,
                    judging.other_judges,
                    judging.resamples,
                    judging.confidence,
                    seed,
                )
            )
        if part.page.page:
            with run.stage("report"):
                devices.once(write_row_texts, run.folder, records, part.cache)
                devices.once(write_page, run.folder, part.page.rows, part.page.figures)
        screen.print_summary(run.summary, run.folder, Console(quiet=devices.rank() > 0))
        devices.once(cards.write_cards, run.folder)
        tracking.log_run(logger, run.folder)
