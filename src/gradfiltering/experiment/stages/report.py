"""The verdict on the subset, the page and the cards of a run, and what its loggers get."""

import logging
from typing import Any

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.row_texts import write_row_texts
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.reports.screen import format_details, print_result
from gradfiltering.runs.logs import screen

logger = logging.getLogger(__name__)


def report_run(experiment: Experiment, run: OpenRun, dataset: InstructionDataset) -> None:
    """Reach the verdict on the subset, write the rows' texts, page and cards, and show the results.

    The texts are written with `report.page=false`, too: a page made later shows them, and tables read sources there.
    """
    run.stages.add_to_summary(verdict=run_on_rank_zero(reach_run_verdict, run))
    run_on_rank_zero(write_row_texts, run.folder.path, dataset, experiment.cache)
    if experiment.page.page:
        run.stages.run("report", run_on_rank_zero, write_run_page, experiment, run)
    run_on_rank_zero(write_run_cards, run)
    run.stages.end()
    logger.info("results\n%s", format_details(run.stages.summary))
    print_result(run.stages.summary, run.folder.path, screen())
    log_results(run)


def reach_run_verdict(run: OpenRun) -> dict[str, Any]:
    """Reach the verdict on the subset, and find the command that would settle it."""
    from gradfiltering.reports.verdict import judge_run

    return judge_run(run.folder.path)


def write_run_page(experiment: Experiment, run: OpenRun) -> None:
    """Write the page of the run."""
    from gradfiltering.reports.page.run_page import write_page

    write_page(run.folder.path, experiment.page.rows, experiment.page.figures)


def write_run_cards(run: OpenRun) -> None:
    """Write the cards of subset and adapter."""
    from gradfiltering.reports.cards import write_cards

    write_cards(run.folder.path)


def log_results(run: OpenRun) -> None:
    """Log what the run left in its experiment loggers."""
    from gradfiltering.reports.experiment_logger import log_run

    for run_logger in run.loggers:
        log_run(run_logger, run.folder.path)
