"""From the command line to an experiment, by way of Hydra."""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from gradfiltering.config.build import build_experiment, build_trainer_builder
from gradfiltering.config.composition import explain_composition
from gradfiltering.config.locations import configuration_folder
from gradfiltering.config.option_names import options_named
from gradfiltering.config.renamed_options import explain_renamed
from gradfiltering.distributed.process_group import connected_processes, is_rank_zero_at_launch, start_main
from gradfiltering.errors import UserError, plain_words
from gradfiltering.reports import screen

INTERRUPTED_MESSAGE = "stopped; the same command goes on from what is finished"


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
    sys.argv[1:] = overrides
    hydra_main = hydra.main(config_path=str(configuration_folder()), config_name="train", version_base="1.3")(task)
    with plain_words("debug=true" in overrides):
        explain_renamed(overrides)
        try:
            start_main(hydra_main)
        except HydraException as composition_error:
            raise UserError(explain_composition(composition_error)) from composition_error
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED_MESSAGE)
        except SystemExit as ending:
            if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning ends its training so
                sys.exit(INTERRUPTED_MESSAGE)
            raise


def run_task(cfg: DictConfig) -> None:
    """Run the experiment of a composed configuration in the process group that its trainer asks for.

    Raises:
        UserError: something that the user can mend, with the options concerned.
    """
    screen.announce_run(cfg.run_dir, Console(quiet=not is_rank_zero_at_launch()))
    with options_named(cfg), connected_processes(build_trainer_builder(cfg)):
        from gradfiltering.experiment.run import run_experiment

        run_experiment(build_experiment(cfg))
