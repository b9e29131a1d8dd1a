"""From configuration to objects, with errors that name the option and what it may be."""

import os
import sys
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from gradfiltering.errors import UserError, plain_words

# Part of a run -> where its options stand.
PARTS = {
    "source": "data",
    "proxy": "proxy.base_model",
    "objective": "proxy.objective",
    "ensemble": "ensemble",
    "adaptive": "adaptive",
    "engine": "gradients",
    "epochs": "epochs",
    "projection": "projection",
    "embeddings": "embeddings",
    "scorer": "scorer",
    "selector": "selector",
    "target": "target.base_model",
    "tuning": "target.tuning",
    "lead": "target.lead",
    "prompts": "eval.sets",
    "generation": "generation",
    "judge": "judge.judge",
    "others": "judge.others",
    "page": "report",
    "limits": "diagnostics",
    "batch": "batch",
    "cache": "cache",
}
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
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from error
            cause = cause.__cause__
        raise


def build_parts(cfg: DictConfig) -> Any:
    """Builds all parts of a run, so that what any of them refuses is told before anything starts.

    With `target.data=lead` the target takes the proxy's place: it scores the rows itself and chooses as it trains.

    Returns:
        An object with an attribute for each of `PARTS`, and `max_tokens` for the proxy.
    """
    parts = types.SimpleNamespace(**{name: build(OmegaConf.select(cfg, place)) for name, place in PARTS.items()})
    parts.engine = partial(parts.engine, objective=parts.objective)
    parts.max_tokens = cfg.proxy.max_tokens
    if cfg.target.data == "lead":
        parts.scorer, parts.proxy, parts.max_tokens = parts.lead.difficulty, parts.target, cfg.target.max_tokens
    return parts


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


def run(main: Callable[[], None]) -> None:
    """Runs Hydra's `main`; what is wrong with the command line is told in plain words, with what could be given."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach this function, which tells them
    with plain_words("debug=true" in sys.argv):
        try:
            main()
        except HydraException as error:
            cause = error.__cause__
            if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
                place = str(cause.full_key).rpartition(".")[0]
                known = ", ".join(sorted(str(key) for key in cause.parent_node))
                where = f"options of {place}" if place else "options"
                raise UserError(f"there is no option {cause.full_key}; {where}: {known}") from error
            raise UserError(str(error).split("Config search path")[0].strip()) from error


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
