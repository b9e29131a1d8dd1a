"""The target stage: which models are made, and their making."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.data.examples import Rows
from gradfiltering.errors import UserError
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.proxy.devices import once, rank
from gradfiltering.proxy.members import examples_hash, weights_hash
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.store import RECORD, Store, Workspace, atomic_path, link
from gradfiltering.target.finetune import TuningResult, TuningSettings, finetune

CANDIDATE = "candidate"
TARGET_VERSION = 1  # raise it when the same rows and settings would train another adapter
RESULT, MODEL_FILES = "result.json", ("adapter", "curve.csv")
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
    sets: Mapping[str, Sequence[int]], backbone: Loaded, rows: Rows, settings: TuningSettings, workspace: Workspace
) -> dict[str, TuningResult]:
    """Fine-tunes one adapter for each set of rows, all from the same start, into `target/<model>/`.

    A model that was trained on the same rows before, by whatever name, is taken from the store.

    Args:
        sets: model name -> example ids.
        backbone: frozen target and its tokenizer.
        rows: all rows and held-out rows, tokenised for the target.
        settings: how to train.
        workspace: run folder, store, seed, trainer.

    Raises:
        UserError: none of a model's rows leaves a response token under the target's tokenizer.
    """
    common = {
        "code": TARGET_VERSION,
        "backbone": weights_hash(backbone.model),
        "tuning": asdict(settings),
        "heldout": examples_hash(rows.heldout) if rows.heldout is not None else None,
        "seed": workspace.seed,
    }
    results = {}
    for name, ids in sets.items():
        some = Rows(rows.examples.select(ids), rows.heldout)
        if len(some.examples) == 0:
            raise UserError(f"target {name}: none of its {len(ids)} rows can be trained on; raise target.max_tokens")
        key = {**common, "examples": examples_hash(some.examples)}
        train = partial(finetune, name, backbone, some, settings, seed=workspace.seed, trainer=workspace.trainer)
        results[name] = made_once(name, key, train, workspace)
    return results


def made_once(
    name: str,
    key: dict[str, Any],
    train: Callable[[Path], TuningResult],
    workspace: Workspace,
    files: Sequence[str] = MODEL_FILES,
) -> TuningResult:
    """One model in the run folder: from the store if the first process finds it there, else trained and kept.

    Args:
        name: of the model.
        key: everything it depends on.
        train: makes it in the folder it is given.
        workspace: run folder and store.
        files: what `train` leaves there.
    """
    with workspace.store.lock("target", key) if rank() == 0 else nullcontext():
        return _made(key, train, workspace.run_dir / "target" / name, workspace.store, files)


def _made(
    key: dict[str, Any], train: Callable[[Path], TuningResult], folder: Path, store: Store, files: Sequence[str]
) -> TuningResult:
    found = once(store.find, "targets", key)
    if found is None:
        result = train(folder)
        store.make("targets", key, partial(_keep, folder=folder, files=files, result=result), result.seconds)
        return result
    for file, content in once(_read_all, found.path).items():
        if file == RESULT:
            result = TuningResult(**json.loads(content))
        elif rank() == 0:
            link(found.path / file, folder / file)
        else:  # a folder of its own, and perhaps no store that holds the file
            with atomic_path(folder / file) as part:
                part.write_bytes(content)
    return replace(result, reused=True)


def _keep(part: Path, folder: Path, files: Sequence[str], result: TuningResult) -> None:
    for file in files:
        shutil.copytree(folder / file, part / file) if (folder / file).is_dir() else link(folder / file, part / file)
    (part / RESULT).write_text(json.dumps(asdict(result)), "utf-8")


def _read_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
