"""LEAD (arXiv 2505.07437): the target selects its rows while it trains on them."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.examples import Rows, hash_examples
from gradfiltering.finetuning.fine_tune import FineTuningResult, build_training_key, fine_tune, train_or_reuse
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.training_sets import CANDIDATE
from gradfiltering.methods.lead.curriculum import Curriculum, LeadSettings, Pool, cluster_by_difficulty
from gradfiltering.methods.lead.lead_schedule import LeadSchedule
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import Objective
from gradfiltering.requests import BaseModelLosses, Evidence
from gradfiltering.runs.cache import ResumePoint, Workspace
from gradfiltering.runs.run_folder import POOL_FILE, ROUNDS_FILE
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Selection

LEAD_VERSION = 2  # raise it when the same rows and settings would lead to other rows or another adapter


def build_pool(scores: Scores, evidence: Evidence, settings: LeadSettings) -> Pool:
    """Return the rows that can be selected: those with a difficulty.

    Args:
        scores: difficulties.
        evidence: about these rows or more, under the target's base model; its sources are the tasks.
        settings: number of clusters.
    """
    example_ids = scores.example_ids
    evidence_indices = np.searchsorted(evidence.example_ids, example_ids)
    task = np.zeros(len(example_ids), dtype=np.int64)
    if evidence.sources is not None:
        task = np.unique(evidence.sources[evidence_indices], return_inverse=True)[1]
    cluster = cluster_by_difficulty(scores.score, settings, evidence.seed)
    base_model_losses = evidence.get(BaseModelLosses()).row_losses[evidence_indices].astype(np.float64)
    return Pool(example_ids, cluster, task, base_model_losses)


def select_while_training(
    lead_settings: LeadSettings,
    budget: int,
    scores: Scores,
    evidence: Evidence,
    base_model: LanguageModel,
    rows: Rows,
    settings: FineTuningSettings,
    objective: Objective,
    workspace: Workspace,
) -> tuple[Selection, dict[str, FineTuningResult]]:
    """Train the candidate on rows that LEAD selects, or take it from the cache, into `target/candidate/`.

    Beside adapter and curve stand `rounds.parquet`, the rounds and their rows, and `pool.parquet`, the state of each
    row at the end.

    Args:
        lead_settings: of the selection.
        budget: different rows to train on; all rows where there are fewer.
        scores: difficulties of the rows.
        evidence: about the rows, under the target's base model.
        base_model: frozen target and its tokenizer.
        rows: all rows and held-out rows, tokenised for the target.
        settings: of the training.
        objective: loss of each example.
        workspace: run folder, cache, seed, trainer.

    Returns:
        The rows that were used, and the candidate's result by its name.
    """
    pool = build_pool(scores, evidence, lead_settings)
    budget = min(budget, len(pool))
    examples = rows.examples.select(pool.example_ids.tolist())
    key = build_training_key(base_model, rows.heldout, settings, objective, workspace)
    key |= {
        "lead": LEAD_VERSION,
        "tuning": _leave_out(key["tuning"], "epochs"),
        "selection": _leave_out(asdict(lead_settings), "difficulty", "log_difficulty", "clusters"),
        "budget": budget,
        "pool": _hash_pool(pool),
        "examples": hash_examples(examples),
    }

    def train(output_folder: Path, resume_point: ResumePoint) -> FineTuningResult:
        curriculum = Curriculum(pool, lead_settings, budget, workspace.seed)
        result = fine_tune(
            CANDIDATE,
            base_model,
            examples,
            rows.heldout,
            settings,
            workspace.seed,
            workspace.trainer,
            objective,
            output_folder,
            resume_point,
            schedule=LeadSchedule(curriculum, settings.batch_size),
        )
        write_tables(curriculum, output_folder)
        return replace(result, examples=curriculum.distinct_rows)

    result = train_or_reuse(CANDIDATE, key, train, workspace)
    uses = pq.read_table(workspace.run_dir / "target" / CANDIDATE / POOL_FILE)["uses"].to_numpy()
    details = {"selector": "lead", "clusters": int(pool.cluster.max()) + 1, "trained_examples": int(uses.sum())}
    return Selection(pool.example_ids[uses > 0].tolist(), details), {CANDIDATE: result}


def write_tables(curriculum: Curriculum, output_folder: Path) -> None:
    """Write `rounds.parquet` and `pool.parquet`."""
    pool = curriculum.pool
    pool_table = pa.table(
        {
            "example_id": pool.example_ids,
            "cluster": pool.cluster,
            "task": pool.task,
            "bare_loss": pool.loss,
            "idu": curriculum.uncertainty,
            "uses": curriculum.uses,
        }
    )
    pq.write_table(pool_table, output_folder / POOL_FILE)
    pq.write_table(pa.Table.from_pylist(curriculum.history), output_folder / ROUNDS_FILE)


def _hash_pool(pool: Pool) -> str:
    digest = hashlib.sha256()
    for column in (pool.example_ids, pool.cluster, pool.task, pool.loss):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:32]


def _leave_out(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
