"""From options to a selection from the gradient log of an earlier run."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from gradfiltering.config.build import build, to_plain
from gradfiltering.config.composition import composition_explained
from gradfiltering.config.locations import configuration_folder
from gradfiltering.config.option_names import options_named
from gradfiltering.errors import UserError
from gradfiltering.runs.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE, RunFolder

USED_OPTIONS = ("scorer", "selector", "epochs", "diagnostics", "report", "seed")
SNAPSHOT_PAIR = "gradfiltering.ensembles.snapshots.SnapshotPair"


def select_from_log(source_folder: Path | str, output_folder: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Compose the options of a selection from a log, and run it; see `gradfiltering.select_from_log`.

    Args:
        source_folder: of the run that left the log.
        output_folder: where the results are written.
        overrides: NAME=VALUE of `USED_OPTIONS`.

    Returns:
        The output folder.

    Raises:
        UserError: there is no log, an option is wrong, or the rows are too many.
    """
    for override in overrides:
        if _group_of(override) not in USED_OPTIONS or override.startswith("~"):
            raise UserError(
                f"{override} has no effect on a selection from a log; give options of {', '.join(USED_OPTIONS)}"
            )
    source = RunFolder(source_folder)
    source_config = source.read_config() if (source.path / CONFIG_FILE).is_file() else {}
    source_summary = source.read_summary() if (source.path / SUMMARY_FILE).is_file() else {}
    source_overrides = source.read_environment()["overrides"] if (source.path / ENVIRONMENT_FILE).is_file() else []
    chosen_groups = {_group_of(override) for override in overrides if "." not in override.partition("=")[0]}
    inherited_groups: dict[str, Any] = {}  # as in the run, but for single options that are given
    if "scorer" in source_config and "scorer" not in chosen_groups:
        inherited_groups["scorer"] = source_config["scorer"]
    logged_epochs = source_summary.get("proxy", {}).get("epochs")
    if logged_epochs and "epochs" not in chosen_groups:
        early, late = logged_epochs
        unit = source_summary["proxy"].get("unit", "epoch")
        inherited_groups["epochs"] = {"_target_": SNAPSHOT_PAIR, "early": early, "late": late, "unit": unit}
    inherited_overrides = [override for override in overrides if _group_of(override) in inherited_groups]
    cfg, choices = _compose_options([override for override in overrides if override not in inherited_overrides])
    with open_dict(cfg):
        cfg.update(inherited_groups)
        if "seed" in source_config and "seed" not in chosen_groups:
            cfg.seed = source_config["seed"]
    if "scorer" in inherited_groups:
        choices["scorer"] = (source_summary.get("selection") or {}).get("scorer") or "as in the run"
    _set_options(cfg, inherited_overrides)
    if cfg.epochs["_target_"] != SNAPSHOT_PAIR:
        raise UserError("the snapshots of a log are a pair of numbers; give epochs.early and epochs.late")
    used_options = {name: option_value for name, option_value in to_plain(cfg).items() if name in USED_OPTIONS}
    from gradfiltering.experiment.log_selection import LogSelection, run_selection

    with options_named(cfg):
        run_selection(
            LogSelection(
                source_folder=source.path,
                output_folder=Path(output_folder),
                scorer=build(cfg.scorer),
                selector=build(cfg.selector),
                snapshots=build(cfg.epochs),
                limits=build(cfg.diagnostics),
                page=build(cfg.report),
                seed=int(cfg.seed),
                config={**source_config, **used_options},
                overrides=_join_overrides(source_overrides, overrides, {"selector", *chosen_groups}),
                choices=choices,
            )
        )
    return Path(output_folder)


def _group_of(override: str) -> str:
    """Return the group that an override sets, or sets an option of."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def _join_overrides(
    source_overrides: Sequence[str], overrides: Sequence[str], replaced_groups: Collection[str]
) -> list[str]:
    """Return the overrides of a run that measures and selects as this selection does.

    Args:
        source_overrides: of the run that left the log.
        overrides: of the selection.
        replaced_groups: of which nothing is as in the run.
    """
    kept_overrides = [override for override in source_overrides if _group_of(override) not in replaced_groups]
    presets = {"method", "experiment"} & {_group_of(override) for override in kept_overrides}
    names_selector = any(override.startswith("selector=") for override in overrides)
    default_selector = ["selector=top"] if presets and not names_selector else []  # a preset may name another
    return [*kept_overrides, *default_selector, *overrides]


def _set_options(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set single options of groups that are as in the run.

    Raises:
        UserError: an override cannot be read, or the run's part has no such option.
    """
    with composition_explained(overrides):
        parsed_overrides = OverridesParser.create().parse_overrides(list(overrides))
    for parsed_override in parsed_overrides:
        option_name = parsed_override.key_or_group
        group_name, _, option_in_group = option_name.rpartition(".")
        group = OmegaConf.select(cfg, group_name)
        if parsed_override.type != OverrideType.CHANGE or not isinstance(group, DictConfig):
            raise UserError(f"{parsed_override.input_line} does not set an option; give it as {option_name}=value")
        if option_in_group not in group:
            raise UserError(
                f"there is no option {option_name}; options of the run's {group_name}: {', '.join(map(str, group))}"
            )
        group[option_in_group] = parsed_override.value()


def _compose_options(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose the options of a run by these overrides, and return them with the names of scorer and selector."""
    with composition_explained(overrides), initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    choices = {name: str(cfg.hydra.runtime.choices[name]) for name in ("scorer", "selector")}
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.run_dir = "."  # of no run; as it stands it asks Hydra for its folder
    return cfg, choices
