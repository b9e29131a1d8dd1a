"""GradFiltering: which part of my instruction data should I train on, and how do I know?"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gradfiltering.config import build, run
from gradfiltering.errors import plain_words
from gradfiltering.plan import Plan
from gradfiltering.proxy import devices
from gradfiltering.report import screen


def experiment(cfg: DictConfig) -> None:
    """Runs the stages in order, up to `cfg.until`."""
    from gradfiltering.data.examples import Encoder
    from gradfiltering.data.records import write_truth
    from gradfiltering.judge import stage as judging
    from gradfiltering.proxy import bare
    from gradfiltering.proxy import stage as proxy
    from gradfiltering.proxy.log import GradientLog
    from gradfiltering.proxy.memory import keep_freed_memory
    from gradfiltering.report import diagnostics, tracking
    from gradfiltering.report.run import Run
    from gradfiltering.scorers.base import Evidence, Scores, write_unscored
    from gradfiltering.selectors.base import Choice, shortfall, write_subset
    from gradfiltering.store import Workspace
    from gradfiltering.target import lead as leading
    from gradfiltering.target import stage as tuning

    keep_freed_memory()
    source, lead, selector, epochs = build(cfg.data), build(cfg.target.lead), build(cfg.selector), build(cfg.epochs)
    store, batch, limits, judge = build(cfg.store), build(cfg.batch), build(cfg.diagnostics), build(cfg.judge.judge)
    ensemble, objective, embedding = build(cfg.ensemble), build(cfg.proxy.objective), build(cfg.embeddings)
    engine = partial(build(cfg.gradients), objective=objective)
    settings, generation, prompt_sets = build(cfg.target.tuning), build(cfg.generation), build(cfg.eval.sets)
    # With target.data=lead the target itself scores the rows, and chooses among them as it trains.
    scorer, look = (lead.difficulty, cfg.target) if cfg.target.data == "lead" else (build(cfg.scorer), cfg.proxy)
    seed, small, large = cfg.seed, build(look.backbone), build(cfg.target.backbone)
    (plan := Plan(cfg.until, scorer, selector, cfg.target.data)).check(ensemble.m, small, large, cfg.judge.against)
    run = Run(Path(cfg.run_dir), build(cfg.trainer)(logger=False).strategy.root_device)
    hydra_cfg, options = HydraConfig.get(), OmegaConf.to_container(cfg, resolve=True)
    devices.first_then_all(run.start, options, seed, hydra_cfg.overrides.task)
    logger = tracking.open_logger(partial(build, cfg.logger), run.config)
    trainer = partial(build(cfg.trainer), logger=logger, default_root_dir=run.folder, enable_progress_bar=cfg.progress)
    workspace = Workspace(run.folder, store, seed, trainer)
    try:
        # Records -> examples. Prompts are loaded now, so that a missing file shows before anything is trained.
        records = devices.first_then_all(source.load, seed)
        asked = selector.wanted(len(records))
        asking = (judge, len(cfg.judge.against), cfg.judge.repeats)
        prompts = judging.load_prompt_sets(prompt_sets, records, *asking) if plan.reached("judge") else []
        with run.stage("backbone") as cost:
            backbone = small.load(store, seed, trainer)
            cost.update(reused=backbone.reused)
        encoder = Encoder(backbone.tokenizer, min(look.max_tokens, backbone.context), store)
        rows = devices.first_then_all(encoder.encode_all, records)
        devices.once(encoder.show, records, examples := rows.examples, Console())
        run.add(data=examples.summary(len(records)))
        write_unscored(run.folder / "unscored.parquet", examples.unscored)
        write_truth(run.folder / "truth.parquet", records.kinds)

        # Examples -> what scorer and selector look at, and no more.
        log, scores, seen, projected = None, None, bare.Observed(), None
        if plan.needs:
            with run.stage("bare"):
                seen = bare.observe(plan.needs, backbone, objective, records, rows, embedding, batch, workspace)
        if plan.needs & {"gradient_log", "projections"}:
            projection = build(cfg.projection) if "projections" in plan.needs else None
            with run.stage("proxy") as cost:
                logged = proxy.log_gradients(backbone, rows, ensemble, engine, epochs, batch, workspace, projection)
                cost.update(flops=logged.flops, reused=logged.reused)
            log, projected = GradientLog(run.folder / "gradient_log"), logged.projections
            run.add(proxy=logged.summary())
            run.diagnose(diagnostics.of_ensemble(log, epochs, logged, seen.losses, limits))

        # What they look at -> scores -> subset.
        evidence = Evidence(examples.example_ids, seed, epochs, log, seen, projected, examples, records.sources)
        if plan.reached("score") and plan.scored:
            with run.stage("score"):
                scores = scorer.score(evidence)
                scores.write(run.folder, examples.unscored)
            run.add(data=examples.summary(len(records), scores.unscored))
            tracking.log_histogram(logger, "score/histogram", scores.score)

        def settle(choice: Choice, scores: Scores | None) -> list[int]:
            """Writes the subset, and what there is to say about it."""
            write_subset(run.folder, records, chosen := choice.example_ids, scores, choice.trace)
            run.add(selection=choice.summary(hydra_cfg.runtime.choices, len(records), scores))
            run.warn(shortfall(asked, choice))
            run.diagnose(diagnostics.of_selection(examples, chosen, scores, seen.bare, limits))
            run.diagnose(diagnostics.of_sources(records.sources, chosen, limits))
            run.diagnose(diagnostics.against_truth(records.kinds, chosen, scores, seed, limits))
            return chosen

        if plan.reached("select") and not plan.leads:
            with run.stage("select"):
                chosen = settle(selector.select(evidence, len(records), scores), scores)

        # Subset -> adapters -> answers -> verdicts.
        if plan.reached("target"):
            with run.stage("target") as cost:
                target = backbone if plan.leads else large.load(store, seed, trainer)
                encoder = Encoder(target.tokenizer, min(cfg.target.max_tokens, target.context), store)
                rows = devices.first_then_all(encoder.encode_all, records)
                made: dict = {}
                if plan.leads:
                    choice, made = leading.train(lead, asked, scores, evidence, target, rows, settings, workspace)
                    chosen = settle(choice, None)
                sets = tuning.training_sets(chosen, examples.example_ids, len(records), cfg.judge.against, seed)
                sets = {name: ids for name, ids in sets.items() if name not in made}  # rivals alone
                tuned = made | tuning.finetune_all(sets, target, rows, settings, workspace)
                cost.update(flops=sum(result.flops for result in tuned.values() if not result.reused))
            run.add(target={name: asdict(result) for name, result in tuned.items()})
        if plan.reached("judge"):
            with run.stage("judge"):
                run.warn(judge.check(prompts))
                answers = judging.answer_all(tuned, target, prompts, records.template, generation, run.folder, trainer)
                verdicts = devices.once(judging.judge_all, judge, prompts, answers, cfg.judge.repeats, run.folder)
            run.add(metrics=judging.measure_answers(prompts, answers))
            run.add(**judging.tally_verdicts(verdicts, answers, cfg.judge.resamples, cfg.judge.confidence, seed))
        tracking.log_summary(logger, run.summary)
        screen.show(run.summary, run.folder, Console(quiet=devices.rank() > 0))
    finally:
        tracking.close_logger(logger)


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one experiment; an error the user can mend is printed in plain words."""
    screen.open_run(cfg.run_dir, Console(quiet=not devices.is_first()))
    with plain_words(cfg.debug), devices.connected(build(cfg.trainer)):
        experiment(cfg)


if __name__ == "__main__":
    run(partial(devices.start, main))
