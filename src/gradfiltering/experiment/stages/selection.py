"""Selection of the subset."""

from gradfiltering.data.export import warn_of_export
from gradfiltering.diagnostics.planted_truth import compare_with_truth
from gradfiltering.diagnostics.subset import diagnose_selection, diagnose_sources
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stages.measurement import MeasuredRows
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.requests import BaseModelLosses
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Selection, shortfall_warnings


def select_subset(experiment: Experiment, run: OpenRun, rows: MeasuredRows) -> Selection | None:
    """Select the subset, unless the run ends before or the target selects while it trains."""
    method = experiment.method
    if not experiment.reaches("select") or method.selects_while_training:
        return None
    selection = run.stages.run("select", method.select_rows, rows.evidence, rows.total_rows, rows.scores)
    assert selection is not None, "this method selects before the training"
    write_selection(experiment, run, rows, selection, rows.scores)
    return selection


def write_selection(
    experiment: Experiment, run: OpenRun, rows: MeasuredRows, selection: Selection, scores: Scores | None
) -> None:
    """Write the subset into the run folder, and its facts and diagnostics into the summary."""
    total_rows = rows.total_rows
    write_subset(run.folder, rows.dataset, selection.example_ids, scores, selection.trace, experiment.export)
    run.stages.add_warnings(warn_of_export(rows.dataset, selection.example_ids, experiment.export))
    run.stages.add_to_summary(selection=selection.summary(experiment.choices, total_rows, scores))
    budget_rows = experiment.method.budget_rows(total_rows)
    run.stages.add_warnings(shortfall_warnings(budget_rows, len(selection.example_ids), selection.stopped))
    selected_ids, limits = selection.example_ids, experiment.limits
    base_losses = rows.evidence.results.get(BaseModelLosses())
    for findings in (
        diagnose_selection(rows.evidence, selected_ids, scores, base_losses, limits),
        diagnose_sources(rows.dataset.sources, selected_ids, limits, rows.dataset.set_aside),
        compare_with_truth(rows.dataset.kinds, selected_ids, scores, experiment.seed, limits, rows.dataset.set_aside),
    ):
        run.stages.add_diagnostics(findings.values, findings.failed)
