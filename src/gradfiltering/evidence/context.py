"""Everything that measurers work with, and the reports that they leave beside the evidence."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.device_states import DeviceStateStore
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.ensembles.trained_ensemble import BuildEngine, EnsembleCosts, TrainedEnsemble
from gradfiltering.gradients.projection import Projection
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import Objective
from gradfiltering.models.weights import count_frozen_weights, hash_model
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import lightning as L


@options
class EmbeddingSettings:
    """Source of the vectors that say which rows are alike.

    Attributes:
        encoder: None for the proxy's last hidden states, or hub id or folder of a sentence encoder.
        max_tokens: longest text for a sentence encoder; the proxy reads the rows as it trains on them.
        centre: subtract the mean over the rows. A language model's states share one large direction, beside which rows
            hardly differ.
    """

    encoder: str | None = None
    max_tokens: PositiveInt = 256
    centre: bool = True


@dataclass
class WorkReport:
    """Costs of work with an ensemble.

    Attributes:
        costs: of training and measuring, in this run.
        seconds: time that both took in this run.
        matmul_weights: weights of the base model in matrix products.
        frozen_weights: those of them that lie below the first adapter.
    """

    costs: EnsembleCosts = field(default_factory=EnsembleCosts)
    seconds: float = 0.0
    matmul_weights: int = 0
    frozen_weights: int = 0

    @property
    def reused(self) -> bool:
        """True where all of it was found in the cache."""
        return not self.costs.trained and not self.costs.logged

    @property
    def flops(self) -> int:
        """An estimate: 4 per weight in a matrix product and token, forward and backward through the activations.

        A forward alone takes 2. Below the first adapter there is no backward, and the forward may be shared. Attention
        scores and the adapters themselves are not counted.
        """
        adapted_weights = self.matmul_weights - self.frozen_weights
        adapted_tokens = 4 * self.costs.tokens + 2 * self.costs.forward_tokens
        return adapted_weights * adapted_tokens + 2 * self.frozen_weights * self.costs.frozen_tokens

    def summary(self) -> dict[str, Any]:
        """Return the report's part of `summary.json`."""
        cost_names = (
            "tokens", "forward_tokens", "batch_tokens", "trained", "logged", "reused_seconds", "made_seconds",
        )  # fmt: skip
        return {"seconds": self.seconds, **{name: getattr(self.costs, name) for name in cost_names}}


@dataclass
class EnsembleReport(WorkReport):
    """The ensemble that gradients are of: its costs and its health.

    Attributes:
        snapshots: the early and the late one.
        members: number of members that were measured.
        training_rows: rows that they were trained on.
        engine: name of the gradient engine.
        collect: whether norms are of passes over all rows (`snapshot`) or of the training steps (`online`).
        update_ratios: epoch -> ‖ΔW‖/‖W‖ of each member.
        heldout_losses: epoch -> mean held-out loss over members and rows, nats per response token.
        adaptive: the sizes that `auto` came to, and why.
    """

    snapshots: SnapshotPair | None = None
    members: int = 0
    training_rows: int = 0
    engine: str = ""
    collect: str = ""
    update_ratios: dict[int, list[float]] = field(default_factory=dict)
    heldout_losses: dict[int, float] = field(default_factory=dict)
    adaptive: dict[str, Any] = field(default_factory=dict)

    def describe(self, trained_ensemble: TrainedEnsemble, snapshots: SnapshotPair) -> None:
        """Note which ensemble is measured at which snapshots."""
        self.snapshots, self.members = snapshots, len(trained_ensemble.settings.member_ids)
        self.training_rows = len(trained_ensemble.examples)
        self.engine, self.collect = trained_ensemble.engine.name, trained_ensemble.settings.collect
        self.frozen_weights = count_frozen_weights(trained_ensemble.model)

    def summary(self) -> dict[str, Any]:
        """Return the report's part of `summary.json`."""
        epochs = [] if self.snapshots is None else [self.snapshots.early, self.snapshots.late]
        unit = "epoch" if self.snapshots is None else self.snapshots.unit
        description = {
            "members": self.members,
            "training_rows": self.training_rows,
            "epochs": epochs,
            "unit": unit,
            "engine": self.engine,
            "collect": self.collect,
            "adaptive": self.adaptive,
        }
        return {**description, **super().summary()}


@dataclass
class HeldoutMemberReport(WorkReport):
    """The extra member that the held-out loss is of.

    Attributes:
        training_rows: rows that it was trained on.
        heldout_rows: rows that it never saw.
        base_loss: mean loss of these under the base model without adapters, nats per response token.
        losses: epoch -> their mean loss under the member.
    """

    training_rows: int = 0
    heldout_rows: int = 0
    base_loss: float = math.nan
    losses: dict[int, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the report's part of `summary.json`."""
        rows = {"training_rows": self.training_rows, "heldout_rows": self.heldout_rows}
        return {**rows, **super().summary()}


@dataclass
class TaskGradientReport(WorkReport):
    """Gradients at checkpoints: their costs, and a description of each request's."""

    requests: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the report's part of `summary.json`."""
        return {**super().summary(), "gradients": self.requests}


@dataclass
class MeasurementReports:
    """Reports that measurers fill as they work."""

    ensemble: EnsembleReport = field(default_factory=EnsembleReport)
    heldout_member: HeldoutMemberReport | None = None
    task_gradients: TaskGradientReport = field(default_factory=TaskGradientReport)


@dataclass(frozen=True)
class MeasurementContext:
    """Everything that measurers work with.

    Attributes:
        base_model: frozen model and tokenizer of the proxy.
        dataset: the rows as they came in.
        examples: the rows that can be scored, as token ids.
        heldout: the held-out rows as token ids, None where nothing is held out.
        encoder: turns further rows into token ids.
        objective: one loss per example.
        ensemble: settings of the ensemble.
        build_engine: builds a gradient engine.
        snapshots: the epochs that are compared.
        projection: of gradients.
        embeddings: source of embeddings.
        batches: division of work.
        cache: of this run and others.
        run_folder: where measurements that users look at are linked.
        seed: of the run.
        build_trainer: builds a `lightning.Trainer` from keyword arguments.
        heldout_norms: measure gradient norms of the held-out rows at the late snapshot; else their losses alone.
        reports: filled by measurers.
        device_states: what the layers below the first adapter hand on, where a GPU keeps it; shared by all measurers.
    """

    base_model: LanguageModel
    dataset: InstructionDataset
    examples: Examples
    heldout: Examples | None
    encoder: Encoder
    objective: Objective
    ensemble: LoraEnsemble
    build_engine: BuildEngine
    snapshots: SnapshotPair
    projection: Projection
    embeddings: EmbeddingSettings
    batches: BatchSettings
    cache: Cache
    run_folder: RunFolder
    seed: int
    build_trainer: "Callable[..., L.Trainer]"
    heldout_norms: bool = False
    reports: MeasurementReports = field(default_factory=MeasurementReports)
    device_states: DeviceStateStore = field(default_factory=DeviceStateStore)

    @cached_property
    def device(self) -> torch.device:
        """Device that computes."""
        return self.build_trainer().strategy.root_device

    @cached_property
    def model_hash(self) -> str:
        """Digest of the base model: its weights and its configuration."""
        return hash_model(self.base_model.model)

    def settle_snapshots(self) -> "MeasurementContext":
        """Return the context with the pair of snapshots that so many rows have, where it depends on their updates.

        An ensemble that is measured by the epoch keeps its epochs.
        """
        settings, pair = self.ensemble, self.snapshots
        if settings.update_obstacle:
            return replace(self, snapshots=replace(pair, longest_epoch=None))
        row_count = len(self.examples)
        trained_rows = row_count if settings.train_rows is None else min(settings.train_rows, row_count)
        return replace(self, snapshots=pair.settle(settings.steps_per_epoch(trained_rows)))
