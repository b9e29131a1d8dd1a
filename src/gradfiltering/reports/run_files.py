"""A run folder as the reports use it: every file is read once, when it is first needed."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gradfiltering.errors import UserError
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.runs.plain_text import replace_all_lone_surrogates
from gradfiltering.runs.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE, RunFolder

CANDIDATE = "candidate"


class ComparedEpochs(NamedTuple):
    """The two snapshots whose gradient norms are compared."""

    early: int
    late: int


class RunFiles:
    """The files of a run; parts that were not run are None or empty.

    Args:
        path: the run folder.

    Attributes:
        is_whole: True, as all rows are read; see `gradfiltering.reports.page.drawn_files`.

    Raises:
        UserError: it holds no run.
    """

    is_whole = True

    def __init__(self, path: Path):
        self.path = Path(path)
        self.folder = RunFolder(self.path)
        for name in (SUMMARY_FILE, ENVIRONMENT_FILE):
            if not (self.path / name).is_file():
                raise UserError(f"{self.path} has no {name}; give the folder of a run")
        self.summary: dict[str, Any] = replace_all_lone_surrogates(self.folder.read_summary())
        self.environment = self.folder.read_environment()
        self.config: dict[str, Any] = self.folder.read_config() if (self.path / CONFIG_FILE).is_file() else {}

    def options(self, group: str) -> dict[str, Any]:
        """Options of a group in the resolved configuration; empty where the run left none."""
        return self.config.get(group) or {}

    @property
    def overrides(self) -> list[str]:
        """Overrides of the command line."""
        overrides: list[str] = self.environment.get("overrides", [])
        return overrides

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of the summary."""
        diagnostics: dict[str, Any] = self.summary.get("diagnostics", {})
        return diagnostics

    @property
    def warnings(self) -> list[str]:
        """Warnings of failed diagnostics and others, in words."""
        warnings: list[str] = self.diagnostics.get("warnings", [])
        return warnings

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Name, seconds and reuse of each stage, in the order in which they ran."""
        stages: list[dict[str, Any]] = self.summary.get("stages", [])
        return stages

    @property
    def stage_seconds(self) -> float:
        """Seconds of all stages together."""
        return float(sum(stage["seconds"] for stage in self.stages))

    @property
    def saved_seconds(self) -> float:
        """Seconds that cached members, targets and answers had taken when they were made.

        Where a run trains an ensemble and measures influences as well, the latter find the former's members in the
        cache: the members are counted once, and not at all where this run trained them.
        """
        members = self.summary.get("proxy") or self.summary.get("influence") or {}
        parts = [members, self.summary.get("heldout_member", {}), self.summary.get("answers", {})]
        target_seconds = [result["seconds"] for result in self.target_results.values() if result.get("reused")]
        return float(sum(part.get("reused_seconds", 0.0) for part in parts) + sum(target_seconds))

    @property
    def selection(self) -> dict[str, Any]:
        """Number of selected rows, scorer and selector; empty where the run ended before."""
        return self.summary.get("selection") or {}

    @property
    def target_results(self) -> dict[str, dict[str, Any]]:
        """Losses, updates and seconds of each fine-tuned model, by its name."""
        target_results: dict[str, dict[str, Any]] = self.summary.get("target", {})
        return target_results

    @property
    def candidate_result(self) -> dict[str, Any]:
        """Result of the model that was fine-tuned on the subset; empty where none was."""
        return self.target_results.get(CANDIDATE, {})

    @property
    def pairwise_scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Pairwise winning scores of the candidate by baseline and prompt set, `all` among the sets."""
        pairwise_scores: dict[str, dict[str, dict[str, Any]]] = self.summary.get("pws", {})
        return pairwise_scores

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.environment["seed"])

    @property
    def row_count(self) -> int:
        """Rows of the dataset; 0 where the run ended before it was read."""
        return int(self.summary.get("data", {}).get("examples", 0))

    @property
    def counted_rows(self) -> int:
        """Rows that budgets count: all of the dataset, or those drawn for the time given or of the part of a study."""
        return int(self.summary.get("counted_rows") or self.row_count)

    @cached_property
    def row_ids(self) -> np.ndarray:
        """[K] ids of the rows that are read, ascending: all of them."""
        return np.arange(self.row_count)

    def is_drawn(self, example_ids: np.ndarray) -> np.ndarray:
        """Mark the rows by which shares of all rows are counted, [n] ids -> [n] bool: all of them."""
        return np.ones(len(example_ids), dtype=bool)

    @cached_property
    def scored_count(self) -> int:
        """Rows with a score."""
        return 0 if self.scores is None else len(self.scores)

    @cached_property
    def last_selected_rank(self) -> float:
        """The last rank among the selected rows; NaN where none has a rank."""
        if self.scores is None or self.selected_ids is None:
            return float("nan")
        selected_ranks = self.scores.loc[np.isin(self.scores["example_id"], self.selected_ids), "rank"]
        return float(selected_ranks.max()) if len(selected_ranks) else float("nan")

    @property
    def epochs(self) -> ComparedEpochs:
        """The compared snapshots: those that the run took, after a search or not, else those of its options."""
        taken_pair = self.summary.get("proxy", {}).get("epochs")
        return ComparedEpochs(*(taken_pair or (self.options("epochs")["early"], self.options("epochs")["late"])))

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """`example_id`, `score`, `rank` and the parts of the score, by example id."""
        score_table = self.folder.read_scores()
        return None if score_table is None else score_table.sort_values("example_id", ignore_index=True)

    @cached_property
    def selected_ids(self) -> np.ndarray | None:
        """[K] ids of the selected rows, ascending."""
        subset = self.folder.read_subset()
        return None if subset is None else np.sort(subset["example_id"].to_numpy())

    @cached_property
    def unscored_reasons(self) -> dict[int, str]:
        """Reason for which a row has no score, by example id."""
        unscored = self.folder.read_unscored()
        return dict(zip(unscored["example_id"].tolist(), unscored["reason"].tolist(), strict=True))

    @cached_property
    def hygiene_signs(self) -> dict[int, list[str]]:
        """Signs of poor quality that a row shows, by example id; rows without any are left out."""
        hygiene = self._read_hygiene()
        if hygiene is None:
            return {}
        signs_by_row: dict[int, list[str]] = {}
        for name in hygiene.columns.drop("example_id"):
            for example_id in hygiene.loc[hygiene[name], "example_id"].tolist():
                signs_by_row.setdefault(example_id, []).append(name.replace("_", " "))
        return signs_by_row

    @cached_property
    def planted_kinds(self) -> list[str] | None:
        """The planted kind of each row, where known."""
        truth = self.folder.read_truth()
        return None if truth is None else truth["kind"].tolist()

    @cached_property
    def gradient_log(self) -> GradientLogReader | None:
        """The gradient log."""
        return self.folder.read_gradient_log()

    @property
    def compared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """[M, N] float64 gradient norms at the early and at the late snapshot, where there is a gradient log."""
        assert self.gradient_log is not None
        early_norms, late_norms = (self.gradient_log.epoch(epoch).grad_norm.astype(np.float64) for epoch in self.epochs)
        return early_norms, late_norms

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Convergence curve of each fine-tuned model, NaN where nothing was measured; the candidate first."""
        return self.folder.read_curves()

    @cached_property
    def row_texts(self) -> pd.DataFrame | None:
        """`prompt`, `response` and `source` of the rows that are read, by example id."""
        row_texts = self._read_texts()
        return None if row_texts is None else row_texts.set_index("example_id")

    @property
    def data_facts(self) -> dict[str, str]:
        """`fingerprint` and `origin` of the data, where known."""
        return self.folder.read_data_facts()

    def _read_hygiene(self) -> pd.DataFrame | None:
        return self.folder.read_hygiene()

    def _read_texts(self) -> pd.DataFrame | None:
        return self.folder.read_rows()

    @cached_property
    def responses(self) -> dict[str, pd.DataFrame]:
        """Answers to the evaluation prompts, by model."""
        return {path.stem: _read_json_lines(path) for path in sorted(self.path.glob("responses/*.jsonl"))}

    @cached_property
    def verdicts(self) -> pd.DataFrame | None:
        """Every judged pair of answers."""
        path = self.folder.verdicts_file
        return _read_json_lines(path) if path.is_file() else None


def _read_json_lines(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8") as file:
        return pd.DataFrame([replace_all_lone_surrogates(json.loads(line)) for line in file])
