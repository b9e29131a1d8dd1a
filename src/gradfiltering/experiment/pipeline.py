"""The stages of a run, in order."""

from collections.abc import Sequence
from dataclasses import asdict, replace
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
    from gradfiltering.data.examples import Encoder
    from gradfiltering.evidence import adaptive_size as adaptive
    from gradfiltering.evidence import base_model as bare
    from gradfiltering.evidence import gradient_log as proxy
    from gradfiltering.evidence import task_gradients as influence
    from gradfiltering.experiment import start as opening
    from gradfiltering.finetuning import targets as tuning
    from gradfiltering.judging import answers_and_verdicts as judging
    from gradfiltering.methods import diagnostics, lead
    from gradfiltering.reports import cards
    from gradfiltering.reports import experiment_logger as tracking
    from gradfiltering.reports.page import build as page
    from gradfiltering.runs import gradient_log as log
    from gradfiltering.scorers.base import Evidence, Scores, score_rows, write_known
    from gradfiltering.selectors.base import Selection, shortfall, write_subset

    part, seed, against = build_parts(cfg), cfg.seed, cfg.judge.against
    plan = Plan(cfg.until, part.scorer, part.selector, cfg.target.data)
    plan.check_asked(HydraConfig.get().overrides.task)
    members = part.adaptive.fewest(part.ensemble, part.epochs, plan.looked_at)
    plan.check(members, part.ensemble, part.proxy, part.target, against, part.generation)
    with opening.opened(cfg, part.cache) as (run, logger, workspace):
        # Records -> examples. Prompts are loaded now, so that a missing file shows before anything is trained.
        records = run.stage_of("data", devices.first_then_all, part.source.load, seed)
        asked = part.selector.wanted(len(records))
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
        write_known(run.folder, records, examples)

        # Examples -> what scorer and selector look at, and no more.
        evidence, scores = Evidence(ids, seed, part.epochs, examples=examples, sources=records.sources), None
        if plan.needs - validation.keys():
            by = (base_model, part.objective, records, rows, part.embeddings, part.batch, workspace)
            evidence = replace(evidence, observed=run.stage_of("bare", bare.observe, plan.needs, *by))
        if plan.needs & {"gradient_log", "projections"}:
            projection = part.projection if "projections" in plan.needs else None
            work = {"engine": part.engine, "batch": part.batch, "workspace": workspace, "projection": projection}
            make, rank = (
                partial(proxy.log_gradients, base_model, rows, **work),
                partial(score_rows, part.scorer, evidence),
            )
            size = (part.ensemble, part.epochs, part.adaptive)
            logged = run.stage_of("proxy", adaptive.settle, make, *size, rank, asked, workspace)
            run.add(proxy=logged.summary())
            norms = log.GradientLog(run.folder / "gradient_log")
            evidence = replace(evidence, epochs=logged.pair, gradient_log=norms, projections=logged.projections)
            run.diagnose(diagnostics.of_ensemble(norms, logged.pair, logged, evidence.observed.losses, part.limits))
        if validation:
            aim = (validation, encoder, examples, base_model, part.ensemble, part.engine, part.batch, workspace)
            found = run.stage_of("influence", influence.measure_influence, *aim, part.projection)
            run.add(influence=found.summary())
            evidence = replace(evidence, influences=found.gradients)

        # What they look at -> scores -> subset.
        if plan.reached("score") and plan.scored:
            scores = run.stage_of("score", part.scorer.score, evidence)
            scores.write(run.folder, examples.unscored)
            run.add(data=examples.summary(len(records), scores.unscored))

        def settle(choice: Selection, scores: Scores | None) -> Sequence[int]:
            """Writes the subset, and what there is to say about it."""
            chosen, losses = choice.example_ids, evidence.observed.bare
            write_subset(run.folder, records, chosen, scores, choice.trace)
            run.add(selection=choice.summary(run.choices, len(records), scores))
            run.warn(shortfall(asked, choice))
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
