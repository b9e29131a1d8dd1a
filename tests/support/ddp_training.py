"""Trains the proxy ensemble and a target in float64 in some processes and keeps what they measured, unrounded.

Run as `python -m tests.support.ddp_training FOLDER PROCESSES`, also under torchrun; process R leaves `FOLDER/rank=R`.
A third argument is the number of hosts that the processes are on.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import lightning as L
import numpy as np
import pandas as pd

from gradfiltering.data.dataset import Columns
from gradfiltering.data.encoder import Encoder
from gradfiltering.distributed import process_group as devices
from gradfiltering.ensembles import stack_training
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence import ensemble_passes
from gradfiltering.evidence.base_model_losses import add_reference_nll
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.finetuning.fine_tune import FineTuningContext, fine_tune
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.methods.lead.curriculum import LeadSettings
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import DirectPreference, ResponseNLL
from gradfiltering.requests import BaseModelLosses, Evidence, GradientLog, LossMeasurement
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.loss import LossScorer
from gradfiltering.selectors.top import TopSelector
from gradfiltering.shards.measurement_shards import MeasurementShards
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.support.small_ensembles import measurement_context

# GPT-2, because transformers' LLaMA computes its RMSNorm in float32 whatever the model's type.
SHAPE = {"architecture": "gpt2", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
COLLECT = ("snapshot", "online")
ROWS = (24, 25)  # divisible by 2 and 3; by neither, with an update of one row, of which some processes get none
HELDOUT = 5
PAIRS = "pairs"  # folder of what is measured of preference rows
EPOCHS = SnapshotPair(1, 2)
LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.05)
# Clipping and a large eps: without them AdamW hides a gradient that is a multiple of the right one.
ENSEMBLE = partial(
    LoraEnsemble, m=2, batch_size=8, lr=0.01, warmup_steps=3, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.01,
    clip_norm=0.5, bucket_batches=2, trajectory_steps=2, checkpoint_minutes=10, lora=LORA,
)  # fmt: skip
TUNING = FineTuningSettings(
    epochs=2, batch_size=7, micro_batch_tokens=120, gradient_checkpointing=False, lr=0.01, schedule="cosine",
    warmup_share=0.1, weight_decay=0.0, clip_norm=0.1, records=5, checkpoint_minutes=10, lora=LORA,
)  # fmt: skip
# Of a cluster's rows, one trains in a round, fewer than there are processes; or all do, in two updates.
SAMPLE_RATES = (0.05, 1.0)
LEAD = partial(LeadSettings, LossScorer(), False, 3, 0.1, 0.1, most_uses=4)
BUDGET = 12


@dataclass(frozen=True)
class Measured:
    """One pass over all rows as a process knows it: its own part of the work, and everybody's results."""

    times: np.ndarray
    tables: dict[str, np.ndarray]


def trainer_of(processes: int, hosts: int = 1) -> partial[L.Trainer]:
    """Builds a trainer of so many gloo processes on so many hosts."""
    return partial(
        L.Trainer, accelerator="cpu", devices=processes // hosts, num_nodes=hosts,
        strategy="ddp" if processes > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        use_distributed_sampler=False,
    )  # fmt: skip


def train_all(folder: Path, trainer: partial[L.Trainer]) -> None:
    """Every way of collecting, every number of rows, and targets of each, in this process's folder."""
    for rows in ROWS:
        own = folder / f"rank={devices.rank()}" / f"rows={rows}"
        for collect in COLLECT:
            context = proxy_context(folder, rows, collect, trainer)
            keep_measurements(context, own / collect)
        (own / "target").mkdir(parents=True)
        training = FineTuningContext(
            context.base_model, context.examples, context.heldout, TUNING, ResponseNLL(), Cache(folder / "cache"),
            RunFolder(own), 0, trainer,
        )  # fmt: skip
        fine_tune("candidate", context.examples, training, own / "target")
        # Rows of one utility but for rounding, which is another in each process, as on machines of different kinds.
        difficulty, base_losses = np.random.default_rng(rows).uniform(0.2, 1.2, (2, rows))
        base_losses = (
            base_losses.round(1) + 1e-12 * np.random.default_rng(devices.rank()).normal(size=rows) * devices.rank()
        )
        ids = context.examples.example_ids
        evidence = Evidence(
            ids, 0, context.examples.response_tokens, context.examples.lengths, None,
            {BaseModelLosses(): LossMeasurement(base_losses, None)},
        )  # fmt: skip
        for rate in SAMPLE_RATES:
            method = Lead(LEAD(sample_rate=rate), TopSelector(None, BUDGET))
            lead_training = replace(training, run_folder=RunFolder(own / f"lead={rate}"))
            method.train_candidate(None, evidence, rows, Scores(ids, difficulty), lead_training)
        if devices.world_size() > 1:
            train_sharded(training, own / "sharded")


def train_sharded(training: FineTuningContext, own: Path) -> None:
    """Trains the target with its layers spread over the processes; keeps the share of them that this one holds."""
    own.mkdir(parents=True)
    settings = replace(TUNING, shard_weights=True, gradient_checkpointing=True)
    fine_tune("candidate", training.examples, replace(training, settings=settings), own)
    layers = find_layers(training.base_model.model).layers
    held = sum(parameter.to_local().numel() for parameter in layers.parameters())
    np.save(own / "held_share.npy", held / sum(parameter.numel() for parameter in layers.parameters()))


def proxy_context(
    folder: Path, rows: int, collect: str, trainer: partial[L.Trainer], **settings: float
) -> MeasurementContext:
    """What the proxy ensemble of so many rows is trained and measured with, by further settings of the ensemble."""
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    records = TaskSource(rows, HELDOUT, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)
    tokenizer = train_tokenizer([row["instruction"] + " " + row["output"] for row in records.rows], 300)
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(folder / "cache"))
    encoded = encoder.encode_all(records)
    model = new_model(SHAPE, tokenizer, 0).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    base_model = LanguageModel(model, tokenizer, "test", "test", 0.0, True)
    run_folder = folder / f"rank={devices.rank()}" / f"rows={rows}" / collect
    member_cache = folder / f"cache {collect}"  # members are those of either way, and would be trained once
    return measurement_context(
        records, base_model, run_folder, member_cache, trainer, encoder=encoder, examples=encoded.examples,
        heldout=encoded.heldout, ensemble=ENSEMBLE(collect=collect, **settings), snapshots=EPOCHS,
        batches=BatchSettings(200, 0),
    )  # fmt: skip


def keep_measurements(context: MeasurementContext, own: Path) -> None:
    """Measures the gradient log and keeps what this process measured of it, and all of it, unrounded."""
    passes: dict[Path, Measured] = {}
    keeping = partial(Keeping, passes)
    with (
        mock.patch.object(ensemble_passes, "MeasurementShards", keeping),
        mock.patch.object(stack_training, "MeasurementShards", keeping),
    ):
        find_measurer(GradientLog()).measure(GradientLog(), context)
    own.mkdir(parents=True, exist_ok=True)  # on rank zero it is the run folder
    np.savez(
        own / "measured.npz",
        **{
            f"{name}/{at}": one.tables[name] for at, one in enumerate(passes.values()) for name in ("grad_norm", "loss")
        },
        **{f"times/{at}": one.times for at, one in enumerate(passes.values())},
    )


def train_preferences(folder: Path, trainer: partial[L.Trainer]) -> None:
    """Every way of collecting and a target on pairs of answers, a number of them that no two processes share alike."""
    none, objective = PlantedDefects(0, 0, 0, 0, 0, 0), DirectPreference(0.5)
    columns = Columns("instruction", "input", "output")
    records = TaskSource(ROWS[1], HELDOUT, None, "plain", columns, none, schema="preference").load(seed=0)
    tokenizer = train_tokenizer([row["instruction"] + " " + row["chosen"] for row in records.rows], 300)
    model = new_model(SHAPE, tokenizer, 0).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    base_model = LanguageModel(model, tokenizer, "test", "test", 0.0, True)
    own = folder / f"rank={devices.rank()}" / PAIRS
    for collect in COLLECT:
        context = measurement_context(
            records, base_model, own / collect, folder / f"cache {collect}", trainer,
            ensemble=ENSEMBLE(collect=collect), snapshots=EPOCHS, batches=BatchSettings(400, 0), objective=objective,
            build_engine=partial(FusedEngine, objective=objective),
        )  # fmt: skip
        examples, heldout = (add_reference_nll(context, rows) for rows in (context.examples, context.heldout))
        keep_measurements(replace(context, examples=examples, heldout=heldout), own / collect)
    (own / "target").mkdir(parents=True)
    training = FineTuningContext(
        base_model, examples, heldout, TUNING, objective, Cache(folder / "cache"), RunFolder(own), 0, trainer
    )
    fine_tune("candidate", examples, training, own / "target")


class Keeping(MeasurementShards):
    """A recorder that keeps what its process and what all of them recorded, as it was before it is merged.

    Files are listed at checkpoints, too; the last list of a pass is that of all rows.
    """

    def __init__(self, passes: dict[Path, Measured], *arguments):
        super().__init__(*arguments)
        self.passes = passes

    def list_files(self) -> list[str]:
        file_names = super().list_files()
        shards = pd.concat([pd.read_parquet(self.folder / name) for name in file_names])
        own = pd.concat([pd.read_parquet(self.folder / name) for name in self.own_files] or [shards.head(0)])
        index = pd.MultiIndex.from_product([range(self.members), sorted(shards["example_id"].unique())])
        times = own.groupby(["member", "example_id"]).size().reindex(index, fill_value=0)
        measured = shards.set_index(["member", "example_id"]).reindex(index)  # refuses a row that is there twice
        tables = {name: measured[name].to_numpy().reshape(self.members, -1) for name in ("grad_norm", "loss")}
        self.passes[self.folder] = Measured(times.to_numpy().reshape(self.members, -1), tables)
        return file_names


if __name__ == "__main__":
    chosen = trainer_of(*map(int, sys.argv[2:]))
    with devices.connected_processes(chosen):
        train_all(Path(sys.argv[1]), chosen)
        train_preferences(Path(sys.argv[1]), chosen)
