"""From configuration to objects, with errors that name the option and what it may be."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from gradfiltering.config.option_names import describe_with_options
from gradfiltering.config.plain_options import (
    RunSwitches,
    build_from_options,
    check_trainer_options,
    refuse_non_finite,
    runs_on_one_cpu,
)
from gradfiltering.distributed.process_group import silence_lightning
from gradfiltering.errors import UserError
from gradfiltering.experiment.parts import STAGES, Experiment, JudgingParts, ProxyParts, Stage, TargetParts

if TYPE_CHECKING:
    import lightning as L

    from gradfiltering.methods.base import Method
    from gradfiltering.planning.plan_settings import PlanSettings

TARGET_DATA = ("subset", "lead")
BUDGET_OPTIONS = ("selector.fraction", "selector.count")


def build(node: DictConfig, **further_arguments: Any) -> Any:
    """Build what `_target_` names, from plain Python values.

    Raises:
        UserError: a value is missing, of the wrong type, or refused by what is built.
    """
    node_path = str(node._get_full_key(None) or "")
    try:
        # Resolved apart: Hydra would resolve what the node refers to in its place, and references name options.
        plain_node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        return instantiate(OmegaConf.create(plain_node), _convert_="all", **further_arguments)
    except MissingMandatoryValue as missing_value:
        option_name = missing_value.full_key
        raise UserError(f"{option_name} is required; give it as {option_name}=VALUE") from missing_value
    except InstantiationException as build_error:
        inner_path = re.search(r"^full_key: (.*)$", str(build_error), re.MULTILINE)
        option_path = ".".join(filter(None, [node_path, inner_path[1] if inner_path else ""]))
        root_cause: BaseException = build_error
        while root_cause.__cause__ is not None and not isinstance(root_cause, UserError):
            root_cause = root_cause.__cause__
        if isinstance(root_cause, UserError):
            raise UserError(describe_with_options(root_cause, [option_path], node)) from build_error
        first_line = str(root_cause).strip().partition("\n")[0]
        raise UserError(f"{option_path} cannot be built: {first_line}. Mend its options") from build_error


def build_experiment(cfg: DictConfig) -> Experiment:
    """Build all parts of a run, so that what any of them refuses is told before anything starts.

    With `target.data=lead` the target takes the proxy's place: it scores the rows and selects as it trains.

    Args:
        cfg: the composed configuration; Hydra's own must be set.

    Raises:
        UserError: an option has a value that it cannot have.
    """
    switches = build_from_options(RunSwitches, {name: name for name in RunSwitches.__dataclass_fields__}, cfg)
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    method = build_method(cfg, overrides)
    proxy_model, target_model = build(cfg.proxy.base_model), build(cfg.target.base_model)
    measured_with_target = method.scoring_model == "target"
    objective = build(cfg.objective)
    experiment = Experiment(
        until=switches.until,
        seed=switches.seed,
        run_folder=Path(switches.run_dir),
        cache=build(cfg.cache),
        config=to_plain(cfg),
        overrides=overrides,
        choices={
            str(option_group): str(chosen_name) for option_group, chosen_name in hydra_config.runtime.choices.items()
        },
        build_trainer=build_trainer_builder(cfg),
        runs_on_one_cpu=runs_on_one_cpu(cfg),
        build_loggers=partial(build, cfg.logger),
        source=build(cfg.data),
        tokenising=build(cfg.tokenising),
        proxy=build_from_options(
            ProxyParts,
            {"max_tokens": "target.max_tokens" if measured_with_target else "proxy.max_tokens"},
            cfg,
            base_model=target_model if measured_with_target else proxy_model,
            objective=objective,
            ensemble=build(cfg.ensemble),
            size=build(cfg.adaptive),
            build_engine=partial(build(cfg.gradients), objective=objective),
            snapshots=build(cfg.epochs),
            heldout_member=build(cfg.heldout_member),
            projection=build(cfg.projection),
            embeddings=build(cfg.embeddings),
            batches=build(cfg.batch),
        ),
        method=method,
        target=build_from_options(
            TargetParts,
            {"max_tokens": "target.max_tokens", "baselines": "judge.against"},
            cfg,
            base_model=target_model,
            tuning=build(cfg.target.tuning),
        ),
        judging=build_from_options(
            JudgingParts,
            {name: f"judge.{name}" for name in ("repeats", "resamples", "confidence")},
            cfg,
            prompts=build(cfg.eval.sets),
            generation=build(cfg.generation),
            judge=build(cfg.judge.judge),
            check=build(cfg.judge.check),
            other_judges=build(cfg.judge.others),
        ),
        limits=build(cfg.diagnostics),
        page=build(cfg.report),
        export=build(cfg.export),
        planning=build_plan_settings(cfg),
    )
    refuse_non_finite(experiment.config)
    return experiment


def build_plan_settings(cfg: DictConfig) -> "PlanSettings":
    """Build the settings of the plan; `plan=true` alone is short for `plan.only=true`."""
    from gradfiltering.planning.plan_settings import PlanSettings

    if isinstance(cfg.plan, bool):
        return PlanSettings(only=cfg.plan)
    plan_settings: PlanSettings = build(cfg.plan)
    return plan_settings


def build_trainer_builder(cfg: DictConfig) -> "Callable[..., L.Trainer]":
    """Build the builder of trainers.

    Raises:
        UserError: an option of the trainer is out of range.
    """
    check_trainer_options(cfg)

    def build_trainer(**trainer_options: Any) -> "L.Trainer":
        silence_lightning()
        trainer_builder: Callable[..., L.Trainer] = build(cfg.trainer)
        return trainer_builder(**trainer_options)

    return build_trainer


def build_method(cfg: DictConfig, overrides: Sequence[str]) -> "Method":
    """Build the method that selects the rows: score-and-select, or LEAD with `target.data=lead`.

    Args:
        cfg: the composed configuration.
        overrides: of the command line.

    Raises:
        UserError: an unknown method, or an override that has no effect beside it.
    """
    from gradfiltering.methods.lead.lead_method import Lead
    from gradfiltering.methods.score_and_select import ScoreAndSelect

    if cfg.target.data not in TARGET_DATA:
        raise UserError(f"target.data={cfg.target.data} is unknown; choose one of: {', '.join(TARGET_DATA)}")
    selector, last_stage = build(cfg.selector), _check_stage(cfg.until)
    lead_settings = build(cfg.target.lead)
    scorer = build(cfg.scorer)
    if cfg.target.data == "subset":
        reaches_selection = STAGES.index(last_stage) >= STAGES.index("select")
        return ScoreAndSelect(scorer, selector, reaches_selection)
    if STAGES.index(last_stage) < STAGES.index("target"):
        raise UserError(
            f"until={last_stage} ends before the target is trained, and with target.data=lead it selects its rows "
            "as it trains; give until=target or a later stage, or target.data=subset"
        )
    _refuse_other_selection(overrides)
    return Lead(lead_settings, selector)


def _refuse_other_selection(overrides: Sequence[str]) -> None:
    """Refuse a scorer, selector or method that was asked for beside LEAD."""
    for override in overrides:
        option_name, _, option_value = override.lstrip("+~").partition("=")
        option_path = option_name.rpartition("@")[2]  # of `scorer@target.lead.difficulty` the last part
        selects_rows = option_path.partition(".")[0] in ("scorer", "selector") and option_path not in BUDGET_OPTIONS
        if selects_rows or (option_path == "method" and option_value not in ("lead", "null")):
            raise UserError(
                f"{override} has no effect with target.data=lead: the target selects its rows as it trains; "
                "leave it out (selector.fraction= or selector.count= says how many rows, "
                "scorer@target.lead.difficulty= by what they are clustered), or give target.data=subset"
            )


def _check_stage(stage_name: str) -> Stage:
    for known_stage in STAGES:
        if known_stage == stage_name:
            return known_stage
    raise UserError(f"until={stage_name} is no stage; choose one of: {', '.join(STAGES)}")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as resolved Python values."""
    plain_values = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(plain_values, dict):
        return {}
    return {str(option_name): option_value for option_name, option_value in plain_values.items()}
