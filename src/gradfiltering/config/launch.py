"""From the command line to an experiment, by way of Hydra."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gradfiltering.config.build import build_experiment, build_trainer_builder, to_plain
from gradfiltering.config.composition import composition_explained, spell_out
from gradfiltering.config.locations import configuration_folder
from gradfiltering.config.option_names import options_named
from gradfiltering.config.plain_options import runs_on_one_cpu
from gradfiltering.distributed.process_group import connected_processes, is_rank_zero_at_launch, start_main
from gradfiltering.errors import plain_words
from gradfiltering.interruption import ending_in_one_sentence
from gradfiltering.masking import mask_override, mask_secrets, remember_override, remember_secrets
from gradfiltering.reports import screen
from gradfiltering.runs import logs
from gradfiltering.runs.files import atomic_path
from gradfiltering.runs.progress import run_display
from gradfiltering.runs.yaml_files import read_yaml

DIRNAME_EXCLUSIONS = "hydra.job.config.override_dirname.exclude_keys"


def launch(overrides: Sequence[str], subcommand: str | None = None) -> None:
    """Run one experiment, or a sweep of them; an error that the user can mend is printed in plain words.

    Args:
        overrides: all that the command line says, for Hydra.
        subcommand: the word of the command line before them.
    """
    # Other processes of the run are started with the command line of this one, which Hydra must not see whole.
    subcommand_words = [subcommand] if subcommand else []

    def task(cfg: DictConfig) -> None:
        sys.argv[1:1] = subcommand_words
        try:
            with plain_words(cfg.debug):
                run_task(cfg)
        finally:
            del sys.argv[1 : 1 + len(subcommand_words)]

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach this function, which explains them
    sys.argv[1:] = [*spell_out(overrides), *keep_secrets_out_of_folder_names(overrides)]
    hydra_main = hydra.main(config_path=str(configuration_folder()), config_name="train", version_base="1.3")(task)
    for override in overrides:
        remember_override(override)
    with (
        ending_in_one_sentence(is_quiet=not is_rank_zero_at_launch()),
        plain_words("debug=true" in overrides),
        composition_explained(overrides),
    ):
        start_main(hydra_main)


def keep_secrets_out_of_folder_names(overrides: Sequence[str]) -> list[str]:
    """Return the override that keeps secrets out of folders named by `hydra.job.override_dirname`, where there are any.

    The folders of jobs that differ in nothing but a secret are the same then, which the sweeper refuses.
    """
    secret_names = [
        override.partition("=")[0].lstrip("+~") for override in overrides if mask_override(override) != override
    ]
    if not secret_names or any(DIRNAME_EXCLUSIONS in override for override in overrides):
        return []
    return [f"{DIRNAME_EXCLUSIONS}=[{','.join(secret_names)}]"]


def run_task(cfg: DictConfig) -> None:
    """Run the experiment of a composed configuration in the process group that its trainer asks for.

    Raises:
        UserError: something that the user can mend, with the options concerned.
    """
    with options_named(cfg):
        remember_secrets(to_plain(cfg))
        mask_saved_configuration()
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries: the run has a display of its own
        with run_display(show_bars=cfg.progress is not False, **describe_launch()) as display:
            if is_rank_zero_at_launch():
                screen.announce_run(cfg.run_dir, logs.screen())
            display.begin_stage("libraries")
            with nullcontext() if runs_on_one_cpu(cfg) else connected_processes(build_trainer_builder(cfg)):
                from gradfiltering.experiment.run import run_experiment

                run_experiment(build_experiment(cfg))


def describe_launch() -> dict[str, Any]:
    """Return how the screen tells this job from others: by its number where a launcher runs several at once."""
    hydra_config = HydraConfig.get()
    runs_alone = hydra_config.mode != RunMode.MULTIRUN or hydra_config.launcher._target_.endswith("BasicLauncher")
    return {"live": runs_alone, "label": "" if runs_alone else f"job {hydra_config.job.num}: "}


def mask_saved_configuration() -> None:
    """Mask secrets in what Hydra saved of a job where `hydra.output_subdir` asks for it."""
    hydra_config = HydraConfig.get()
    if hydra_config.output_subdir is None:
        return
    for file_path in (Path(hydra_config.runtime.output_dir) / hydra_config.output_subdir).glob("*.yaml"):
        saved_options = mask_secrets(read_yaml(file_path))
        with atomic_path(file_path) as part_path:
            part_path.write_text(yaml.safe_dump(saved_options, sort_keys=False, allow_unicode=True), encoding="utf-8")
