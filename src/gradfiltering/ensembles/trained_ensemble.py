"""An ensemble at work: attached to its base model, trained as far as needed, and read from the cache."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from gradfiltering.data.examples import Examples
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.device_states import DeviceStates, DeviceStateStore, keeps_on_device
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.member_cache import MemberCache
from gradfiltering.ensembles.prefix_states import PrefixStates, keep_prefix_states
from gradfiltering.ensembles.snapshots import TrainingStretch
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import Adapters, initial_adapters
from gradfiltering.runs.cache import CachedResult

if TYPE_CHECKING:
    import lightning as L
    from peft import PeftModel

    from gradfiltering.ensembles.data_module import EnsembleDataModule


class BuildEngine(Protocol):
    """Builds a gradient engine around a model with LoRA layers."""

    def __call__(self, *, model: "PeftModel", chunk_tokens: int) -> GradientEngine:
        """Build the engine.

        Args:
            model: base model with LoRA layers attached.
            chunk_tokens: members × examples × padded tokens computed at once.
        """


@dataclass
class EnsembleCosts:
    """Work that an ensemble took; what a run made itself never counts as reused.

    Attributes:
        tokens: tokens put through forward and backward, over members, padding not counted.
        forward_tokens: tokens put through forward alone, likewise.
        frozen_tokens: tokens put through the layers below the first adapter.
        batch_tokens: padded tokens computed at once; None where nothing had to be computed.
        trained: epochs of members that were trained; an ensemble may train fewer than it logs.
        logged: epochs of members that were measured.
        made_seconds: time that these took.
        reused_seconds: time that reused results took when they were made.
    """

    tokens: int = 0
    forward_tokens: int = 0
    frozen_tokens: int = 0
    batch_tokens: int | None = None
    trained: int = 0
    logged: int = 0
    made_seconds: float = 0.0
    reused_seconds: float = 0.0
    _counted_paths: set[Path] = field(default_factory=set)

    def count_reused(self, results: Iterable[CachedResult]) -> None:
        """Count results that were found in the cache, each once."""
        self.reused_seconds += sum(result.seconds for result in self._take_uncounted(results))

    def count_training(self, results: Iterable[CachedResult], tokens: int) -> None:
        """Count trained epochs of members that were just stored, each of which took so many tokens."""
        stored_results = self._take_uncounted(results)
        self.trained += len(stored_results)
        self.tokens += tokens * len(stored_results)
        self.made_seconds += sum(result.seconds for result in stored_results)

    def count_pass(
        self, results: Sequence[CachedResult], tokens: int, seconds: float, with_gradients: bool = True
    ) -> None:
        """Count a pass over rows by as many members as there are results, of so many tokens each."""
        self._take_uncounted(results)
        self.logged += len(results)
        if with_gradients:
            self.tokens += tokens * len(results)
        else:
            self.forward_tokens += tokens * len(results)
        self.made_seconds += seconds

    def _take_uncounted(self, results: Iterable[CachedResult]) -> list[CachedResult]:
        uncounted = {result.path: result for result in results if result.path not in self._counted_paths}
        self._counted_paths.update(uncounted)
        return list(uncounted.values())


@dataclass
class TrainedEnsemble:
    """An ensemble whose LoRA layers are attached to the base model.

    Attributes:
        base_model: frozen model and tokenizer.
        model: the base model with LoRA layers.
        examples: rows to train on.
        settings: of the ensemble.
        engine: computes per-example gradients.
        member_cache: trained members.
        batches: division of work.
        seed: of the run.
        build_trainer: builds a `lightning.Trainer` from keyword arguments.
        costs: filled as the ensemble works.
        row_width: tokens of the longest row that will be trained on or measured.
        all_examples: all rows of the run, those that are trained on among them.
        device_states: what the layers below the first adapter hand on, where a GPU keeps it.
    """

    base_model: LanguageModel
    model: "PeftModel"
    examples: Examples
    settings: LoraEnsemble
    engine: GradientEngine
    member_cache: MemberCache
    batches: BatchSettings
    seed: int
    build_trainer: "Callable[..., L.Trainer]"
    costs: EnsembleCosts
    row_width: int
    all_examples: Examples
    device_states: DeviceStateStore = field(default_factory=DeviceStateStore)
    _batch_tokens: int | None = None

    @property
    def device(self) -> torch.device:
        """Device that computes."""
        return self.build_trainer().strategy.root_device

    def train(self, moments: Sequence[int]) -> None:
        """Train every member from where the cache has it, so that it exists at all of these moments."""
        from gradfiltering.ensembles.stack_training import StackTrainer

        stack_trainer = StackTrainer(self.settings, self.engine, self.member_cache, self.model, self.build_trainer)
        stack_trainer.store_finished_members(self.examples)
        plans = {
            member_id: self.member_cache.plan_training(member_id, moments)
            for member_id in self.settings.trained_member_ids
        }
        for plan in sorted(set(plans.values())):
            member_ids = [member_id for member_id, member_plan in plans.items() if member_plan == plan]
            self.costs.count_reused(self.member_cache.training_results(member_ids, plan.start_moment))
            if plan.start_moment == plan.last_moment:
                continue
            self.member_cache.cache.check_writable()
            self.prepare_engine(member_ids)
            timeline = self.member_cache.timeline
            stretches = timeline.list_stretches(plan.start_moment, plan.last_moment)
            data = self._training_data(member_ids, stretches)
            stack_trainer.train(self.load_state(member_ids, plan.start_moment), data)
            updates = stretches[-1].last_update - stretches[0].first_update
            trained_tokens = round(self.examples.tokens * updates / timeline.steps_per_epoch)
            if data.row_states is None:
                self.costs.frozen_tokens += trained_tokens * len(member_ids)
            trained_results = self.member_cache.training_results(member_ids, plan.last_moment)
            self.costs.count_training(trained_results, round(trained_tokens / len(stretches)))

    def load_state(self, trained_member_ids: Sequence[int], moment: int) -> StackState:
        """Load trained members at a moment as one stack, the same on every rank."""
        if moment > 0:
            return self.member_cache.load_state(trained_member_ids, moment)
        return StackState(initial_adapters(self.model, self.settings.lora, trained_member_ids, self.seed), {}, 0)

    def load_adapters(self, member_ids: Sequence[int], moment: int) -> Adapters:
        """Load the adapters that members of the gradient log are measured with."""
        if moment > 0:
            return self.member_cache.load_adapters(member_ids, moment)
        measurements = [self.member_cache.describe_measurement(member_id, 0) for member_id in member_ids]
        return self.load_state([measurement.trained_member_id for measurement in measurements], 0).adapters

    def measuring_dropout(self, member_ids: Sequence[int], moment: int) -> Dropout | None:
        """Return the dropout that these members are measured with: all of them, or none."""
        measurements = [self.member_cache.describe_measurement(member_id, moment) for member_id in member_ids]
        passes = [measurement.dropout for measurement in measurements if measurement.dropout is not None]
        if not passes:
            return None
        pass_indices = tuple(dropout_pass.pass_index for dropout_pass in passes)
        return Dropout(passes[0].probability, self.seed, pass_indices, moment)

    def prepare_engine(self, member_ids: Sequence[int]) -> int:
        """Settle how much is computed at once.

        Returns:
            Padded tokens of a batch in a pass over rows by these members.
        """
        if self._batch_tokens is None:
            self._batch_tokens = self.batches.settle_tokens(
                engine=self.engine,
                adapters=self.load_state(member_ids, 0).adapters,
                row_width=self.row_width,
                device=self.device,
                model_hash=self.member_cache.ensemble_key["base_model"],
            )
        self.engine.to(self.device)
        self.engine.chunk_tokens = self.costs.batch_tokens = self._batch_tokens
        return max(1, self._batch_tokens // len(member_ids))

    def keep_prefix_states(self, examples: Examples) -> PrefixStates | DeviceStates | None:
        """Return what the layers below the first adapter hand on of each row, from a GPU's memory or from the cache.

        Every rank calls it, after `prepare_engine`.

        Returns:
            None where there are no such layers, the engine does not go on from them, or they would take too much.
        """
        if not isinstance(self.engine, FusedEngine) or self.engine.prefix is None:
            return None
        prefix_states: PrefixStates | DeviceStates | None = self._keep_on_device(self.engine, examples)
        if prefix_states is None:
            prefix_states = keep_prefix_states(
                cache=self.member_cache.cache,
                engine=self.engine,
                examples=examples,
                model_hash=self.member_cache.ensemble_key["base_model"],
                pad_id=self.base_model.pad_id,
                batches=self.batches,
            )
        if prefix_states is not None and prefix_states.is_new:
            self.costs.frozen_tokens += examples.tokens
        return prefix_states

    def _keep_on_device(self, engine: FusedEngine, examples: Examples) -> DeviceStates | None:
        """Return the states of rows from the device's memory, computed there if need be; None where they do not fit."""
        prefix = engine.prefix
        assert prefix is not None
        kind = (self.member_cache.ensemble_key["base_model"], prefix.first_layer, str(prefix.state_dtype))
        sequences = examples.sequences()
        states = self.device_states.find(kind, sequences)
        # A sample lies where all rows do, so that it is a part of theirs.
        decisive_examples = self.all_examples if examples is self.examples else examples
        if states is None and keeps_on_device(prefix, decisive_examples, self.device, self.batches):
            batch_tokens = self.batches.forward_tokens(self.device)
            states = DeviceStates.compute(engine, sequences, self.base_model.pad_id, batch_tokens)
            self.device_states.add(kind, states)
        return states

    def _training_data(self, member_ids: Sequence[int], stretches: Sequence[TrainingStretch]) -> "EnsembleDataModule":
        from gradfiltering.ensembles.data_module import EnsembleDataModule

        settings = self.settings
        row_sets = [self.examples]
        if settings.train_rows is not None:  # the states of a sample are a part of those of all rows
            row_sets = [self.all_examples, self.examples]
        row_states = None
        for examples in row_sets:
            row_states = self.keep_prefix_states(examples)
            if row_states is not None and row_states.is_new:
                self.costs.made_seconds += row_states.seconds
        buckets = LengthBuckets.of(self.examples.widths, settings.batch_size, settings.bucket_batches, self.seed)
        return EnsembleDataModule(
            examples=self.examples,
            member_ids=member_ids,
            buckets=replace(buckets, resampled=settings.resamples_rows),
            pad_id=self.base_model.pad_id,
            workers=self.batches.workers,
            stretches=stretches,
            row_states=row_states,
        )
