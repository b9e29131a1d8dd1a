"""Trains a target on weights of 4 bits, in several processes with its layers spread over them.

Run as `python -m tests.support.sharded_quantized_training FOLDER ARCHITECTURE PROCESSES`; process R leaves
`FOLDER/rank=R/{adapter,curve.csv,held_share.npy}`.
"""

import sys
from pathlib import Path

import numpy as np

from gradfiltering.data.encoder import Encoder
from gradfiltering.distributed.process_group import connected_processes, rank, run_on_rank_zero, world_size
from gradfiltering.finetuning.fine_tune import fine_tune
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.runs.cache import Cache
from tests.support.ddp_training import trainer_of
from tests.support.small_targets import (
    load_saved_target,
    make_small_dataset,
    make_training,
    save_small_target,
    tuning_settings,
)

SHAPE = {"layers": 2, "heads": 4, "width": 64}
ROW_COUNT = 25


def main(folder: Path, architecture: str) -> None:
    own_folder = folder / f"rank={rank()}"
    own_folder.mkdir(parents=True)
    dataset = make_small_dataset(ROW_COUNT)
    run_on_rank_zero(save_small_target, dataset, folder, architecture=architecture, **SHAPE)
    target = load_saved_target(folder, "4bit")
    rows = Encoder(target.tokenizer, 96, Cache(folder / "rows")).encode_all(dataset)
    settings = tuning_settings(shard_weights=world_size() > 1, gradient_checkpointing=True, micro_batch_tokens=200)
    training = make_training(target, rows, folder / "run", folder / "cache", settings, trainer=trainer_of(world_size()))
    fine_tune("candidate", rows.examples, training, own_folder)
    parameters = list(find_layers(target.model).layers.parameters())
    own_sizes = [getattr(parameter, "to_local", lambda whole=parameter: whole)().numel() for parameter in parameters]
    np.save(own_folder / "held_share.npy", sum(own_sizes) / sum(parameter.numel() for parameter in parameters))


if __name__ == "__main__":
    with connected_processes(trainer_of(int(sys.argv[3]))):
        main(Path(sys.argv[1]), sys.argv[2])
