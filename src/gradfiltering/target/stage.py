"""The target stage: which models are made, and their making."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np

from gradfiltering.data.examples import Rows
from gradfiltering.errors import UserError
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.target.finetune import TuningResult, TuningSettings, finetune

CANDIDATE = "candidate"
OPPONENTS = ("full", "random")


def check_opponents(against: Sequence[str]) -> None:
    """Refuses names of models that the candidate cannot be held against.

    Raises:
        UserError: an unknown name.
    """
    unknown = sorted(set(against) - set(OPPONENTS))
    if unknown:
        raise UserError(f"judge.against={list(against)}: unknown {unknown}; choose among {', '.join(OPPONENTS)}")


def training_sets(
    chosen: Sequence[int], example_ids: np.ndarray, total: int, against: Sequence[str], seed: int
) -> dict[str, list[int]]:
    """The rows each model is trained on: the candidate's subset and what it is held against.

    Args:
        chosen: the subset.
        example_ids: [N] ids of the rows that can be chosen.
        total: all rows of the dataset.
        against: any of `full` (all rows) and `random` (as many rows as the subset, drawn from the seed).
        seed: the run's seed.

    Raises:
        UserError: an unknown name in `against`.
    """
    check_opponents(against)
    sets = {"full": example_ids.tolist(), "random": RandomSelector(None, len(chosen)).draw(example_ids, total, seed)}
    return {CANDIDATE: list(chosen), **{name: sets[name] for name in against}}


def finetune_all(
    sets: Mapping[str, Sequence[int]],
    backbone: Loaded,
    rows: Rows,
    settings: TuningSettings,
    run_dir: Path,
    seed: int,
    trainer: Callable[..., L.Trainer],
) -> dict[str, TuningResult]:
    """Fine-tunes one adapter for each set of rows, all from the same start, into `target/<model>/`.

    Args:
        sets: model name -> example ids.
        backbone: frozen target and its tokenizer.
        rows: all rows and held-out rows, tokenised for the target.
        settings: how to train.
        run_dir: the run folder.
        seed: the run's seed.
        trainer: builds a `lightning.Trainer` from keyword arguments.

    Raises:
        UserError: none of a model's rows leaves a response token under the target's tokenizer.
    """
    results = {}
    for name, ids in sets.items():
        some = Rows(rows.examples.select(ids), rows.heldout)
        if len(some.examples) == 0:
            raise UserError(f"target {name}: none of its {len(ids)} rows can be trained on; raise target.max_tokens")
        folder = run_dir / "target" / name
        results[name] = finetune(name, backbone, some, settings, folder, seed, trainer)
    return results
