"""The experiment, from rows to report."""

from gradfiltering.experiment.checks import check_experiment
from gradfiltering.experiment.model_loading import load_language_model
from gradfiltering.experiment.open_run import open_run
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.planning_of_run import compare_with_plan, plan_experiment
from gradfiltering.experiment.stages.data import read_rows_and_prompts
from gradfiltering.experiment.stages.judge import check_judge, judge_models
from gradfiltering.experiment.stages.measurement import encode_rows, measure_rows
from gradfiltering.experiment.stages.report import report_run
from gradfiltering.experiment.stages.selection import select_subset
from gradfiltering.experiment.stages.target import train_models


def run_experiment(experiment: Experiment) -> None:
    """Run the stages of an experiment in order, up to its last one.

    Rows become examples, examples are measured, measurements become scores, scores a subset; the
    target is fine-tuned on it and on its baselines, a judge compares their answers, and a page
    shows the run. Everything is written into the run folder as it becomes known.

    Raises:
        UserError: something that the user can mend.
    """
    check_experiment(experiment)
    with open_run(experiment) as run:
        dataset, prompts = read_rows_and_prompts(experiment, run)
        if experiment.reaches("judge"):
            check_judge(experiment, run)

        proxy = run.stages.run(
            "base_model", load_language_model, experiment.proxy.base_model, experiment.cache, experiment.seed,
            run.build_trainer,
        )  # fmt: skip
        context = encode_rows(experiment, run, dataset, proxy)
        planned = plan_experiment(experiment, run, context, prompts)
        if experiment.planning.only:
            return
        rows = measure_rows(experiment, run, planned)
        selection = select_subset(experiment, run, rows)

        if experiment.reaches("target"):
            target = run.stages.run("target", train_models, experiment, run, rows, selection, proxy)
            run.stages.add_to_summary(target=target.describe_results(dataset.heldout_sources))
            if experiment.reaches("judge"):
                run.stages.run("judge", judge_models, experiment, run, dataset, target, prompts)
        run.stages.add_to_summary(plan=compare_with_plan(planned.plan.to_json(), run.stages.summary["cost"]))
        report_run(experiment, run, dataset)
