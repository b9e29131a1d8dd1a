"""The stages that a run will go through, known before most of them."""

import sys

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.evidence.base_model_losses import REFERENCE_STAGE
from gradfiltering.evidence.measurers import sort_requests
from gradfiltering.experiment.parts import Experiment
from gradfiltering.models.objectives import reads_pairs
from gradfiltering.requests import GradientLog


def list_stages(experiment: Experiment, dataset: InstructionDataset | None = None) -> list[str]:
    """List the stages of a run in their order, by their names in the summary.

    Args:
        experiment: of the run.
        dataset: its rows; None before they are read, when they are taken to be many, and none of them to be set aside.
    """
    method, heldout_member = experiment.method, experiment.proxy.heldout_member
    measuring_stages = sort_requests(method.requests)
    row_count = sys.maxsize if dataset is None else len(dataset)
    holds_rows_out = dataset is not None and dataset.heldout is not None
    logs_gradients = any(GradientLog() in stage_requests for stage_requests in measuring_stages.values())
    later_stages = {
        "heldout_member": logs_gradients and heldout_member.count_heldout_rows(row_count, holds_rows_out) > 0,
        "score": method.scorer is not None and experiment.reaches("score"),
        "select": experiment.reaches("select") and not method.selects_while_training,
        "target": experiment.reaches("target"),
        "judge": experiment.reaches("judge"),
        "report": experiment.page.page,
    }
    reached_stages = [stage_name for stage_name, is_reached in later_stages.items() if is_reached]
    checks_judge = experiment.reaches("judge") and experiment.judging.check.labelled_pairs is not None
    reference_stages = [REFERENCE_STAGE] if reads_pairs(experiment.proxy.objective) else []
    first_stages = ["data", *(["judge_check"] if checks_judge else []), "base_model", *reference_stages]
    return [*first_stages, *measuring_stages, *reached_stages]
