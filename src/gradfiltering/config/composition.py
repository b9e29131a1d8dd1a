"""The configuration of a run, composed without a command line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from gradfiltering.config.locations import configuration_folder
from gradfiltering.config.renamed_options import explain_renamed
from gradfiltering.errors import UserError

_PLAIN_TEXT = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@contextmanager
def composed(overrides: Sequence[str]) -> Iterator[DictConfig]:
    """Compose the configuration that the command line would run with these overrides, and make its run folder.

    Yields:
        The configuration of one run, for as long as Hydra's own is set.

    Raises:
        UserError: an override names no option.
    """
    with composition_explained(overrides), initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        cfg = compose("train", spell_out(overrides), return_hydra_config=True)
    run_folder = Path(cfg.hydra.run.dir).absolute()
    run_folder.mkdir(parents=True, exist_ok=True)
    hydra_state = HydraConfig.instance()
    earlier_cfg = hydra_state.cfg
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(run_folder)
    hydra_state.set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        yield cfg
    finally:
        hydra_state.cfg = earlier_cfg


@contextmanager
def composition_explained(overrides: Sequence[str]) -> Iterator[None]:
    """Put what Hydra refuses of a command line into words of cause and remedy.

    Args:
        overrides: all that the command line says.

    Raises:
        UserError: an option that is renamed, unknown or unreadable, or a group that is given no name.
    """
    explain_renamed(overrides)
    refuse_unnamed_choices(overrides)
    try:
        yield
    except HydraException as composition_error:
        raise UserError(explain_composition(composition_error)) from composition_error


def spell_out(overrides: Sequence[str]) -> list[str]:
    """Write short forms of options in full: `plan=true` is `plan.only=true`, and may stand beside `plan.minutes=60`."""
    return [re.sub(r"^plan=(?=true$|false$)", "plan.only=", override) for override in overrides]


def refuse_unnamed_choices(overrides: Sequence[str]) -> None:
    """Refuse a group of options that is given null, a number or a truth value instead of a name.

    Raises:
        UserError: names the group and its choices.
    """
    for override in overrides:
        group_name, _, given_value = override.partition("=")
        group_folder = configuration_folder() / group_name.lstrip("+").partition("@")[0]
        given_names = [given_value] if given_value[:1] in "[{" else given_value.split(",")
        is_choice = bool(group_name and given_value) and group_folder.is_dir()
        if is_choice and not all(map(_may_be_name, given_names)):
            choices = ", ".join(sorted(path.stem for path in group_folder.glob("*.yaml")))
            raise UserError(f"{override}: a group takes the name of one of its options: {choices}")


def _may_be_name(given_value: str) -> bool:
    try:
        return isinstance(yaml.safe_load(given_value), str | list)
    except yaml.YAMLError:  # Hydra says what it cannot read
        return True


def explain_composition(composition_error: HydraException) -> str:
    """Return why the configuration does not compose, and what could be given."""
    if isinstance(composition_error, OverrideParseException):
        reason = str(composition_error).partition("\n")[0]
        return (
            f"{composition_error.override} cannot be read ({reason}); give it as name=value, and put a value that "
            "holds = , : ~ { } [ ] or spaces into quotes of its own, such as 'name=\"value\"'"
        )
    root_cause = composition_error.__cause__
    if isinstance(root_cause, ConfigAttributeError | ConfigKeyError) and root_cause.parent_node is not None:
        option_group = str(root_cause.full_key).rpartition(".")[0]
        known_options = ", ".join(sorted(str(option_name) for option_name in root_cause.parent_node))
        group_label = f"options of {option_group}" if option_group else "options"
        choices = list_choices_with(str(root_cause.full_key))
        remedy = f"; it is an option of {', '.join(choices)}" if choices else ""
        return f"there is no option {root_cause.full_key}; {group_label}: {known_options}{remedy}"
    return str(composition_error).split("Config search path")[0].strip()


def list_choices_with(option_name: str) -> list[str]:
    """List the choices of an option's group, such as `proxy=gpt2`, whose own files set the option.

    Args:
        option_name: with its group, such as `proxy.model`.
    """
    group_name, *path_in_group = option_name.split(".")
    choice_files = sorted((configuration_folder() / group_name).glob("*.yaml")) if path_in_group else []
    return [
        f"{group_name}={choice_file.stem}"
        for choice_file in choice_files
        if _sets_option(yaml.safe_load(choice_file.read_text("utf-8")), path_in_group)
    ]


def _sets_option(settings: Any, option_path: Sequence[str]) -> bool:
    for path_part in option_path:
        if not isinstance(settings, dict) or path_part not in settings:
            return False
        settings = settings[path_part]
    return True


def to_overrides(option_values: Mapping[str, Any], name_prefix: str = "") -> list[str]:
    """Write options as overrides: `{"ensemble": {"m": 3}}` and `{"ensemble.m": 3}` are both `ensemble.m=3`."""
    overrides = []
    for option_name, option_value in option_values.items():
        if isinstance(option_value, Mapping):
            overrides += to_overrides(option_value, f"{name_prefix}{option_name}.")
        else:
            overrides.append(f"{name_prefix}{option_name}={_to_text(option_value)}")
    return overrides


def _to_text(option_value: Any) -> str:
    if option_value is None or isinstance(option_value, bool):
        return {None: "null", True: "true", False: "false"}[option_value]
    if isinstance(option_value, int | float):
        return str(option_value)
    if isinstance(option_value, list | tuple):
        return f"[{','.join(_to_text(list_item) for list_item in option_value)}]"
    value_text = str(option_value)
    if _PLAIN_TEXT.fullmatch(value_text):
        return value_text
    escaped_text = re.sub(
        r"(\\*)'", r"\1\1\\'", value_text
    )  # Hydra reads \' as a quote, and backslashes before one in pairs
    trailing_backslashes = len(escaped_text) - len(escaped_text.rstrip("\\"))
    return f"'{escaped_text}{chr(92) * trailing_backslashes}'"
