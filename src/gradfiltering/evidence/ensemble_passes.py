"""Passes over rows with the parameters frozen: norms, losses and sketches, from the cache where it has them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradfiltering.data.batches import Batch, LengthBatches, batch_rows, make_batch_loader
from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.distributed.row_measurements import Column, RowMeasurements, share_of_this_rank
from gradfiltering.ensembles.batch_settings import FORWARD_TOKENS
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.member_cache import ONLINE_LOG_FILE, MemberCache
from gradfiltering.ensembles.trained_ensemble import EnsembleCosts, TrainedEnsemble
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.gradients.attention import set_attention
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.projection import GradientSketch
from gradfiltering.gradients.statistics import GradientStatistic
from gradfiltering.models.lora import Adapters
from gradfiltering.runs.cache import CachedResult
from gradfiltering.runs.files import write_json
from gradfiltering.runs.gradient_log import PARQUET_FILE, read_members
from gradfiltering.runs.memory import limit_freed_memory
from gradfiltering.runs.progress import track
from gradfiltering.runs.run_folder import PROJECTION_FILE
from gradfiltering.shards.measurement_shards import MeasurementShards, merge_shards

LOG_VERSION = 1  # raise it when the same adapters would be measured otherwise
PROJECTION_VERSION = 1  # raise it when the same gradients would be projected otherwise
DROPOUT_VERSION = 1  # raise it when the same pass would drop other inputs
LOGS, LOSSES, PROJECTIONS = "gradient_log", "ensemble_losses", "projections"  # kinds of results


class EnsemblePasses:
    """Passes of one ensemble over one set of rows.

    Args:
        trained_ensemble: trained as far as it is measured.
        examples: the rows.
        row_description: the rows in words, for the progress bar.
    """

    def __init__(self, trained_ensemble: TrainedEnsemble, examples: Examples, row_description: str):
        self.ensemble = trained_ensemble
        self.member_cache = trained_ensemble.member_cache
        self.cache = trained_ensemble.member_cache.cache
        self.examples = examples
        self.rows_hash = hash_examples(examples)
        self.row_description = row_description

    def measure_logs(self, member_ids: Sequence[int], epoch: int) -> list[Path]:
        """Return the file of each member's gradient log at an epoch; missing ones are measured in one pass."""
        return self._measure_missing(self.find_logs, partial(self._run_pass, kind=LOGS), member_ids, epoch)

    def measure_losses(self, member_ids: Sequence[int], epoch: int) -> list[Path]:
        """Return a file like that of a gradient log for each member, with the losses at an epoch and no norms.

        Losses that are missing are measured in one pass without gradients. Where the cache has the gradient log of a
        member, its file is returned.
        """
        return self._measure_missing(self.find_losses, partial(self._run_pass, kind=LOSSES), member_ids, epoch)

    def measure_mean_loss(self, member_ids: Sequence[int], epoch: int) -> float:
        """Return the mean loss over members and rows at an epoch, in nats per response token."""
        return float(np.mean(read_members(self.measure_losses(member_ids, epoch)).loss, dtype=np.float64))

    def online_logs(self, member_ids: Sequence[int], epoch: int) -> list[Path]:
        """Return the file of each member's gradient log that training recorded in an epoch."""
        return [
            self.member_cache.find_measured_member(member_id, epoch).path / ONLINE_LOG_FILE for member_id in member_ids
        ]

    def measure_sketches(self, member_ids: Sequence[int], epoch: int, gradient_sketch: GradientSketch) -> list[Path]:
        """Return the folder of each member's gradient sketches; missing ones are made in one pass, with the log."""
        cached_sketches = self.find_sketches(member_ids, epoch, gradient_sketch)
        missing_members = [member_id for member_id, result in cached_sketches.items() if result is None]
        if missing_members:
            self._run_pass(missing_members, epoch, LOGS, gradient_sketch)
        gradient_sketches = self.find_sketches(member_ids, epoch, gradient_sketch)
        return [result.path for result in gradient_sketches.values() if result is not None]

    def find_logs(self, member_ids: Sequence[int], epoch: int) -> dict[int, CachedResult | None]:
        """Find the gradient log of each member at an epoch."""
        return self._find_all(LOGS, member_ids, epoch)

    def find_losses(self, member_ids: Sequence[int], epoch: int) -> dict[int, CachedResult | None]:
        """Find the losses of each member at an epoch: its gradient log, or what was measured without gradients."""
        logs = self.find_logs(member_ids, epoch)
        members_without_log = [member_id for member_id, log in logs.items() if log is None]
        return logs | self._find_all(LOSSES, members_without_log, epoch)

    def find_sketches(
        self, member_ids: Sequence[int], epoch: int, gradient_sketch: GradientSketch
    ) -> dict[int, CachedResult | None]:
        """Find the gradient sketches of each member at an epoch."""
        return self._find_all(PROJECTIONS, member_ids, epoch, gradient_sketch)

    def _measure_missing(
        self,
        find_results: Callable[[Sequence[int], int], dict[int, CachedResult | None]],
        run_pass: Callable[[list[int], int], None],
        member_ids: Sequence[int],
        epoch: int,
    ) -> list[Path]:
        """Return the file of each member, in order; results that `find_results` does not find come from a pass."""
        cached_results = find_results(member_ids, epoch)
        self.ensemble.costs.count_reused(result for result in cached_results.values() if result is not None)
        missing_members = [member_id for member_id, result in cached_results.items() if result is None]
        if missing_members:
            run_pass(missing_members, epoch)
        results = find_results(member_ids, epoch)
        return [result.path / PARQUET_FILE for result in results.values() if result is not None]

    def _find_all(
        self, kind: str, member_ids: Sequence[int], epoch: int, gradient_sketch: GradientSketch | None = None
    ) -> dict[int, CachedResult | None]:
        return {
            member_id: self.cache.find(kind, self._key(member_id, epoch, gradient_sketch)) for member_id in member_ids
        }

    def _key(self, member_id: int, epoch: int, gradient_sketch: GradientSketch | None = None) -> dict[str, Any]:
        """Return the key of one member's log, or sketches, at one epoch."""
        measurement = self.member_cache.describe_measurement(member_id, epoch)
        member_key = self.member_cache.member_key(measurement.trained_member_id, epoch, measurement.step)
        key = {"code": LOG_VERSION, **member_key, "rows": self.rows_hash}
        if measurement.dropout is not None:
            key["dropout"] = {
                "code": DROPOUT_VERSION,
                "probability": measurement.dropout.probability,
                "pass": measurement.dropout.pass_index,
            }
        if gradient_sketch is not None:
            key["projection"] = {"code": PROJECTION_VERSION, **gradient_sketch.identity}
        return key

    def _run_pass(
        self, member_ids: Sequence[int], epoch: int, kind: str, gradient_sketch: GradientSketch | None = None
    ) -> None:
        """Measure all rows with the parameters frozen, and store the results member by member.

        Args:
            member_ids: that are measured.
            epoch: after which.
            kind: `LOGS`, or `LOSSES` for a pass without gradients.
            gradient_sketch: made of each gradient, for results of the kind `PROJECTIONS` beside the logs.
        """
        self.cache.check_writable()
        start_time = time.monotonic()
        # Members that are measured alike, such as all snapshots before training, are measured once.
        distinct_measurements = {
            self.member_cache.describe_measurement(member_id, epoch): member_id for member_id in member_ids
        }
        measured_members = sorted(distinct_measurements.values())
        with self.cache.work_folder(kind) as shard_folder:
            shards = MeasurementShards(shard_folder, len(measured_members))
            if kind == LOSSES:
                self._measure_row_losses(measured_members, epoch, shards)
                gradient_sketches = None
            else:
                gradient_sketches = self._measure_rows(measured_members, epoch, gradient_sketch, shards)
            member_files = self._merge(shards)
            pass_seconds = time.monotonic() - start_time
            stored_logs = []
            for member_index, member_id in enumerate(measured_members):
                member_seconds = pass_seconds / len(measured_members)
                write_log = partial(_move_log, member_files[member_index])
                stored_logs.append(self.cache.commit(kind, self._key(member_id, epoch), write_log, member_seconds))
                if gradient_sketch is not None and gradient_sketches is not None:
                    write_sketches = _sketch_writer(gradient_sketches[member_index], gradient_sketch)
                    self.cache.commit(
                        PROJECTIONS, self._key(member_id, epoch, gradient_sketch), write_sketches, member_seconds
                    )
        self.ensemble.costs.count_pass(stored_logs, self.examples.tokens, pass_seconds, kind == LOGS)

    def _merge(self, shards: MeasurementShards) -> list[Path]:
        """Return the log of each member, from what all ranks wrote."""
        return run_on_rank_zero(
            merge_shards,
            shards.folder,
            shards.list_files(),
            self.examples.example_ids,
            self.examples.response_tokens,
            shards.members,
            type(self.ensemble.settings),
        )

    def _describe_pass(self, epoch: int) -> str:
        moment_text = "before training" if epoch == 0 else f"after {self.member_cache.timeline.unit} {epoch}"
        return f"measuring {self.row_description} {moment_text}"

    def _measure_rows(
        self,
        member_ids: Sequence[int],
        epoch: int,
        gradient_sketch: GradientSketch | None,
        shards: MeasurementShards,
    ) -> np.ndarray | None:
        """Record this rank's share of the log, and return the sketches of all rows, [M, N, K] float32."""
        statistics: dict[str, GradientStatistic] = {} if gradient_sketch is None else {"sketch": gradient_sketch}
        sketches: RowMeasurements | None = None
        if gradient_sketch is not None:
            sketch_column = {"sketch": Column((gradient_sketch.width,), np.float32)}
            sketches = RowMeasurements(self.examples.example_ids, sketch_column, len(member_ids))
        batches = self._prepare_batches(member_ids)
        frozen_members = self._load_members(member_ids, epoch)
        for batch in self._iterate_batches(batches, epoch):
            measurement = self.ensemble.engine.measure(
                frozen_members.adapters,
                batch.to(self.ensemble.device),
                with_mean_gradient=False,
                statistics=statistics,
                dropout=frozen_members.dropout,
            )
            batch_ids = batch.example_id.numpy()
            shards.record(batch_ids, measurement.grad_norm.cpu().numpy(), measurement.loss.cpu().numpy())
            if sketches is not None:
                sketches.record(batch_ids, sketch=measurement.statistics["sketch"].float().cpu().numpy())
            limit_freed_memory()
        return None if sketches is None else sketches.gather()["sketch"]

    def _measure_row_losses(self, member_ids: Sequence[int], epoch: int, shards: MeasurementShards) -> None:
        """Record this rank's share of the losses."""
        batches = self._prepare_batches(member_ids)
        frozen_members = self._load_members(member_ids, epoch)
        for batch in self._iterate_batches(batches, epoch):
            losses = self.ensemble.engine.compute_losses(
                frozen_members.adapters, batch.to(self.ensemble.device), frozen_members.dropout
            )
            shards.record(batch.example_id.numpy(), None, losses.cpu().numpy())
            limit_freed_memory()

    def _load_members(self, member_ids: Sequence[int], epoch: int) -> "_FrozenMembers":
        """Put the members' adapters after an epoch on the device."""
        adapters = {
            name: stacked.to(self.ensemble.device)
            for name, stacked in self.ensemble.load_adapters(member_ids, epoch).items()
        }
        return _FrozenMembers(adapters, self.ensemble.measuring_dropout(member_ids, epoch))

    def _prepare_batches(self, member_ids: Sequence[int]) -> LengthBatches:
        """Prepare the engine, and cut this rank's share of the rows into batches that these members see at once."""
        trained_ensemble = self.ensemble
        batch_tokens = trained_ensemble.prepare_engine(member_ids)
        row_states = trained_ensemble.keep_prefix_states(self.examples)
        if row_states is None:
            shares_layers = trained_ensemble.engine.prefix is not None
            trained_ensemble.costs.frozen_tokens += self.examples.tokens * (1 if shares_layers else len(member_ids))
        return LengthBatches(
            self.examples,
            batch_tokens,
            trained_ensemble.base_model.pad_id,
            share=share_of_this_rank(),
            row_states=row_states,
        )

    def _iterate_batches(self, batches: LengthBatches, epoch: int) -> Iterator[Batch]:
        batch_loader = make_batch_loader(batches, self.ensemble.batches.workers)
        own_rows = sum(len(row_positions) for row_positions in batches.cuts)
        yield from track(batch_loader, self._describe_pass(epoch), own_rows, amount_of=batch_rows)


class _FrozenMembers(NamedTuple):
    """Stacked adapters of members as they are measured, and the dropout that they are measured with."""

    adapters: Adapters
    dropout: Dropout | None


def _move_log(member_file: Path, result_folder: Path) -> None:
    member_file.replace(result_folder / PARQUET_FILE)


def _sketch_writer(gradient_sketches: np.ndarray, gradient_sketch: GradientSketch) -> Callable[[Path], None]:
    def write_sketches(result_folder: Path) -> None:
        np.save(result_folder / PROJECTION_FILE, gradient_sketches)
        write_json(result_folder / "projection.json", gradient_sketch.identity)

    return write_sketches


@contextmanager
def attach_ensemble(
    context: MeasurementContext,
    costs: EnsembleCosts,
    heldout: Examples | None,
    settings: LoraEnsemble | None = None,
) -> Iterator[TrainedEnsemble]:
    """Attach LoRA layers to the base model and lock the ensemble in the cache, until the block ends.

    Args:
        context: models, rows and settings.
        costs: filled as the ensemble works.
        heldout: rows that are measured beside those that are trained on.
        settings: of the ensemble, where they differ from the context's.
    """
    settings = context.ensemble if settings is None else settings
    base_model: Any = context.base_model.model
    attention = base_model.config._attn_implementation  # an engine takes one that suits it
    model_hash = context.model_hash  # before the layers of LoRA are among the model's weights
    model = settings.lora.attach(context.base_model.model)
    try:
        engine = context.build_engine(model=model, chunk_tokens=FORWARD_TOKENS)
        training_examples = context.examples
        if settings.train_rows is not None:
            training_rows = settings.draw_training_rows(len(context.examples), context.seed)
            training_examples = context.examples.select(context.examples.example_ids[training_rows].tolist())
        identity = {
            "base_model": model_hash,
            "examples": hash_examples(training_examples),
            "objective": repr(engine.objective),
            "engine": type(engine).__name__,
            "precision": str(context.build_trainer().precision),
            "seed": context.seed,
        }
        timeline = context.snapshots.timeline(settings.steps_per_epoch(len(training_examples)))
        member_cache = MemberCache(context.cache, settings, identity, timeline)
        row_sets = [context.examples] if heldout is None else [context.examples, heldout]
        with context.cache.lock("ensembles", member_cache.ensemble_key):
            yield TrainedEnsemble(
                base_model=context.base_model,
                model=model,
                examples=training_examples,
                settings=settings,
                engine=engine,
                member_cache=member_cache,
                batches=context.batches,
                seed=context.seed,
                build_trainer=context.build_trainer,
                costs=costs,
                row_width=max(int(examples.widths.max()) for examples in row_sets),
                all_examples=context.examples,
                device_states=context.device_states,
            )
    finally:
        model.unload()  # leaves the base model without LoRA layers, as it came
        set_attention(base_model, attention)
