"""LEAD (arXiv 2505.07437): the target selects its rows while it trains on them."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.examples import hash_examples
from gradfiltering.finetuning.fine_tune import (
    FineTuningContext,
    FineTuningResult,
    TrainedModel,
    fine_tune,
    train_or_reuse,
)
from gradfiltering.finetuning.training_sets import CANDIDATE
from gradfiltering.methods.lead.curriculum import Curriculum, LeadSettings, Pool, cluster_by_difficulty
from gradfiltering.methods.lead.lead_schedule import LeadSchedule
from gradfiltering.requests import BaseModelLosses, Evidence, Request
from gradfiltering.runs.cache import ResumePoint
from gradfiltering.runs.run_folder import POOL_FILE, ROUNDS_FILE
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.selectors.base import Selection, Selector

LEAD_VERSION = 2  # raise it when the same rows and settings would lead to other rows or another adapter


@dataclass(frozen=True)
class Lead:
    """Scores rows by their difficulty for the target, and selects among them while the target trains.

    Attributes:
        settings: of LEAD.
        selector: only its budget counts.
    """

    settings: LeadSettings
    selector: Selector
    scoring_model: ClassVar[Literal["proxy", "target"]] = "target"
    selects_while_training: ClassVar[bool] = True

    @property
    def scorer(self) -> Scorer:
        """Scorer of the rows' difficulty."""
        return self.settings.difficulty

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements under the base model of the target."""
        return self.scorer.requests | {BaseModelLosses()}

    def budget_rows(self, total_rows: int) -> int:
        """Return how many different rows to train on."""
        return self.selector.budget_rows(total_rows)

    def select_rows(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> None:
        """Select nothing before the training."""

    def train_candidate(
        self,
        selection: Selection | None,
        evidence: Evidence,
        total_rows: int,
        scores: Scores | None,
        context: FineTuningContext,
    ) -> tuple[Selection, TrainedModel]:
        """Train the candidate on rows that LEAD selects, or take it from the cache.

        Beside adapter and curve stand `rounds.parquet`, the rounds and their rows, and
        `pool.parquet`, the state of each row at the end.

        Args:
            selection: None, rows are selected here.
            evidence: about the rows, under the target's base model.
            total_rows: all rows of the dataset.
            scores: difficulties of the rows.
            context: base model and settings of the training.
        """
        assert scores is not None, "rows are clustered by their scores"
        pool = build_pool(scores, evidence, self.settings)
        budget = min(self.budget_rows(total_rows), len(pool))
        examples = context.examples.select(pool.example_ids.tolist())
        key = {
            **context.shared_key,
            "lead": LEAD_VERSION,
            "tuning": _leave_out(context.shared_key["tuning"], "epochs"),
            "selection": _leave_out(asdict(self.settings), "difficulty", "log_difficulty", "clusters"),
            "budget": budget,
            "pool": _hash_pool(pool),
            "examples": hash_examples(examples),
        }

        def train(output_folder: Path, resume_point: ResumePoint) -> FineTuningResult:
            curriculum = Curriculum(pool, self.settings, budget, context.seed)
            schedule = LeadSchedule(curriculum, context.settings.batch_size)
            result = fine_tune(CANDIDATE, examples, context, output_folder, resume_point, schedule)
            write_tables(curriculum, output_folder)
            return replace(result, examples=curriculum.distinct_rows)

        candidate = train_or_reuse(CANDIDATE, key, train, context)
        uses = pq.read_table(candidate.folder / POOL_FILE)["uses"].to_numpy()
        details = {
            "selector": "lead",
            "clusters": int(pool.cluster_indices.max()) + 1,
            "trained_examples": int(uses.sum()),
        }
        return Selection(pool.example_ids[uses > 0].tolist(), details), candidate


def build_pool(scores: Scores, evidence: Evidence, settings: LeadSettings) -> Pool:
    """Return the rows that can be selected: those with a difficulty.

    Args:
        scores: difficulties.
        evidence: about these rows or more, under the target's base model; its sources are the
            tasks.
        settings: number of clusters.
    """
    example_ids = scores.example_ids
    evidence_indices = np.searchsorted(evidence.example_ids, example_ids)
    task_indices = np.zeros(len(example_ids), dtype=np.int64)
    if evidence.sources is not None:
        task_indices = np.unique(evidence.sources[evidence_indices], return_inverse=True)[1]
    cluster_indices = cluster_by_difficulty(scores.score, settings, evidence.seed)
    base_model_losses = evidence.get(BaseModelLosses()).row_losses[evidence_indices].astype(np.float64)
    return Pool(example_ids, cluster_indices, task_indices, base_model_losses)


def write_tables(curriculum: Curriculum, output_folder: Path) -> None:
    """Write `rounds.parquet` and `pool.parquet`."""
    pool = curriculum.pool
    pool_table = pa.table(
        {
            "example_id": pool.example_ids,
            "cluster": pool.cluster_indices,
            "task": pool.task_indices,
            "base_loss": pool.base_model_losses,
            "idu": curriculum.uncertainty,
            "uses": curriculum.uses,
        }
    )
    pq.write_table(pool_table, output_folder / POOL_FILE)
    pq.write_table(pa.Table.from_pylist(curriculum.history), output_folder / ROUNDS_FILE)


def _hash_pool(pool: Pool) -> str:
    digest = hashlib.sha256()
    for column in (pool.example_ids, pool.cluster_indices, pool.task_indices, pool.base_model_losses):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:32]


def _leave_out(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
