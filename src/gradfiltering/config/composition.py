"""The configuration of a run, composed without a command line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
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
    explain_renamed(overrides)
    try:
        with initialize_config_dir(str(configuration_folder()), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
    except HydraException as composition_error:
        raise UserError(explain_composition(composition_error)) from composition_error
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


def explain_composition(composition_error: HydraException) -> str:
    """Return why the configuration does not compose, and what could be given."""
    root_cause = composition_error.__cause__
    if isinstance(root_cause, ConfigAttributeError | ConfigKeyError) and root_cause.parent_node is not None:
        option_group = str(root_cause.full_key).rpartition(".")[0]
        known_options = ", ".join(sorted(str(option_name) for option_name in root_cause.parent_node))
        group_label = f"options of {option_group}" if option_group else "options"
        return f"there is no option {root_cause.full_key}; {group_label}: {known_options}"
    return str(composition_error).split("Config search path")[0].strip()


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
