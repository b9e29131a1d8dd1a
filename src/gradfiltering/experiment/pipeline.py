"""The stages of a run, in order."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from gradfiltering.config.build import build_parts
from gradfiltering.distributed import process_group as devices
from gradfiltering.experiment.stages import Plan
from gradfiltering.reports import screen


def run_stages(cfg: DictConfig) -> None:
    """Runs the stages in order, up to `cfg.until`."""
    import numpy as np

    from gradfiltering.data.examples import Encoder
    from gradfiltering.evidence import adaptive_size as adaptive
    from gradfiltering.evidence import base_model as bare
    from gradfiltering.evidence import gradient_log as proxy
    from gradfiltering.evidence import task_gradients as influence
    from gradfiltering.experiment import start as opening
    from gradfiltering.finetuning import targets as tuning
    from gradfiltering.judging import answers_and_verdicts as judging
    from gradfiltering.methods import diagnostics, lead
    from gradfiltering.methods.subset_files import write_known_rows, write_scores, write_subset
    from gradfiltering.reports import cards
    from gradfiltering.reports import experiment_logger as tracking
    from gradfiltering.reports.page import build as page
    from gradfiltering.requests import BaseModelLosses, Evidence, GradientLog, Projections
    from gradfiltering.scorers.base import Scores, score_rows
    from gradfiltering.selectors.base import Selection, shortfall_warnings

    part, seed, against = build_parts(cfg), cfg.seed, cfg.judge.against
    plan = Plan(cfg.until, part.scorer, part.selector, cfg.target.data)
    plan.check_asked(HydraConfig.get().overrides.task)
    members = part.adaptive.fewest(part.ensemble, part.epochs, plan.score_requests)
    plan.check(members, part.ensemble, part.proxy, part.target, against, part.generation)
    with opening.opened(cfg, part.cache) as (run, logger, workspace):
        # Records -> examples. Prompts are loaded now, so that a missing file shows before anything is trained.
        records = run.stage_of("data", devices.first_then_all, part.source.load, seed)
        asked = part.selector.budget_rows(len(records))
        asking = (part.judge, len(against), cfg.judge.repeats, part.generation)
        prompts = judging.load_prompt_sets(part.prompts, records, *asking) if plan.reached("judge") else []
        validation = devices.first_then_all(plan.validation, records)
        run.warn(plan.judged_on_validation(prompts))
        base_model = run.stage_of("backbone", part.proxy.load, part.cache, seed, workspace.trainer)
        encoder = Encoder(base_model.tokenizer, min(part.max_tokens, base_model.context), part.cache)
        rows = devices.first_then_all(encoder.encode_all, records)
        examples, ids = rows.examples, rows.examples.example_ids
        devices.once(encoder.show, records, examples, Console())
        run.add(data=examples.summary(len(records)))
        write_known_rows(run.folder, records, examples)

        # Examples -> what scorer and selector look at, and no more.
        sources = None if records.sources is None else np.asarray(records.sources)[ids]
        evidence, scores = Evidence(ids, seed, examples.response_tokens, examples.lengths, sources), None
        if plan.requests - validation.keys():
            by = (base_model, part.objective, records, rows, part.embeddings, part.batch, workspace)
            evidence = evidence.add_results(run.stage_of("bare", bare.observe, plan.requests, *by))
        if plan.requests & {GradientLog(), Projections()}:
            projection = part.projection if Projections() in plan.requests else None
            work = {"engine": part.engine, "batch": part.batch, "workspace": workspace, "projection": projection}
            make, rank = (
                partial(proxy.log_gradients, base_model, rows, **work),
                partial(score_rows, part.scorer, evidence),
            )
            size = (part.ensemble, part.epochs, part.adaptive)
            logged = run.stage_of("proxy", adaptive.settle, make, *size, rank, asked, workspace)
            run.add(proxy=logged.summary())
            logs = proxy.read_log_pair(run.folder, logged.pair, ids)
            evidence = evidence.add_results({GradientLog(): logs})
            if logged.projections is not None:
                evidence = evidence.add_results({Projections(): logged.projections})
            losses = evidence.get(BaseModelLosses())
            run.diagnose(diagnostics.of_ensemble(logs, logged.pair, logged, losses, part.limits))
        if validation:
            aim = (validation, encoder, examples, base_model, part.ensemble, part.engine, part.batch, workspace)
            found = run.stage_of("influence", influence.measure_influence, *aim, part.projection)
            run.add(influence=found.summary())
            evidence = evidence.add_results(found.gradients)

        # What they look at -> scores -> subset.
        if plan.reached("score") and plan.scored:
            scores = run.stage_of("score", part.scorer.score, evidence)
            write_scores(run.folder, scores, examples.unscored)
            run.add(data=examples.summary(len(records), scores.unscored))

        def settle(choice: Selection, scores: Scores | None) -> Sequence[int]:
            """Writes the subset, and what there is to say about it."""
            chosen, losses = choice.example_ids, evidence.results.get(BaseModelLosses())
            write_subset(run.folder, records, chosen, scores, choice.trace)
            run.add(selection=choice.summary(run.choices, len(records), scores))
            run.warn(shortfall_warnings(asked, choice))
            run.diagnose(diagnostics.of_choice(chosen, examples, records, scores, losses, seed, part.limits))
            return chosen

        if plan.reached("select") and not plan.leads:
            chosen = settle(run.stage_of("select", part.selector.select, evidence, len(records), scores), scores)

        # Subset -> adapters -> answers -> verdicts.
        if plan.reached("target"):
            with run.stage("target") as cost:
                target = base_model if plan.leads else part.target.load(part.cache, seed, workspace.trainer)
                encoder = Encoder(target.tokenizer, min(cfg.target.max_tokens, target.context), part.cache)
                rows = devices.first_then_all(encoder.encode_all, records)
                how = (part.lead, asked, scores, evidence, target, rows, part.tuning, workspace)
                choice, made = lead.train(*how) if plan.leads else (None, {})
                chosen = settle(choice, None) if choice else chosen
                sets = tuning.training_sets(chosen, ids, len(records), against, seed)
                tuned = tuning.finetune_all(sets, target, rows, part.tuning, workspace, made)
                cost.update(flops=sum(result.flops for result in tuned.values() if not result.reused))
            run.add(target={name: asdict(result) for name, result in tuned.items()})
        if plan.reached("judge"):
            with run.stage("judge"):
                run.warn(part.judge.check(prompts))
                answers, kept = judging.answer_all(tuned, target, prompts, records.template, part.generation, workspace)
                verdicts = devices.once(judging.judge_all, part.judge, prompts, answers, cfg.judge.repeats, run.folder)
            run.add(metrics=judging.measure_answers(prompts, answers), answers={"reused_seconds": kept})
            drawing = (cfg.judge.resamples, cfg.judge.confidence, seed)
            run.add(**judging.tally_verdicts(verdicts, prompts, answers, part.others, *drawing))
        if part.page.page:
            run.stage_of("report", devices.once, page.report, run.folder, records, part.cache, part.page)
        screen.show(run.summary, run.folder, Console(quiet=devices.rank() > 0))
        cards.write_cards(run.folder, run.summary)
        tracking.log_run(logger, run.folder, run.summary)
