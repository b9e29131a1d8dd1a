"""Reading of the rows, and of the prompts, with everything that can be refused before a model is loaded."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.row_hygiene import check_hygiene
from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.experiment.checks import (
    check_dataset,
    warn_of_emulated_precision,
    warn_of_judging_on_validation,
)
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stage_list import list_stages
from gradfiltering.judging.pair_judging import check_judging
from gradfiltering.judging.prompts import Prompt, load_prompts
from gradfiltering.models.objectives import loss_unit, reads_pairs
from gradfiltering.runs.logs import announce


def read_rows_and_prompts(experiment: Experiment, run: OpenRun) -> tuple[InstructionDataset, list[Prompt]]:
    """Read the rows, and the prompts of the judge, where the run gets that far.

    Returns:
        The dataset, without the rows that are to be left out, and the prompts.

    Raises:
        UserError: rows, prompts or judge do not serve the experiment.
    """
    run.stages.set_plan(list_stages(experiment), {})
    dataset = run.stages.run("data", experiment.source.load, experiment.seed)
    run.stages.set_plan(list_stages(experiment, dataset), {})
    report_contents(run, dataset)
    check_dataset(experiment, dataset)
    precision_warnings = warn_of_emulated_precision(experiment, run.device)
    for warning in precision_warnings:
        announce(warning)  # before the hours that it costs, too
    run.stages.add_warnings(precision_warnings)
    objective = experiment.proxy.objective
    run.stages.add_to_summary(
        objective={"name": type(objective).__name__, "pairs": reads_pairs(objective), "unit": loss_unit(objective)}
    )
    prompts = load_judging_prompts(experiment, run, dataset) if experiment.reaches("judge") else []
    return report_hygiene(experiment, run, dataset, prompts), prompts


def report_contents(run: OpenRun, dataset: InstructionDataset) -> None:
    """Say how many rows are of each schema and what of them is not used, before anything is computed."""
    heldout_rows = 0 if dataset.heldout is None else len(dataset.heldout)
    run.stages.add_to_summary(contents=asdict(dataset.contents), heldout_rows=heldout_rows)
    if dataset.other_part:
        run.stages.add_to_summary(study_part={"rows": dataset.counted_rows, "all_rows": len(dataset)})
        announce(f"{dataset.counted_rows:,} of {len(dataset):,} rows are of this part of the study")
    for line in dataset.contents.describe():
        announce(f"{dataset.origin}: {line}")


def load_judging_prompts(experiment: Experiment, run: OpenRun, dataset: InstructionDataset) -> list[Prompt]:
    """Load the prompts of the judge before anything is trained, and refuse judging that could not succeed."""
    judging = experiment.judging
    heldout_rows = [
        asdict(turn) | ({} if source_name is None else {"source": source_name})
        for turn, source_name in dataset.heldout_questions()
    ]
    prompts = load_prompts(judging.prompts.values(), heldout_rows or None)
    run_on_rank_zero(
        check_judging,
        judging.judge,
        prompts,
        experiment.target.baselines,
        judging.repeats,
        judging.generation.max_new_tokens,
    )
    judged_on_validation = warn_of_judging_on_validation(experiment, prompts)
    run.stages.add_diagnostics({}, [FailedDiagnostic("judged_on_validation", text) for text in judged_on_validation])
    return prompts


def report_hygiene(
    experiment: Experiment, run: OpenRun, dataset: InstructionDataset, prompts: Sequence[Prompt]
) -> InstructionDataset:
    """List the rows that show signs of poor quality, and return the dataset without those that are to be left out."""
    evaluation_turns = [*(dataset.heldout_turns() or ()), *(prompt.turn for prompt in prompts)]
    hygiene = check_hygiene(dataset, [turn.question for turn in evaluation_turns], experiment.cache)
    run.folder.write_hygiene(hygiene.hits)
    dropped = hygiene.rows_to_drop(dataset.drop)
    run.stages.add_to_summary(hygiene={"rows": len(dataset), "counts": hygiene.counts, "dropped": len(dropped)})
    return replace(dataset, dropped=dropped)
