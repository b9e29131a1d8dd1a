"""The proxy stage: from examples to gradient log, adapters and trajectory in the run folder."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from gradfiltering.data.batches import Batch, LengthBatches, make_batch_loader
from gradfiltering.data.examples import Examples, Rows, hash_examples
from gradfiltering.distributed.process_group import gather, once, rank, share
from gradfiltering.ensembles.data_module import EnsembleData
from gradfiltering.ensembles.lora_ensemble import EnsembleSettings
from gradfiltering.ensembles.member_cache import PROJECTIONS, MemberCache
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.ensembles.training import finish_epochs, train_stack
from gradfiltering.ensembles.training_state import StackState
from gradfiltering.ensembles.trajectory import write_rows
from gradfiltering.errors import UserError
from gradfiltering.evidence.passes import measure_all, response_losses
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.memory import AUTO, find_fitting_tokens
from gradfiltering.gradients.projection import GradientSketch, Projection
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import Adapters, export_adapter, initial_adapters, update_ratio
from gradfiltering.models.objectives import Objective
from gradfiltering.models.weights import count_matmul_weights, hash_weights
from gradfiltering.requests import GradientLogPair, LossMeasurement
from gradfiltering.runs.cache import Cache, Workspace, link
from gradfiltering.runs.gradient_log import FILE, GradientLog, leaf, read_members, write_epoch
from gradfiltering.runs.run_folder import RunFolder

BARE_VERSION = 1  # raise it when the same rows would get other losses
LOG, HELDOUT_LOG = "gradient_log", "gradient_log_heldout"
_FITTING: dict[tuple[Any, ...], int] = {}  # what `batch.tokens=auto` came to in this process
BARE_TOKENS = 4096  # padded tokens of one batch in a forward pass, where nothing else is said


@dataclass(frozen=True)
class BatchSettings:
    """How work is cut up; no result depends on it.

    Attributes:
        tokens: padded tokens computed at once, over members and examples; `auto` for as many as pay and fit.
        workers: processes that prepare batches.
    """

    tokens: int | str
    workers: int

    def __post_init__(self):
        if self.tokens != AUTO and (isinstance(self.tokens, str) or self.tokens < 1):
            raise UserError(f"batch.tokens={self.tokens}: give a positive number of tokens, or {AUTO}")


@dataclass(frozen=True)
class ProxyResult:
    """What the proxy stage leaves besides its files.

    Attributes:
        members, epochs: what is in the gradient log.
        seconds: of training and logging, in this run.
        tokens: tokens put through forward and backward in this run, over members, padding not counted.
        batch_tokens: padded tokens computed at once; None where nothing had to be computed.
        trained, logged: epochs of members trained, and logged, in this run; an ensemble may train fewer than it logs.
        reused_seconds: what those found in the store took when they were made.
        update_ratio: epoch -> ‖ΔW‖/‖W‖ of each member.
        heldout_loss: epoch -> mean held-out loss over members and rows, nats per response token.
        flops: an estimate, 4 per backbone weight in a matrix product and token: forward, and backward through the
            activations. Attention scores and the adapters themselves are not counted.
        made_seconds: what training and measuring what was not in the store took.
        projections: [M, N, K] float32 of the gradients at the late epoch, where asked for.
        engine: name of the gradient engine.
        adaptive: what `auto` came to, and why.
    """

    members: int
    epochs: list[int]
    seconds: float
    tokens: int
    batch_tokens: int | None
    trained: int
    logged: int
    reused_seconds: float
    update_ratio: dict[int, list[float]]
    heldout_loss: dict[int, float]
    flops: int
    made_seconds: float = 0.0
    projections: np.ndarray | None = None
    engine: str = ""
    adaptive: dict[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> SnapshotPair:
        """The epochs that are compared."""
        return SnapshotPair(*self.epochs)

    @property
    def reused(self) -> bool:
        """Whether all of it was found in the store."""
        return not self.trained and not self.logged

    def summary(self) -> dict[str, Any]:
        """The part of `summary.json` about the proxy."""
        without = ("update_ratio", "heldout_loss", "flops", "projections")
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in without}


def log_gradients(
    base_model: LanguageModel,
    rows: Rows,
    settings: EnsembleSettings,
    engine: Callable[..., GradientEngine],
    epochs: SnapshotPair,
    batch: BatchSettings,
    workspace: Workspace,
    projection: Projection | None = None,
) -> ProxyResult:
    """Trains what members and epochs the store lacks, and logs both epochs of the pair into the run folder.

    Args:
        backbone: frozen model and tokenizer.
        rows: examples to train on and to score, and held-out rows to log only.
        settings: the ensemble.
        engine: builds a gradient engine around a `model`.
        epochs: the pair to log.
        batch: how work is cut up.
        workspace: run folder, store, seed, trainer.
        projection: of the gradients at the late epoch, where somebody needs it.
    """
    started = time.monotonic()
    parameters = count_matmul_weights(base_model.model)
    with opened(base_model, rows, settings, engine, batch, workspace) as work:
        work.train([epochs.early, epochs.late])
        projections = None if projection is None else work.project(epochs.late, projection)
        for epoch in (epochs.early, epochs.late):
            work.log(epoch)
            work.write_adapters(epoch)
        work.write_trajectory(epochs.late)
    return ProxyResult(
        members=len(settings.members),
        epochs=[epochs.early, epochs.late],
        seconds=time.monotonic() - started,
        tokens=work.tokens,
        batch_tokens=work.batch_tokens,
        trained=work.trained,
        logged=work.logged,
        reused_seconds=work.reused_seconds,
        update_ratio=work.update_ratio,
        heldout_loss=work.heldout_loss,
        flops=4 * parameters * work.tokens,
        made_seconds=work.made_seconds,
        projections=projections,
        engine=work.gradients.name,
    )


def read_log_pair(run_dir: Path, pair: SnapshotPair, example_ids: np.ndarray) -> GradientLogPair:
    """Read a run's gradient log at both snapshots of a pair.

    Raises:
        UserError: the log lacks a snapshot, or is of other examples than these.
    """
    log = GradientLog(run_dir / LOG)
    logs = GradientLogPair(log.epoch(pair.early), log.epoch(pair.late))
    for snapshot_log in (logs.early, logs.late):
        if not np.array_equal(snapshot_log.example_ids, example_ids):
            raise UserError("the gradient log holds other examples than this run's; delete it and run again")
    return logs


@contextmanager
def opened(
    base_model: LanguageModel,
    rows: Rows,
    settings: EnsembleSettings,
    engine: Callable[..., GradientEngine],
    batch: BatchSettings,
    workspace: Workspace,
) -> Iterator["EnsembleWork"]:
    """An ensemble at work: LoRA layers on the backbone, and what the store holds of it locked.

    Args:
        backbone, rows, settings, engine, batch, workspace: see `log_gradients`.
    """
    hashed = hash_weights(base_model.model)
    model = settings.lora.attach(base_model.model)
    work = EnsembleWork(base_model, model, rows, settings, engine, batch, workspace, hashed)
    lock = workspace.cache.lock("ensembles", work.kept.base)
    try:
        with lock:
            yield work
    finally:
        model.unload()  # leaves the backbone without LoRA layers, as it came


class EnsembleWork:
    """Brings the store to where it holds what a run needs, and the run folder to where it holds that."""

    def __init__(
        self,
        base_model: LanguageModel,
        model: PeftModel,
        rows: Rows,
        settings: EnsembleSettings,
        engine: Callable[..., GradientEngine],
        batch: BatchSettings,
        workspace: Workspace,
        backbone_hash: str,
    ):
        self.base_model, self.model, self.settings, self.batch = base_model, model, settings, batch
        self.workspace = workspace
        self.gradients = engine(model=model, chunk_tokens=BARE_TOKENS)
        self.sets = {LOG: rows.examples} | ({HELDOUT_LOG: rows.heldout} if rows.heldout is not None else {})
        self.hashes = {name: hash_examples(examples) for name, examples in self.sets.items()}
        how = {
            "base_model": backbone_hash,
            "examples": self.hashes[LOG],
            "objective": repr(self.gradients.objective),
            "engine": type(self.gradients).__name__,
            "precision": str(workspace.trainer().precision),
            "seed": workspace.seed,
        }
        self.kept = MemberCache(workspace.cache, settings, how, settings.steps_per_epoch(len(rows.examples)))
        self.members = list(settings.members)
        self.batch_tokens: int | None = None
        self.tokens = self.trained = self.logged = 0
        self.reused_seconds = self.made_seconds = 0.0
        self.update_ratio: dict[int, list[float]] = {}
        self.heldout_loss: dict[int, float] = {}

    def start(self, members: Sequence[int], epoch: int) -> StackState:
        """Trained members after `epoch` epochs; the same in every process, whatever its store holds."""
        if epoch > 0:
            return once(self.kept.state, members, epoch)
        return StackState(initial_adapters(self.model, self.settings.lora, members, self.workspace.seed), {}, 0)

    def adapters(self, members: Sequence[int], epoch: int) -> Adapters:
        """What members of the log are measured with at an epoch."""
        if epoch > 0:
            return once(self.kept.adapters, members, epoch)
        return self.start([self.kept.reading(member, 0).member for member in members], 0).adapters

    def dropout(self, members: Sequence[int], epoch: int) -> Dropout | None:
        """What is dropped when members of the log are measured; all of them are measured so, or none."""
        passes = [read.dropout for read in (self.kept.reading(member, epoch) for member in members) if read.dropout]
        numbers = tuple(number for _, number in passes)
        return Dropout(passes[0][0], self.workspace.seed, numbers, epoch) if passes else None

    def data(self, members: Sequence[int], epochs_done: int) -> EnsembleData:
        """What a stack of members trains on, and passes over all rows."""
        if self.batch_tokens is None:
            longest = max(int(examples.lengths.max()) for examples in self.sets.values())
            device = self.workspace.trainer().strategy.root_device
            self.gradients.to(device)
            adapters = self.start(members, 0).adapters
            base_model = self.kept.base["base_model"]
            self.batch_tokens = _settle_tokens(self.batch.tokens, self.gradients, adapters, longest, device, base_model)
        self.gradients.chunk_tokens = self.batch_tokens
        data = EnsembleData(
            self.sets[LOG],
            members,
            self.settings.batch_size,
            self.settings.bucket_batches,
            max(1, self.batch_tokens // len(members)),
            self.base_model.pad_id,
            self.workspace.seed,
            self.batch.workers,
        )
        data.share, data.epochs_done, data.resampled = share(), epochs_done, self.settings.resampled
        return data

    def train(self, needed: Sequence[int]) -> None:
        """Trains every member from where the store has it, so that all that the log needs of these epochs is there."""
        once(finish_epochs, self.kept, self.model, self.sets[LOG])
        wanted = list(self.settings.trained_members)
        plans = once(lambda: [self.kept.to_train(member, needed) for member in wanted])
        for first, last in sorted(set(plans)):
            members = [member for member, plan in zip(wanted, plans, strict=True) if plan == (first, last)]
            found = once(self.kept.seconds, members, first)
            self.reused_seconds += found
            if first == last:
                continue
            data = self.data(members, first)
            train_stack(
                members, self.start(members, first), data, last, self.settings, self.gradients, self.kept,
                self.model, self.workspace.trainer,
            )  # fmt: skip
            self.trained += len(members) * (last - first)
            self.made_seconds += once(self.kept.seconds, members, last) - found
            self.tokens += len(members) * (last - first) * self.sets[LOG].tokens

    def log(self, epoch: int) -> None:
        """Measures what the store lacks of an epoch, and writes the epoch's log into the run folder."""
        for name, examples in self.sets.items():
            online = self.settings.collect == "online" and epoch > 0 and name == LOG
            rows = self.hashes[name]
            if not online:  # else it came with the training
                self.reused_seconds += once(self.kept.log_seconds, self.members, epoch, rows)
            found = once(self.kept.files, self.members, epoch, rows, online)
            missing = [member for member, file in zip(self.members, found, strict=True) if file is None]
            if missing:
                self._measure(self.kept.distinct(missing, epoch), epoch, name, examples)
            files = once(self.kept.all_files, self.members, epoch, rows, online)
            log = once(read_members, files)
            folder = self.workspace.run_dir / name
            if rank() > 0:  # its own folder, and perhaps no store that holds the files
                write_epoch(folder, log, self.members, epoch)
            else:
                for member, file in zip(self.members, files, strict=True):
                    link(file, leaf(folder, member, epoch) / FILE)
            if name == HELDOUT_LOG:
                self.heldout_loss[epoch] = float(np.mean(log.loss, dtype=np.float64))

    def _measure(
        self,
        members: Sequence[int],
        epoch: int,
        name: str,
        examples: Examples,
        projection: GradientSketch | None = None,
    ) -> None:
        """One pass over some rows with the parameters frozen; what it gives is kept in the store."""
        started = time.monotonic()
        data, what = self.data(members, epoch), "all rows" if name == LOG else "held-out rows"
        device = self.workspace.trainer().strategy.root_device
        self.gradients.to(device)
        adapters = {key: value.to(device) for key, value in self.adapters(members, epoch).items()}
        batches = data.pass_over(examples)
        title = f"epoch {epoch}: {what}"
        dropout = self.dropout(members, epoch)
        log, projected = measure_all(self.gradients, adapters, examples, batches, title, projection, dropout)
        spent = time.monotonic() - started
        self.made_seconds += spent
        seconds = spent / len(members)
        for position, member in enumerate(members):
            self.kept.keep_log(member, epoch, self.hashes[name], log, position, seconds)
            if projection is not None and projected is not None:
                rows = self.hashes[name]
                self.kept.keep_projections(member, epoch, rows, projection, projected[position], seconds)
        self.logged += len(members)
        self.tokens += len(members) * examples.tokens

    def project(self, epoch: int, projection: Projection) -> np.ndarray:
        """Projections of all rows' gradients at an epoch, [M, N, K]; the norms come from the same pass."""
        rows = self.hashes[LOG]
        found = once(self.kept.projections, self.members, epoch, rows, projection)
        missing = [member for member, folder in zip(self.members, found, strict=True) if folder is None]
        if missing:
            self._measure(self.kept.distinct(missing, epoch), epoch, LOG, self.sets[LOG], projection)
        made = once(self.kept.projections, self.members, epoch, rows, projection)
        folders = [folder for folder in made if folder is not None]
        if rank() == 0:
            for member, folder in zip(self.members, folders, strict=True):
                link(folder, leaf(self.workspace.run_dir / "projections", member, epoch))
        return np.stack([once(np.load, folder / PROJECTIONS) for folder in folders])

    def sketch(self, member: int, epoch: int, name: str, sketch: GradientSketch) -> Path:
        """The store's folder of sketches of one member's gradients on some rows, made if it is not there."""
        asked = ([member], epoch, self.hashes[name], sketch)
        if once(self.kept.projections, *asked) == [None]:
            self._measure([member], epoch, name, self.sets[name], sketch)
        (folder,) = once(self.kept.projections, *asked)
        assert folder is not None
        return folder

    def write_adapters(self, epoch: int) -> None:
        """Writes the epoch's adapters into the run folder, and looks how far they went."""
        adapters = self.adapters(self.members, epoch)
        self.update_ratio[epoch] = update_ratio(self.model, adapters, self.settings.lora)
        run_folder = RunFolder(self.workspace.run_dir)
        for position, member in enumerate(self.members):
            if epoch > 0:
                run_folder.link_adapter(self.kept.adapter(member, epoch), member, epoch)
            else:
                export = partial(export_adapter, self.model, adapters, position)
                run_folder.write_adapter(export, member, epoch)

    def write_trajectory(self, last: int) -> None:
        """Writes the members' trajectories up to epoch `last` into the run folder."""
        path = [row for member in self.settings.trained_members for row in self.kept.trajectory(member, last)]
        rows = sorted(path, key=lambda row: (row["step"], row["member"]))
        RunFolder(self.workspace.run_dir).write("trajectory.parquet", lambda part: write_rows(rows, part))


def measure_bare(
    base_model: LanguageModel, objective: Objective, rows: Rows, batch: BatchSettings, workspace: Workspace
) -> LossMeasurement:
    """One forward pass over all rows without adapters, unless the store has its result."""
    device = workspace.trainer().strategy.root_device
    tokens = BARE_TOKENS if isinstance(batch.tokens, str) else batch.tokens
    hashed = hash_weights(base_model.model)

    def batches(examples: Examples) -> Iterable[Batch]:
        return make_batch_loader(LengthBatches(examples, tokens, base_model.pad_id, share=share()), batch.workers)

    def losses(examples: Examples) -> np.ndarray:
        return cached_losses(base_model, hashed, objective, examples, batches, device, workspace.cache)

    return LossMeasurement(losses(rows.examples), None if rows.heldout is None else float(losses(rows.heldout).mean()))


def cached_losses(
    base_model: LanguageModel,
    hashed: str,
    objective: Objective,
    examples: Examples,
    batches: Callable[[Examples], Iterable[Batch]],
    device: torch.device,
    cache: Cache,
) -> np.ndarray:
    """[N] float64 losses of the examples under the backbone without adapters, from the store if it has them.

    Args:
        backbone: model and tokenizer.
        hashed: digest of the model's weights.
        objective: of the losses.
        examples: whose.
        batches: this process's share of them, cut up.
        device: to compute on.
        store: where they are kept.
    """
    key = {
        "code": BARE_VERSION,
        "base_model": hashed,
        "examples": hash_examples(examples),
        "objective": repr(objective),
    }
    found = once(cache.find, "bare_losses", key)
    if found:
        return once(np.load, found.path / "losses.npy")
    started = time.monotonic()
    by_id = response_losses(base_model.model, objective, batches(examples), device)
    values = np.asarray([by_id[example_id] for example_id in examples.example_ids.tolist()])
    spent = time.monotonic() - started
    cache.make("bare_losses", key, lambda folder: np.save(folder / "losses.npy", values), spent)
    return values


def _settle_tokens(
    asked: int | str, gradients: GradientEngine, adapters: Adapters, longest: int, device: torch.device, base_model: str
) -> int:
    """What `batch.tokens` comes to: the same in every process, since it decides how a pass over all rows is cut.

    The jobs of a sweep try it out once for each size of stack.
    """
    if not isinstance(asked, str):
        return asked
    gradients.to(device)
    shapes = sorted((name, tuple(value.shape)) for name, value in adapters.items())
    tried = (base_model, type(gradients).__name__, repr(shapes), longest, str(device))
    if tried not in _FITTING:
        there = {name: value.to(device) for name, value in adapters.items()}
        _FITTING[tried] = min(gather(find_fitting_tokens(gradients, there, longest, device)))
    return _FITTING[tried]
