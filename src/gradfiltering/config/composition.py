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
    except HydraException as error:
        raise UserError(explain_composition(error)) from error
    run_folder = Path(cfg.hydra.run.dir).absolute()
    run_folder.mkdir(parents=True, exist_ok=True)
    state = HydraConfig.instance()
    earlier_cfg = state.cfg
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(run_folder)
    state.set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        yield cfg
    finally:
        state.cfg = earlier_cfg


def explain_composition(error: HydraException) -> str:
    """Return why the configuration does not compose, and what could be given."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        group = str(cause.full_key).rpartition(".")[0]
        known_options = ", ".join(sorted(str(key) for key in cause.parent_node))
        label = f"options of {group}" if group else "options"
        return f"there is no option {cause.full_key}; {label}: {known_options}"
    return str(error).split("Config search path")[0].strip()


def to_overrides(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Write options as overrides: `{"ensemble": {"m": 3}}` and `{"ensemble.m": 3}` are both `ensemble.m=3`."""
    overrides = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            overrides += to_overrides(value, f"{prefix}{name}.")
        else:
            overrides.append(f"{prefix}{name}={_to_text(value)}")
    return overrides


def _to_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_to_text(item) for item in value)}]"
    text = str(value)
    if _PLAIN_TEXT.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)  # Hydra reads \' as a quote, and backslashes before one in pairs
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
