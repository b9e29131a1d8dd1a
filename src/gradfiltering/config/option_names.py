"""From an error about an argument to the option that the user typed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import Container, DictConfig, Node, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gradfiltering.errors import UserError
from gradfiltering.options import OptionsError

_SHOWN_TYPES = (int, float, str, bool)
_READS_AS_VALUE = re.compile(r"|null|true|false|[+-]?(nan|inf|[\d_]*\.?[\d_]+(e[+-]?\d+)?)", re.IGNORECASE)
_COMPARED_TYPES = (*_SHOWN_TYPES, type(None))


@contextmanager
def options_named(cfg: DictConfig) -> Iterator[None]:
    """Add the options behind a UserError of the code inside, found by its owner's class and values.

    Args:
        cfg: the whole configuration of the run.

    Raises:
        UserError: the message with its options and their values, or an option that refers to one that is not there.
    """
    try:
        yield
    except OmegaConfBaseException as reference_error:
        first_line = str(reference_error).partition("\n")[0]
        option_name = reference_error.full_key or "an option"
        if isinstance(reference_error, ConfigAttributeError | ConfigKeyError):
            raise UserError(f"{option_name} is missing; a run needs it, so do not take it away") from reference_error
        raise UserError(f"{option_name} has no value: {first_line}; give it a value by itself") from reference_error
    except UserError as user_error:
        if user_error.owner is None:
            raise
        owner_paths = find_option_paths(cfg, user_error.owner)
        raise UserError(describe_with_options(user_error, owner_paths, cfg)) from user_error


def find_option_paths(cfg: DictConfig, owner: object) -> list[str]:
    """List the nodes of the configuration that `owner` can have been built from.

    Args:
        cfg: the whole configuration.
        owner: a class, or an object, of which the node must have the simple values.
    """
    owner_class = owner if isinstance(owner, type) else type(owner)
    option_paths = []
    for node_path, target_node in _list_targets(cfg):
        target_class = get_object(target_node["_target_"])
        if isinstance(target_class, type) and issubclass(target_class, owner_class):
            compared_names = [] if owner is owner_class else [name for name in target_node if hasattr(owner, str(name))]
            node_values = {str(name): target_node[name] for name in compared_names}
            if all(_is_same(getattr(owner, name), value) for name, value in node_values.items()):
                option_paths.append(node_path)
    return option_paths


def describe_with_options(user_error: UserError, owner_paths: Sequence[str], node: DictConfig) -> str:
    """Return an error's message with the options of its arguments.

    Args:
        user_error: names the arguments.
        owner_paths: nodes that the owner of these arguments was built from.
        node: any node of the configuration.
    """
    root_node = node._get_root()
    option_names = [
        _follow_reference(root_node, f"{owner_path}.{argument_name}" if owner_path else argument_name)
        for argument_name in user_error.arguments
        for owner_path in owner_paths
    ]
    if not option_names:
        return str(user_error)
    if isinstance(user_error, OptionsError) and user_error.allowed:
        return f"{option_names[0]}={as_typed(user_error.value)}: give {user_error.allowed}"
    option_values = {option_name: OmegaConf.select(root_node, option_name) for option_name in option_names}
    described_options = [
        f"{option_name}={as_typed(option_value)}" if type(option_value) in _SHOWN_TYPES else option_name
        for option_name, option_value in option_values.items()
    ]
    return f"{user_error} ({', '.join(described_options)})"


def as_typed(option_value: Any) -> str:
    """Write a value as a user types it: `null`, `true`, and text that reads as another value in quotes."""
    if option_value is None or isinstance(option_value, bool):
        return str(yaml.safe_dump(option_value)).split()[0]
    if not isinstance(option_value, str) or not _READS_AS_VALUE.fullmatch(option_value):
        return str(option_value)
    return repr(option_value)


def _list_targets(node: DictConfig, node_path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Yield the path and the node of everything that is built, parts of parts too."""
    for child_name in map(str, node):
        if not OmegaConf.is_missing(node, child_name) and isinstance(child_node := node[child_name], DictConfig):
            child_path = f"{node_path}.{child_name}" if node_path else child_name
            if "_target_" in child_node:
                yield child_path, child_node
            yield from _list_targets(child_node, child_path)


def _is_same(attribute_value: Any, node_value: Any) -> bool:
    """Compare an attribute with the value it was built from; what is no simple value is taken to be the same."""
    if type(node_value) not in _COMPARED_TYPES:
        return True
    return bool(attribute_value == node_value) or str(attribute_value) == node_value


def _follow_reference(root_node: Container, option_name: str) -> str:
    """Follow an option that repeats another's value, `${judge.max_cost}`, to the option that users type."""
    path_names = option_name.split(".")
    node: Any = root_node
    for depth, path_name in enumerate(path_names):
        if not isinstance(node, DictConfig) or path_name not in node:
            return option_name
        raw_node = node._get_node(path_name)
        raw_value = raw_node._value() if isinstance(raw_node, Node) else None
        referenced_option = re.fullmatch(r"\$\{([\w.]+)\}", raw_value) if isinstance(raw_value, str) else None
        if referenced_option:
            return _follow_reference(root_node, ".".join([referenced_option[1], *path_names[depth + 1 :]]))
        node = raw_node
    return option_name
