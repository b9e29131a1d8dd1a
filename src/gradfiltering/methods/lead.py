"""LEAD (arXiv 2505.07437): the target chooses its rows as it trains on them."""

import hashlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader

from gradfiltering.data.batches import IGNORED, Batch, WorkShare
from gradfiltering.data.examples import Examples, Rows, hash_examples
from gradfiltering.distributed.process_group import once, rank, share, total
from gradfiltering.finetuning.checkpoints import Progress
from gradfiltering.finetuning.lora_finetuning import (
    FineTuning,
    FineTuningResult,
    FineTuningSettings,
    Updates,
    fresh_adapter,
    heldout_batches,
    keep_adapter,
)
from gradfiltering.finetuning.targets import CANDIDATE, MODEL_FILES, NOT_OF_A_TARGET, made_once
from gradfiltering.methods.curriculum import Curriculum, LeadSettings, Pool, Round, cluster_by
from gradfiltering.methods.dynamic_uncertainty import predicted_change
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.weights import hash_weights
from gradfiltering.requests import BaseModelLosses, Evidence
from gradfiltering.runs.cache import Unfinished, Workspace, atomic_path
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.base import Selection

LEAD_VERSION = 1  # raise it when the same rows and settings would lead to other choices or another adapter
ROUNDS, POOL, STATE = "rounds.parquet", "pool.parquet", "state.pt"


class ChosenUpdates(Updates):
    """The updates so far of a training run that chooses its rows as it goes."""

    def __init__(self, examples: Examples, settings: FineTuningSettings, pad_id: int, share: WorkShare):
        self.examples = examples
        self.budget = settings.micro_batch_tokens
        self.pad_id = pad_id
        self.share = share
        self.rows: list[np.ndarray] = []


class RoundGradients:
    """Mean gradients of rounds on the CPU: of the last, and of the one in which each cluster was first trained.

    Attributes:
        first: cluster -> [P] float32.
        last: [P] float32, None before the first round.
    """

    def __init__(self) -> None:
        self.first: dict[int, Tensor] = {}
        self.last: Tensor | None = None

    def change(self, cluster: int, lr: float) -> float:
        """ΔL of a round of `cluster` at learning rate `lr`."""
        if self.last is None:
            return 0.0
        last, first = float(self.last.square().sum()), self.first.get(cluster)
        if first is None:
            return predicted_change(lr, last, None, 1.0)
        squared = float(first.square().sum())
        lengths = math.sqrt(squared * last)
        cosine = float(first @ self.last) / lengths if lengths else 1.0
        return predicted_change(lr, last, squared, min(max(cosine, -1.0), 1.0))

    def add(self, cluster: int, mean: Tensor) -> None:
        """Takes in a round's mean gradient, [P]."""
        self.first.setdefault(cluster, mean)
        self.last = mean


class LeadTuning(FineTuning):
    """Trains an adapter in rounds whose rows the curriculum chooses; a step of the trainer is a round.

    What an example loses and the gradient of a round are read off its own updates, so a round costs what training on
    its rows costs. Warm-up and schedule go by the share of the budget that is used up, since how many updates there
    will be is not known before.

    Args:
        name: of the model being made, for the metrics.
        model: PEFT model; only its adapter is trained and saved.
        settings: optimiser and schedule; its epochs say nothing here.
        updates: none so far.
        heldout: batches to measure the held-out loss on, or None.
        curriculum: chooses.
        unfinished: where an interrupted run's state lies.
    """

    def __init__(
        self,
        name: str,
        model: PeftModel,
        settings: FineTuningSettings,
        updates: ChosenUpdates,
        heldout: DataLoader | None,
        curriculum: Curriculum,
        unfinished: Unfinished,
    ):
        super().__init__(name, model, settings, updates, heldout)
        self.curriculum = curriculum
        self.unfinished = unfinished
        self.gradients = RoundGradients()
        self.steps = curriculum.budget  # of the schedule: different rows, not updates
        self.due = set()  # points of the curve are recorded by rounds
        self.records = np.linspace(0, curriculum.budget, settings.records).round().astype(int)
        self._saved = time.monotonic()
        self._seen: dict[int, float] = {}
        self._gradient: Tensor | float = 0.0

    def on_train_start(self) -> None:
        """Measures the untrained adapter, or goes on from what an interrupted run left."""
        state = once(read_state, self.unfinished)
        if state is None:
            super().on_train_start()
        else:
            self._restore(state)
        self._saved = time.monotonic()

    def training_step(self, number: Any, index: int) -> None:
        """One round: choose, train, and learn from what the training showed."""
        # The first process chooses for all: rounding may differ between machines, and of two like rows decide.
        chosen, lr = once(self.curriculum.pick), self._set_lr()
        before = self.curriculum.distinct
        self._seen, self._gradient = {}, 0.0
        for rows in np.array_split(chosen.rows, -(-len(chosen.rows) // self.settings.batch_size)):
            assert isinstance(self.updates, ChosenUpdates)
            self.updates.rows.append(rows)
            update = len(self.updates.rows) - 1
            super().training_step(self.updates[update], update)
        assert isinstance(self._gradient, Tensor)
        change = self.gradients.change(chosen.cluster, lr)
        entry = self.curriculum.learn(chosen, self._losses_of(chosen), change)
        entry.update(lr=lr, updates=len(self.updates.rows))
        self.gradients.add(chosen.cluster, (self._gradient / len(chosen.rows)).cpu())
        self._log_round(entry)
        passed = np.searchsorted(self.records, [before, self.curriculum.distinct], side="right")
        if passed[1] > passed[0]:
            self._record(len(self.updates.rows))
        self.trainer.should_stop = self.curriculum.done

    def on_train_batch_end(self, *_: Any) -> None:
        """Keeps what training would go on from, when it is time to."""
        due = time.monotonic() - self._saved >= 60 * self.curriculum.settings.checkpoint_minutes
        if due and not self.curriculum.done:
            if rank() == 0:
                self._write_state()
            self._saved = time.monotonic()

    def token_losses(self, batch: Batch) -> Tensor:
        """[B, T - 1]; each example's mean is noted on the way."""
        losses = super().token_losses(batch)
        response = (batch.labels[:, 1:] != IGNORED).sum(1)
        means = losses.detach().double().sum(1) / response
        self._seen.update(zip(batch.example_id.tolist(), means.tolist(), strict=True))
        return losses

    def sum_gradients(self) -> None:
        """The update's gradient is added to the round's, by its number of rows, before it is clipped."""
        super().sum_gradients()
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in self.trained.values()]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).float()
        self._gradient = self._gradient + len(self.updates.rows[-1]) * flat

    def lr_factor(self, step: int) -> float:
        """The learning rate once `distinct` of the budget's rows are used, as a share of its peak."""
        return super().lr_factor(self.curriculum.distinct)

    def _set_lr(self) -> float:
        lr = self.settings.lr * self.lr_factor(0)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = lr
        return lr

    def _losses_of(self, chosen: Round) -> np.ndarray:
        """[n] of the round's rows; every process knows those of its own."""
        ids = self.curriculum.pool.example_ids[chosen.rows]
        return total(np.asarray([self._seen.get(one, 0.0) for one in ids.tolist()]))

    def _log_round(self, entry: dict[str, Any]) -> None:
        if self.logger is None:
            return
        names = ("cluster", "fall", "reward", "predicted_change", "distinct", "lr")
        values = {f"target/{self.name}/lead/{name}": float(entry[name]) for name in names}
        arms = {f"target/{self.name}/lead/probability_{arm}": p for arm, p in enumerate(entry["probability"])}
        self.logger.log_metrics({**values, **arms}, step=entry["updates"])

    def _write_state(self) -> None:
        state = {
            "adapter": {name: value.detach().cpu() for name, value in self.trained.items()},
            "optimizer": self._optimizer().state_dict(),
            "first": self.gradients.first,
            "last": self.gradients.last,
            "curriculum": self.curriculum.state(),
            "updates": [rows.tolist() for rows in self.updates.rows],
            "progress": asdict(self.so_far()),
        }
        self.unfinished.write(lambda folder: torch.save(state, folder / STATE))

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(state["adapter"][name])
        self._optimizer().load_state_dict(state["optimizer"])
        self.gradients.first, self.gradients.last = state["first"], state["last"]
        self.curriculum.restore(state["curriculum"])
        self.updates.rows = [np.asarray(rows) for rows in state["updates"]]
        self.progress = Progress(**state["progress"])
        self.started = time.monotonic() - self.progress.seconds

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]


def read_state(left: Unfinished) -> dict[str, Any] | None:
    """What an interrupted run left, None where nothing is."""
    folder = left.find()
    return None if folder is None else torch.load(folder / STATE, map_location="cpu", weights_only=True)


def pool_of(scores: Scores, evidence: Evidence, lead: LeadSettings) -> Pool:
    """The rows that can be chosen: those with a difficulty, with cluster, task and bare loss.

    Args:
        scores: difficulties.
        evidence: about the same rows or more, under the bare target; its sources are the tasks.
        lead: how many clusters.
    """
    ids = scores.example_ids
    there = np.searchsorted(evidence.example_ids, ids)
    task = np.zeros(len(ids), dtype=np.int64)
    if evidence.sources is not None:
        task = np.unique(evidence.sources[there], return_inverse=True)[1]
    cluster = cluster_by(scores.score, lead, evidence.seed)
    return Pool(ids, cluster, task, evidence.get(BaseModelLosses()).row_losses[there].astype(np.float64))


def train(
    lead: LeadSettings,
    budget: int,
    scores: Scores | None,
    evidence: Evidence,
    base_model: LanguageModel,
    rows: Rows,
    settings: FineTuningSettings,
    workspace: Workspace,
) -> tuple[Selection, dict[str, FineTuningResult]]:
    """Trains the candidate on rows of its own choice, unless the store has it, into `target/candidate/`.

    Beside adapter and curve stand `rounds.parquet`, what was chosen and why, and `pool.parquet`, what is known of each
    row in the end.

    Args:
        lead: how rows are chosen.
        budget: different rows to train on; all there are where there are fewer.
        scores: difficulties of the rows.
        evidence: about the rows, under the bare target.
        backbone: frozen target and its tokenizer.
        rows: all rows and held-out rows, tokenised for the target.
        settings: how to train.
        workspace: run folder, store, seed, trainer.

    Returns:
        The rows that were used, and the candidate.
    """
    assert scores is not None, "a run whose target leads scores its rows"
    pool = pool_of(scores, evidence, lead)
    budget = min(budget, len(pool))
    some = Rows(rows.examples.select(pool.example_ids.tolist()), rows.heldout)
    key = {
        "lead": LEAD_VERSION,
        "base_model": hash_weights(base_model.model),
        "tuning": _but(asdict(settings), "epochs", *NOT_OF_A_TARGET),
        "choosing": _but(asdict(lead), "difficulty", "log_difficulty", "clusters", "checkpoint_minutes"),
        "budget": budget,
        "pool": _digest(pool),
        "examples": hash_examples(some.examples),
        "heldout": hash_examples(some.heldout) if some.heldout is not None else None,
        "precision": str(workspace.trainer().precision),
        "seed": workspace.seed,
    }
    curriculum = Curriculum(pool, lead, budget, workspace.seed)
    run = partial(_train, curriculum, base_model, some, settings, workspace)
    result = made_once(CANDIDATE, key, run, workspace, (*MODEL_FILES, ROUNDS, POOL))
    uses = pq.read_table(workspace.run_dir / "target" / CANDIDATE / POOL)["uses"].to_numpy()
    chosen = pool.example_ids[uses > 0].tolist()
    about = {"selector": "lead", "clusters": int(pool.cluster.max()) + 1, "trained_examples": int(uses.sum())}
    return Selection(chosen, about), {CANDIDATE: result}


def _train(
    curriculum: Curriculum,
    base_model: LanguageModel,
    rows: Rows,
    settings: FineTuningSettings,
    workspace: Workspace,
    folder: Path,
    unfinished: Unfinished,
) -> FineTuningResult:
    with fresh_adapter(base_model, settings, workspace.seed) as model:
        updates = ChosenUpdates(rows.examples, settings, base_model.pad_id, share())
        heldout = heldout_batches(rows, settings, base_model)
        module = LeadTuning(CANDIDATE, model, settings, updates, heldout, curriculum, unfinished)
        workspace.trainer(max_epochs=1, callbacks=[]).fit(module, itertools.count())
        _write_table(folder / ROUNDS, curriculum.history)
        pool = curriculum.pool
        columns = {"example_id": pool.example_ids, "cluster": pool.cluster, "task": pool.task, "bare_loss": pool.loss}
        columns |= {"idu": curriculum.idu, "uses": curriculum.uses}
        with atomic_path(folder / POOL) as part:
            pq.write_table(pa.table(columns), part)
        return keep_adapter(module, curriculum.distinct, base_model, folder)


def _write_table(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as part:
        pq.write_table(pa.Table.from_pylist(list(entries)), part)


def _digest(pool: Pool) -> str:
    digest = hashlib.sha256()
    for value in vars(pool).values():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:32]


def _but(options: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in without}
