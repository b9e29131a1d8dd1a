"""From options to a selection from the gradient log of an earlier run."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

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
        if _group_of(override) not in USED_OPTIONS:
            raise UserError(
                f"{override} has no effect on a selection from a log; give options of {', '.join(USED_OPTIONS)}"
            )
    source = RunFolder(source_folder)
    source_config = source.read_config() if (source.path / CONFIG_FILE).is_file() else {}
    source_summary = source.read_summary() if (source.path / SUMMARY_FILE).is_file() else {}
    source_overrides = source.read_environment()["overrides"] if (source.path / ENVIRONMENT_FILE).is_file() else []
    cfg, choices = _compose_options(overrides)
    given_groups = {_group_of(override) for override in overrides}
    with open_dict(cfg):
        if "scorer" in source_config and "scorer" not in given_groups:
            cfg.scorer = source_config["scorer"]
            choices["scorer"] = (source_summary.get("selection") or {}).get("scorer") or "as in the run"
        if "seed" in source_config and "seed" not in given_groups:
            cfg.seed = source_config["seed"]
        logged_epochs = source_summary.get("proxy", {}).get("epochs")
        if logged_epochs and "epochs" not in given_groups:
            early, late = logged_epochs
            unit = source_summary["proxy"].get("unit", "epoch")
            cfg.epochs = {"_target_": SNAPSHOT_PAIR, "early": early, "late": late, "unit": unit}
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
                overrides=[*source_overrides, *overrides],
                choices=choices,
            )
        )
    return Path(output_folder)


def _group_of(override: str) -> str:
    """Return the group that an override sets, or sets an option of."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def _compose_options(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose the options of a run by these overrides, and return them with the names of scorer and selector."""
    with composition_explained(overrides), initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    choices = {name: str(cfg.hydra.runtime.choices[name]) for name in ("scorer", "selector")}
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.run_dir = "."  # of no run; as it stands it asks Hydra for its folder
    return cfg, choices
