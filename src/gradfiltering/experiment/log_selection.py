"""Selection of rows anew from the gradient log that a run left, whatever its size: no model, and no row's text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gradfiltering.diagnostics.ensemble import diagnose_ensemble
from gradfiltering.diagnostics.limits import DiagnosticLimits
from gradfiltering.diagnostics.subset import ScoredColumns, diagnose_selected_columns, diagnose_source_counts
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.reports.page.settings import PageSettings
from gradfiltering.runs.files import discard_quietly, temporary_path
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.runs.logs import log_to_file
from gradfiltering.runs.run_folder import (
    GRADIENT_LOG,
    HYGIENE_FILE,
    ROWS_FILE,
    SCORES_FILE,
    SUBSET_FILE,
    SUMMARY_FILE,
    TRAJECTORY_FILE,
    RunFolder,
)
from gradfiltering.runs.run_lock import hold_run_folder
from gradfiltering.runs.stages import StageRunner
from gradfiltering.scorers.base import Scorer
from gradfiltering.selectors.base import Selector, shortfall_warnings
from gradfiltering.shards.database import StoredColumns, open_database, read_file
from gradfiltering.shards.scoring import ComparedLog, ScoredLog, check_requests, score_log, write_ranked_scores
from gradfiltering.shards.selection import (
    StoredSelection,
    count_sources,
    find_strata,
    has_sources,
    select_in_memory,
    select_stored_rows,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LINKED_FILES = (ROWS_FILE, HYGIENE_FILE, TRAJECTORY_FILE)  # of the run, which the page shows
# Parts of the run's summary, and diagnostics, that another choice of rows leaves as they are.
KEPT_PARTS = (
    "data", "contents", "study_part", "objective", "base_models", "templates", "hygiene", "proxy", "counted_rows",
    "heldout_rows",
)  # fmt: skip
KEPT_DIAGNOSTICS = (
    "base_loss", "chance_loss", "chance_loss_share", "unknown_token_share", "proxy_knows_rows", "heldout_loss",
    "heldout_rows",
)  # fmt: skip
KEPT_FAILURES = ("proxy_knowledge", "heldout_loss_fell", "heldout_loss_stays_down")


@dataclass(frozen=True)
class LogSelection:
    """A selection from a gradient log.

    Attributes:
        source_folder: of the run that left the log.
        output_folder: of the selection, which is a run folder, too.
        scorer: scores the rows by the log alone.
        selector: selects them by scores, and by nothing that the log does not hold.
        snapshots: the pair that is compared.
        limits: beyond which a diagnostic is a warning.
        page: contents of the report.
        seed: of everything random.
        config: the resolved configuration, for the output folder.
        overrides: the options that the user gave, NAME=VALUE each.
        choices: `scorer` and `selector` -> the name that was chosen.
    """

    source_folder: Path
    output_folder: Path
    scorer: Scorer
    selector: Selector
    snapshots: SnapshotPair
    limits: DiagnosticLimits
    page: PageSettings
    seed: int
    config: Mapping[str, Any]
    overrides: Sequence[str]
    choices: Mapping[str, str]


@dataclass(frozen=True)
class _OpenSelection:
    """A selection whose folders and database are open.

    Attributes:
        job: what is to be done.
        compared_log: the log that is scored.
        total_rows: rows of the dataset, which budgets count.
        folder: of the results.
        work_folder: for files that are deleted in the end.
        connection: of the database.
    """

    job: LogSelection
    compared_log: ComparedLog
    total_rows: int
    folder: RunFolder
    work_folder: Path
    connection: "DuckDBPyConnection"

    @property
    def rows_file(self) -> Path | None:
        """The texts and sources of the rows, where the run left them."""
        rows_file = self.folder.path / ROWS_FILE
        return rows_file if rows_file.is_file() else None


def run_selection(job: LogSelection) -> dict[str, Any]:
    """Score the rows of a log, select among them and write scores, subset, diagnostics and page.

    Memory is bounded whatever the number of rows, unless scorer or selector compares rows with each other.

    Returns:
        The summary.

    Raises:
        UserError: there is no log, it does not serve the scorer or the selector, or has too many rows for them.
    """
    if job.output_folder.resolve() == job.source_folder.resolve():
        raise UserError(f"{job.output_folder} holds the gradient log; give another folder for the selection")
    log = GradientLogReader(job.source_folder / GRADIENT_LOG)
    compared_log = ComparedLog(log, job.snapshots.early, job.snapshots.late, job.seed)
    source_summary = _read_summary(job.source_folder)
    total_rows = _count_rows(source_summary, compared_log)
    _check(job, compared_log, total_rows)
    import torch

    with hold_run_folder(job.output_folder):
        folder = RunFolder(job.output_folder)
        device = torch.device("cpu")
        folder.begin(dict(job.config), job.seed, device, job.overrides)
        stages = StageRunner(folder, device)
        kept_parts = {name: source_summary[name] for name in KEPT_PARTS if name in source_summary}
        plain_data = {"examples": total_rows, "unscored": total_rows - compared_log.row_count}
        stages.add_to_summary(**{"data": plain_data, **kept_parts, "log": str(job.source_folder)})
        _link_files(job, compared_log, folder)
        work_folder = temporary_path(folder.path / "selection")
        work_folder.mkdir(parents=True)
        try:
            with log_to_file(folder.path), open_database(work_folder) as connection:
                opened = _OpenSelection(job, compared_log, total_rows, folder, work_folder, connection)
                _run_stages(opened, stages, source_summary)
        finally:
            discard_quietly(work_folder)
    return stages.summary


def _read_summary(source_folder: Path) -> dict[str, Any]:
    return RunFolder(source_folder).read_summary() if (source_folder / SUMMARY_FILE).is_file() else {}


def _count_rows(source_summary: Mapping[str, Any], compared_log: ComparedLog) -> int:
    """Count the rows that budgets count: those of the dataset, or of the log where nothing else is known."""
    counted_rows = source_summary.get("counted_rows") or source_summary.get("data", {}).get("examples")
    return int(counted_rows or compared_log.row_count)


def _check(job: LogSelection, compared_log: ComparedLog, total_rows: int) -> None:
    """Refuse what cannot be done, before anything is computed."""
    for epoch in (compared_log.early, compared_log.late):
        compared_log.log.list_files(epoch)  # refuses an epoch that was not logged
    job.scorer.check_members(len(compared_log.log.members))
    readers: list[Any] = [job.scorer, job.selector]
    for reader in readers:
        check_requests(reader)
    if not job.scorer.row_wise:
        compared_log.check_fits_memory(job.scorer)
    if find_strata(job.selector) is None:
        compared_log.check_fits_memory(job.selector)
    job.selector.budget_rows(total_rows)


def _link_files(job: LogSelection, compared_log: ComparedLog, folder: RunFolder) -> None:
    log = compared_log.log
    for epoch in sorted({compared_log.early, compared_log.late}):
        for member, parquet_file in zip(log.members, log.list_files(epoch), strict=True):
            folder.link_gradient_log(parquet_file, member, epoch, unit=log.unit)
    for file_name in LINKED_FILES:
        if (job.source_folder / file_name).is_file():
            folder.link(job.source_folder / file_name, file_name)


def _run_stages(opened: _OpenSelection, stages: StageRunner, source_summary: Mapping[str, Any]) -> None:
    job, folder = opened.job, opened.folder
    scored_log = stages.run("score", _score, opened)
    unscored = _list_unscored(opened, scored_log)
    folder.write_unscored(unscored)
    reasons = dict(Counter(reason for _, reason in unscored))
    counts = {"unscored": len(unscored), "unscored_reasons": reasons} if source_summary else {}
    stages.add_to_summary(data={**stages.summary["data"], **counts})
    selection = stages.run("select", _select, opened, scored_log)
    budget_rows = job.selector.budget_rows(opened.total_rows)
    stages.add_warnings(shortfall_warnings(budget_rows, selection.row_count, selection.stopped))
    stages.add_to_summary(
        selection={
            "scorer": job.choices["scorer"],
            "selector": job.choices["selector"],
            "fraction": selection.row_count / opened.total_rows,
            "selected": selection.row_count,
            **selection.facts,
        }
    )
    stages.run("diagnostics", _diagnose, opened, scored_log, stages, source_summary)
    from gradfiltering.reports.verdict import judge_run

    verdict = judge_run(folder.path)
    if not source_summary:  # nobody knows which run would settle it
        verdict |= {"command": None, "command_seconds": None}
    stages.add_to_summary(verdict=verdict)
    if job.page.page:
        stages.run("report", _write_page, job, folder)
    stages.end()


def _list_unscored(opened: _OpenSelection, scored_log: ScoredLog) -> list[tuple[int, str]]:
    """List id and reason of the rows without a score: those of the run that the log lacks, and those left out here.

    A row that only the run's own scorer gave no score has one now, or another reason.
    """
    unscored = RunFolder(opened.job.source_folder).read_unscored()
    opened.connection.register("unscored", pa.Table.from_pandas(unscored.astype({"example_id": np.int64})))
    unscored_rows = opened.connection.sql(
        f"SELECT example_id, reason FROM unscored ANTI JOIN {read_file(scored_log.scored_file)} USING (example_id)"
    ).fetchall()
    return sorted({**dict(unscored_rows), **dict(scored_log.unscored)}.items())


def _score(opened: _OpenSelection) -> ScoredLog:
    scored_log = score_log(opened.job.scorer, opened.compared_log, opened.work_folder)
    opened.folder.write(SCORES_FILE, partial(write_ranked_scores, opened.connection, scored_log))
    return scored_log


def _select(opened: _OpenSelection, scored_log: ScoredLog) -> StoredSelection:
    job = opened.job
    if find_strata(job.selector) is not None:
        subset_file = opened.work_folder / SUBSET_FILE
        selection = select_stored_rows(
            job.selector, opened.connection, scored_log.scored_file, opened.total_rows, subset_file, opened.rows_file
        )
        opened.folder.write(SUBSET_FILE, subset_file.replace)
        return selection
    in_memory = select_in_memory(job.selector, opened.compared_log, scored_log.scored_file, opened.total_rows)
    scores = opened.folder.read_scores()
    assert scores is not None, "the rows were scored before"
    selected_ids = np.asarray(in_memory.example_ids, dtype=np.int64)
    opened.folder.write_subset(selected_ids, scores.set_index("example_id")["score"].reindex(selected_ids).to_numpy())
    return StoredSelection(opened.folder.path / SUBSET_FILE, len(selected_ids), in_memory.facts, in_memory.stopped)


def _diagnose(
    opened: _OpenSelection, scored_log: ScoredLog, stages: StageRunner, source_summary: Mapping[str, Any]
) -> None:
    """Diagnose ensemble and selection from the files; what another choice of rows does not change is taken over."""
    job, connection = opened.job, opened.connection
    noted = source_summary.get("diagnostics", {})
    stages.summary["diagnostics"].update({name: noted[name] for name in KEPT_DIAGNOSTICS if name in noted})
    kept_failures = [failure for failure in noted.get("failed", []) if failure["name"] in KEPT_FAILURES]
    stages.summary["diagnostics"]["failed"] += kept_failures
    stages.add_warnings([failure["warning"] for failure in kept_failures])
    update_ratios = {epoch: [ratio] for epoch, ratio in noted.get("update_ratio", {}).items()}
    subset_file = opened.folder.path / SUBSET_FILE
    scored_rows = StoredColumns(connection, read_file(scored_log.scored_file))
    selected_rows = StoredColumns(
        connection, f"(SELECT * FROM {scored_rows.rows} SEMI JOIN {read_file(subset_file)} USING (example_id))"
    )
    findings = [
        diagnose_ensemble(
            StoredColumns(connection, read_file(scored_log.ensemble_file)),
            job.snapshots.early,
            job.snapshots.late,
            update_ratios,
            job.limits,
            job.snapshots.unit,
        ),
        diagnose_selected_columns(
            scored_rows, selected_rows, ScoredColumns(scored_rows, scored_log.statistic_names), job.limits
        ),
    ]
    if opened.rows_file is not None and has_sources(connection, opened.rows_file):
        findings.append(
            diagnose_source_counts(*count_sources(connection, opened.rows_file, subset_file), limits=job.limits)
        )
    for diagnostics in findings:
        stages.add_diagnostics(diagnostics.values, diagnostics.failed)


def _write_page(job: LogSelection, folder: RunFolder) -> None:
    from gradfiltering.reports.page.run_page import write_page

    write_page(folder.path, job.page.rows, job.page.figures)
