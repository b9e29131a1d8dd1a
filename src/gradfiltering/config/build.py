"""From configuration to objects, with errors that name the option and what it may be."""

import re
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from gradfiltering.errors import UserError
from gradfiltering.experiment.parts import STAGES, Experiment, JudgingParts, ProxyParts, Stage, TargetParts
from gradfiltering.options import OptionsError

if TYPE_CHECKING:
    from gradfiltering.methods.base import Method

TARGET_DATA = ("subset", "lead")
BUDGET_OPTIONS = ("selector.fraction", "selector.count")
SIMPLE = (int, float, str, bool, type(None))


def build(node: DictConfig, **arguments: Any) -> Any:
    """Builds what `_target_` names, from plain Python values.

    Raises:
        UserError: a value is missing, of the wrong type, or refused by what is built.
    """
    try:
        check_types(node)
        return instantiate(node, _convert_="all", **arguments)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is required; give it as {error.full_key}=VALUE") from error
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is None:
            raise
        option_path = re.search(r"^full_key: (.*)$", str(error), re.MULTILINE)
        raise UserError(_name_arguments(cause, [option_path.group(1) if option_path else ""], node)) from error


@contextmanager
def options_named(cfg: DictConfig) -> Iterator[None]:
    """Add the options behind a UserError of the code inside, found by its owner's class and values.

    Args:
        cfg: the whole configuration of the run.

    Raises:
        UserError: the message with its options and their values.
    """
    try:
        yield
    except UserError as error:
        if error.owner is None:
            raise
        raise UserError(_name_arguments(error, option_paths(cfg, error.owner), cfg)) from error


def option_paths(cfg: DictConfig, owner: object) -> list[str]:
    """List the nodes of the configuration that `owner` can have been built from.

    Args:
        cfg: the whole configuration.
        owner: a class, or an object, of which the node must have the simple values.
    """
    owner_class = owner if isinstance(owner, type) else type(owner)
    paths = []
    for path, node in _target_nodes(cfg):
        target = get_object(node["_target_"])
        if isinstance(target, type) and issubclass(target, owner_class):
            values = {} if owner is owner_class else {str(key): node[key] for key in node if hasattr(owner, str(key))}
            simple = {key: value for key, value in values.items() if type(value) in SIMPLE}
            attributes = {key: getattr(owner, key) for key in simple}
            if all(attributes[key] == value or str(attributes[key]) == value for key, value in simple.items()):
                paths.append(path)
    return paths


def _target_nodes(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    for key in map(str, node):
        if not OmegaConf.is_missing(node, key) and isinstance(child := node[key], DictConfig):
            child_path = f"{path}.{key}" if path else key
            if "_target_" in child:
                yield child_path, child
            yield from _target_nodes(child, child_path)


def _name_arguments(error: UserError, paths: Sequence[str], node: DictConfig) -> str:
    """Return an error's message with the options of its arguments under each of the paths."""
    root = node._get_root()
    options = [_follow_option(root, f"{path}.{name}" if path else name) for name in error.arguments for path in paths]
    named: dict[str, Any] = {option: OmegaConf.select(root, option) for option in options}
    if isinstance(error, OptionsError) and error.allowed:
        return f"{next(iter(named))}={error.value}: give {error.allowed}"
    values = ", ".join(f"{option}={value}" if type(value) in SIMPLE[:4] else option for option, value in named.items())
    return f"{error} ({values})" if values else str(error)


def _follow_option(root: Container, option: str) -> str:
    """Follow an option that repeats another's value, `${judge.max_cost}`, to the option that users type."""
    path, _, key = option.rpartition(".")
    parent = OmegaConf.select(root, path) if path else root
    if not isinstance(parent, DictConfig):
        return option
    raw_value = OmegaConf.to_container(parent, resolve=False).get(key)  # type: ignore[union-attr]
    reference = re.fullmatch(r"\$\{([\w.]+)\}", str(raw_value))
    return _follow_option(root, reference[1]) if reference else option


def build_experiment(cfg: DictConfig) -> Experiment:
    """Build all parts of a run, so that what any of them refuses is told before anything starts.

    With `target.data=lead` the target takes the proxy's place: it scores the rows and selects as it trains.

    Args:
        cfg: the composed configuration; Hydra's own must be set.

    Raises:
        UserError: an option has a value that it cannot have.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    method = build_method(cfg, overrides)
    target_model = build(cfg.target.base_model)
    measured_with_target = method.scoring_model == "target"
    objective = build(cfg.proxy.objective)
    return Experiment(
        until=_checked_stage(cfg.until),
        seed=cfg.seed,
        run_folder=Path(cfg.run_dir),
        cache=build(cfg.cache),
        config=to_plain(cfg),
        overrides=overrides,
        choices={str(group): str(choice) for group, choice in hydra_config.runtime.choices.items()},
        build_trainer=build(cfg.trainer),
        build_logger=partial(build, cfg.logger),
        show_progress=cfg.progress,
        source=build(cfg.data),
        proxy=ProxyParts(
            base_model=target_model if measured_with_target else build(cfg.proxy.base_model),
            max_tokens=cfg.target.max_tokens if measured_with_target else cfg.proxy.max_tokens,
            objective=objective,
            ensemble=build(cfg.ensemble),
            size=build(cfg.adaptive),
            build_engine=partial(build(cfg.gradients), objective=objective),
            snapshots=build(cfg.epochs),
            projection=build(cfg.projection),
            embeddings=build(cfg.embeddings),
            batches=build(cfg.batch),
        ),
        method=method,
        target=TargetParts(
            base_model=target_model,
            max_tokens=cfg.target.max_tokens,
            tuning=build(cfg.target.tuning),
            baselines=list(cfg.judge.against),
        ),
        judging=JudgingParts(
            prompts=build(cfg.eval.sets),
            generation=build(cfg.generation),
            judge=build(cfg.judge.judge),
            other_judges=build(cfg.judge.others),
            repeats=cfg.judge.repeats,
            resamples=cfg.judge.resamples,
            confidence=cfg.judge.confidence,
        ),
        limits=build(cfg.diagnostics),
        page=build(cfg.report),
    )


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
    selector, until = build(cfg.selector), _checked_stage(cfg.until)
    if cfg.target.data == "subset":
        selects = STAGES.index(until) >= STAGES.index("select")
        return ScoreAndSelect(build(cfg.scorer), selector, selects)
    if STAGES.index(until) < STAGES.index("target"):
        raise UserError(
            f"until={until} ends before the target is trained, and with target.data=lead it selects its rows as it "
            "trains; give until=target or a later stage, or target.data=subset"
        )
    _refuse_other_selection(overrides)
    return Lead(build(cfg.target.lead), selector)


def _refuse_other_selection(overrides: Sequence[str]) -> None:
    """Refuse a scorer, selector or method that was asked for beside LEAD."""
    for override in overrides:
        option, _, value = override.lstrip("+~").partition("=")
        option_path = option.rpartition("@")[2]  # of `scorer@target.lead.difficulty` the last part
        selects = option_path.partition(".")[0] in ("scorer", "selector") and option_path not in BUDGET_OPTIONS
        if selects or (option_path == "method" and value not in ("lead", "null")):
            raise UserError(
                f"{override} has no effect with target.data=lead: the target selects its rows as it trains; "
                "leave it out (selector.fraction= or selector.count= says how many rows, "
                "scorer@target.lead.difficulty= by what they are clustered), or give target.data=subset"
            )


def _checked_stage(until: str) -> Stage:
    for stage in STAGES:
        if stage == until:
            return stage
    raise UserError(f"until={until} is no stage; choose one of: {', '.join(STAGES)}")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as resolved Python values."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {str(name): value for name, value in plain.items()} if isinstance(plain, dict) else {}


def check_types(node: Any) -> None:
    """Compares the values of every dataclass target in `node` with its annotations, where these are simple types.

    Raises:
        UserError: a value has another type; the message names the option and the types it may have.
    """
    if not isinstance(node, DictConfig):
        return
    hints: dict[str, Any] = {}
    if "_target_" in node:
        target = get_object(node["_target_"])
        hints = get_type_hints(target) if is_dataclass(target) else {}
    for key in node:
        allowed = _simple(hints.get(str(key)))
        value = node[key]
        if allowed and not any(_fits(value, kind) for kind in allowed):
            option = node._get_full_key(key)
            raise UserError(f"{option}={value}: give {' or '.join(_name(kind) for kind in allowed)}")
        check_types(value)


def _simple(hint: Any) -> tuple[type, ...]:
    """The simple types of an annotation, none where it allows anything else."""
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return kinds if all(kind in SIMPLE for kind in kinds) else ()


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _name(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, "null")
