"""LoRA fine-tuning of a base model on some rows, and reuse of models that were trained before."""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradfiltering.data.examples import Examples, hash_examples
from gradfiltering.errors import UserError, attributed_to
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.finetuning.training_sets import CANDIDATE, TrainingSet
from gradfiltering.finetuning.update_schedule import EpochSchedule, UpdateSchedule
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import initial_adapters
from gradfiltering.models.objectives import Objective
from gradfiltering.models.weights import count_matmul_weights, hash_model
from gradfiltering.runs.cache import Cache, CachedResult, ResumePoint
from gradfiltering.runs.progress import progress_bar
from gradfiltering.runs.run_folder import (
    ADAPTER,
    CURVE_FILE,
    HELDOUT_LOSSES_FILE,
    POOL_FILE,
    ROUNDS_FILE,
    TARGET,
    RunFolder,
)
from gradfiltering.seeding import derive_seed

if TYPE_CHECKING:
    import lightning as L
    from peft import PeftModel

    from gradfiltering.finetuning.training_loop import CurvePoint

TRAINING_VERSION = 4  # raise it when the same rows and settings would train another adapter, or leave other files
# Settings on which no adapter depends: the time between checkpoints, and how much is computed or stored at once.
SETTINGS_WITHOUT_EFFECT = ("checkpoint_minutes", "micro_batch_tokens", "gradient_checkpointing", "shard_weights")
TARGETS = "targets"  # kind of result
RESULT_FILE = "result.json"
ROW_WORDS = {CANDIDATE: "the selected rows", "full": "all rows", "random": "random rows"}
MODEL_FILES = (ADAPTER, CURVE_FILE, HELDOUT_LOSSES_FILE, ROUNDS_FILE, POOL_FILE)


@dataclass(frozen=True)
class FineTuningResult:
    """Cost and outcome of one fine-tuning.

    Attributes:
        steps: updates.
        examples: rows trained on.
        tokens: tokens seen, padding not counted.
        seconds: of training, held-out measurements included.
        final_loss: mean training loss since the curve's last but one point, nats per response
            token.
        heldout_loss: at the end, nats per response token; None where nothing is held out.
        flops: an estimate, 4 for each base model weight in a matrix product and each token.
        heldout_accuracy: of preference rows, the share of held-out pairs that are ranked right at the end; None for
            other rows.
        reused: whether the model was in the cache; `seconds` are those of its training.
    """

    steps: int
    examples: int
    tokens: int
    seconds: float
    final_loss: float
    heldout_loss: float | None
    flops: int
    heldout_accuracy: float | None = None
    reused: bool = False


@dataclass(frozen=True)
class TrainedModel:
    """A fine-tuned model in the cache.

    Attributes:
        folder: with `adapter/`, `curve.csv` and further files of the method.
        result: cost and outcome.
    """

    folder: Path
    result: FineTuningResult

    @property
    def adapter_folder(self) -> Path:
        """Folder of the adapter (PEFT)."""
        return self.folder / ADAPTER


@dataclass(frozen=True)
class FineTuningContext:
    """Everything that the models of a run are trained with, except their rows.

    Attributes:
        base_model: frozen target and its tokenizer.
        examples: rows that can be trained on, tokenised for the target.
        heldout: rows to measure the held-out loss on; None where nothing is held out.
        settings: optimiser, learning rate and adapter.
        objective: loss of each example.
        cache: of this run and others.
        run_folder: where trained models are linked, in `target/<model>/`.
        seed: decides the adapter's start, the same for every model of a run, and the order of rows.
        build_trainer: builds a `lightning.Trainer` from keyword arguments.
        complete_rows: adds what the objective needs of a model's rows (`add_reference_nll`); None for nothing.
        untrained_losses: of the held-out rows before training, [N], once the first model has measured them: all models
            of a run have the same start. Empty until then.
    """

    base_model: LanguageModel
    examples: Examples
    heldout: Examples | None
    settings: FineTuningSettings
    objective: Objective
    cache: Cache
    run_folder: RunFolder
    seed: int
    build_trainer: "Callable[..., L.Trainer]"
    complete_rows: Callable[[Examples], Examples] | None = None
    untrained_losses: list[np.ndarray] = field(default_factory=list)

    @cached_property
    def shared_key(self) -> dict[str, Any]:
        """Part of a cache key that all models of a run share."""
        settings = {**asdict(self.settings), "lora": self.settings.lora.cache_key()}
        return {
            "code": TRAINING_VERSION,
            "base_model": hash_model(self.base_model.model),
            "objective": repr(self.objective),
            "tuning": {name: settings[name] for name in settings if name not in SETTINGS_WITHOUT_EFFECT},
            "heldout": hash_examples(self.heldout) if self.heldout is not None else None,
            "precision": str(self.build_trainer().precision),
            "seed": self.seed,
        }


def fine_tune(
    model_name: str,
    examples: Examples,
    context: FineTuningContext,
    output_folder: Path,
    resume_point: ResumePoint | None = None,
    schedule: UpdateSchedule | None = None,
) -> FineTuningResult:
    """Fine-tune one LoRA adapter and write `adapter/`, `curve.csv` and, of held-out rows, `heldout_losses.csv`.

    An interrupted training resumes from its last checkpoint; on one device the result is the same
    bit for bit.

    Args:
        model_name: `candidate`, `full`, ….
        examples: rows to train on.
        context: base model and settings; the base model is left as it was.
        output_folder: existing folder for the model.
        resume_point: where checkpoints are saved; None to save none.
        schedule: decides the rows of each update; None for passes over all examples.
    """
    from gradfiltering.finetuning.training_loop import FineTuningModule

    settings, base_model = context.settings, context.base_model
    if schedule is None:
        schedule = EpochSchedule(len(examples), settings.epochs, settings.batch_size, context.seed)
    if settings.shard_weights:
        from gradfiltering.finetuning.sharded_layers import shard_layers

        with attributed_to(settings, "shard_weights"):
            shard_layers(base_model, context.build_trainer().strategy.root_device)
    with attach_untrained_adapter(base_model, settings, context.seed) as model:
        module = FineTuningModule(
            model_name=model_name,
            model=model,
            examples=examples,
            heldout=context.heldout,
            pad_id=base_model.pad_id,
            schedule=schedule,
            objective=context.objective,
            settings=settings,
            resume_point=resume_point,
            untrained_losses=context.untrained_losses,
        )
        checkpoint = resume_point.load() if resume_point else None
        if checkpoint is not None:
            module.restore(checkpoint)
        if schedule.progress < schedule.length:
            remaining_rounds = schedule.remaining_rounds
            rounds = itertools.count() if remaining_rounds is None else range(remaining_rounds)
            unit = "rows" if remaining_rounds is None else "steps"
            with (
                attributed_to(settings, "gradient_checkpointing"),
                recompute_if_asked(model, settings),
                progress_bar(describe_training(model_name), schedule.length - schedule.progress, unit) as bar,
            ):
                module.bar = bar
                context.build_trainer(max_epochs=1).fit(module, rounds)
        model.save_pretrained(str(output_folder / ADAPTER), safe_serialization=True, save_embedding_layers=False)
    write_curve(module.progress.curve, output_folder / CURVE_FILE)
    if context.heldout is not None:
        heldout_losses = zip(context.heldout.example_ids.tolist(), module.progress.heldout_row_losses, strict=True)
        write_heldout_losses(heldout_losses, output_folder / HELDOUT_LOSSES_FILE)
    last_point = module.progress.curve[-1]
    return FineTuningResult(
        steps=last_point.step,
        examples=len(examples),
        tokens=last_point.tokens_seen,
        seconds=last_point.seconds,
        final_loss=last_point.train_loss or float("nan"),
        heldout_loss=last_point.heldout_loss,
        heldout_accuracy=last_point.heldout_accuracy,
        flops=4 * count_matmul_weights(base_model.model) * last_point.tokens_seen,
    )


def recompute_if_asked(model: "PeftModel", settings: FineTuningSettings) -> AbstractContextManager[None]:
    """Store only the inputs of the layers inside the block, where the settings ask for that."""
    from gradfiltering.models.recomputed_layers import recompute_layers

    return recompute_layers(model) if settings.gradient_checkpointing else nullcontext()


def describe_training(model_name: str) -> str:
    """Say in words which rows a model is trained on, for the screen."""
    return f"training on {ROW_WORDS[model_name]}" if model_name in ROW_WORDS else f"training {model_name}"


def fine_tune_all(training_sets: Mapping[str, TrainingSet], context: FineTuningContext) -> dict[str, TrainedModel]:
    """Fine-tune one adapter on each set of rows, all from the same start.

    A model that was trained on the same rows before, under whatever name, is taken from the cache.

    Args:
        training_sets: rows and updates, by the model's name.
        context: base model and settings.

    Raises:
        UserError: none of a model's rows leaves a response token under the target's tokenizer.
    """
    trained_models = {}
    for model_name, training_set in training_sets.items():
        examples = context.examples.select(training_set.example_ids)
        if len(examples) == 0:
            raise UserError(
                f"target {model_name}: none of its {len(training_set.example_ids)} rows can be trained on: no response "
                "token is left within the target's max_tokens; raise it"
            )
        if context.complete_rows is not None:
            examples = context.complete_rows(examples)
        key = _model_key(examples, training_set, context)
        schedule = None
        if training_set.update_count is not None:
            settings = context.settings
            schedule = EpochSchedule(
                len(examples), settings.epochs, settings.batch_size, context.seed, training_set.update_count
            )
        train = partial(fine_tune, model_name, examples, context, schedule=schedule)
        trained_models[model_name] = train_or_reuse(model_name, key, train, context)
    return trained_models


def find_tuned_model(training_set: TrainingSet, context: FineTuningContext) -> CachedResult | None:
    """Find the model that was trained on a set of rows in the cache.

    Args:
        training_set: rows and updates.
        context: base model and settings; its `complete_rows` is called for the rows.
    """
    examples = context.examples.select(training_set.example_ids)
    if len(examples) and context.complete_rows is not None:
        examples = context.complete_rows(examples)
    return context.cache.find(TARGETS, _model_key(examples, training_set, context)) if len(examples) else None


def _model_key(examples: Examples, training_set: TrainingSet, context: FineTuningContext) -> dict[str, Any]:
    key = {**context.shared_key, "examples": hash_examples(examples)}
    return key if training_set.update_count is None else {**key, "updates": training_set.update_count}


def train_or_reuse(
    model_name: str,
    key: Mapping[str, Any],
    train: Callable[[Path, ResumePoint], FineTuningResult],
    context: FineTuningContext,
) -> TrainedModel:
    """Take a model from the cache, or train it; link its files into the run folder.

    Args:
        model_name: of the model.
        key: everything the model depends on.
        train: trains into a folder, with checkpoints at the resume point.
        context: cache and run folder.
    """
    resume_point = context.cache.resume_point(TARGETS, key)

    def train_into(folder: Path) -> None:
        result = train(folder, resume_point)
        (folder / RESULT_FILE).write_text(json.dumps(asdict(result)), "utf-8")

    cached_model = context.cache.get_or_compute(TARGETS, key, train_into)
    resume_point.delete()
    for name in MODEL_FILES:
        if (cached_model.path / name).exists():
            context.run_folder.link(cached_model.path / name, Path(TARGET) / model_name / name)
    context.run_folder.name_base_model(
        context.run_folder.target_folder(model_name) / ADAPTER, context.base_model.public_name
    )
    result = FineTuningResult(**json.loads((cached_model.path / RESULT_FILE).read_text("utf-8")))
    return TrainedModel(cached_model.path, replace(result, reused=cached_model.reused))


@contextmanager
def attach_untrained_adapter(
    base_model: LanguageModel, settings: FineTuningSettings, seed: int
) -> "Iterator[PeftModel]":
    """Attach the untrained adapter that every model of a run starts from; detach it at the end."""
    model = settings.lora.attach(base_model.model)
    try:
        parameters = model.state_dict()
        for name, stacked_value in initial_adapters(model, settings.lora, [0], derive_seed(seed, "target")).items():
            parameters[name].copy_(stacked_value[0])
        yield model
    finally:
        model.unload()


def write_curve(curve: "Sequence[CurvePoint]", output_path: Path) -> None:
    """Write a convergence curve as CSV."""
    from gradfiltering.finetuning.training_loop import CurvePoint

    with output_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(CurvePoint)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in curve)


def write_heldout_losses(row_losses: Iterable[tuple[int, float]], output_path: Path) -> None:
    """Write id and loss of each held-out row as CSV."""
    with output_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["example_id", "loss"])
        writer.writerows(row_losses)


def average_losses_by_source(trained_model: TrainedModel, heldout_sources: Sequence[str] | None) -> dict[str, float]:
    """Average the losses of held-out rows within each source, nats per response token.

    Args:
        trained_model: of the run.
        heldout_sources: [V] source of each held-out row; None where rows name none.

    Returns:
        Source -> mean loss of its rows at the end of training; empty where nothing is held out or no source is named.
    """
    if heldout_sources is None:
        return {}
    losses_by_source: dict[str, list[float]] = {}
    for example_id, loss in read_heldout_losses(trained_model).items():
        losses_by_source.setdefault(heldout_sources[example_id], []).append(loss)
    return {source: sum(losses) / len(losses) for source, losses in sorted(losses_by_source.items())}


def average_losses_by_token(trained_model: TrainedModel, heldout: Examples | None) -> float | None:
    """Average the losses of held-out rows with each response token weighing the same, nats per token.

    `heldout_loss` is the mean over rows, in which an answer of two tokens weighs as much as one of two hundred.

    Args:
        trained_model: of the run.
        heldout: the held-out rows that the model was measured on; None where nothing is held out.

    Returns:
        Mean at the end of training; None where nothing is held out or no losses of rows were kept, and for preference
        rows, whose loss is that of a pair of answers.
    """
    row_losses = read_heldout_losses(trained_model)
    if heldout is None or heldout.is_paired or not row_losses:
        return None
    losses = np.array([row_losses[example_id] for example_id in heldout.example_ids.tolist()])
    return float(np.average(losses, weights=heldout.response_tokens))


def read_heldout_losses(trained_model: TrainedModel) -> dict[int, float]:
    """Read the final loss of each held-out row, nats per response token, by its id; empty where nothing is held out."""
    losses_file = trained_model.folder / HELDOUT_LOSSES_FILE
    if not losses_file.is_file():
        return {}
    with losses_file.open(encoding="utf-8", newline="") as file:
        return {int(row["example_id"]): float(row["loss"]) for row in csv.DictReader(file)}
