"""The target stage: which models are made, and their making."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.data.examples import Rows, hash_examples
from gradfiltering.distributed.process_group import once, rank
from gradfiltering.errors import UserError
from gradfiltering.finetuning.lora_finetuning import FineTuningResult, FineTuningSettings, finetune
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.weights import hash_weights
from gradfiltering.runs.cache import RECORD, Cache, Unfinished, Workspace, atomic_path, file_checksum, hash_key, link
from gradfiltering.selectors.random import RandomSelector

CANDIDATE = "candidate"
TARGET_VERSION = 1  # raise it when the same rows and settings would train another adapter
# Neither how often a checkpoint is kept, nor how work is cut up, makes another adapter.
NOT_OF_A_TARGET = ("checkpoint_minutes", "micro_batch_tokens")
PLACES = ("base_model_name_or_path", "revision")  # of the backbone, in an adapter's configuration
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
    random_ids = RandomSelector(None, len(chosen)).draw_rows(example_ids, total, seed)
    sets = {"full": example_ids.tolist(), "random": random_ids}
    return {CANDIDATE: list(chosen), **{name: sets[name] for name in against}}


def finetune_all(
    sets: Mapping[str, Sequence[int]],
    base_model: LanguageModel,
    rows: Rows,
    settings: FineTuningSettings,
    workspace: Workspace,
    made: Mapping[str, FineTuningResult] | None = None,
) -> dict[str, FineTuningResult]:
    """Fine-tunes one adapter for each set of rows, all from the same start, into `target/<model>/`.

    A model that was trained on the same rows before, by whatever name, is taken from the store.

    Args:
        sets: model name -> example ids.
        backbone: frozen target and its tokenizer.
        rows: all rows and held-out rows, tokenised for the target.
        settings: how to train.
        workspace: run folder, store, seed, trainer.
        made: models that are there already.

    Raises:
        UserError: none of a model's rows leaves a response token under the target's tokenizer.
    """
    common = {
        "code": TARGET_VERSION,
        "base_model": hash_weights(base_model.model),
        "tuning": {name: value for name, value in asdict(settings).items() if name not in NOT_OF_A_TARGET},
        "heldout": hash_examples(rows.heldout) if rows.heldout is not None else None,
        "precision": str(workspace.trainer().precision),
        "seed": workspace.seed,
    }
    results = dict(made or {})
    for name, ids in sets.items():
        if name in results:
            continue
        some = Rows(rows.examples.select(ids), rows.heldout)
        if len(some.examples) == 0:
            raise UserError(f"target {name}: none of its {len(ids)} rows can be trained on; raise target.max_tokens")
        key = {**common, "examples": hash_examples(some.examples)}
        train = partial(finetune, name, base_model, some, settings, workspace.seed, workspace.trainer)
        results[name] = made_once(name, key, train, workspace)
    return results


def made_once(
    name: str,
    key: dict[str, Any],
    train: Callable[[Path, Unfinished], FineTuningResult],
    workspace: Workspace,
    files: Sequence[str] = MODEL_FILES,
) -> FineTuningResult:
    """One model in the run folder: from the store if the first process finds it there, else trained and kept.

    Args:
        name: of the model.
        key: everything it depends on.
        train: makes it in the folder it is given; what an interrupted run would go on from is kept in the other.
        workspace: run folder and store.
        files: what `train` leaves there.
    """
    with workspace.cache.lock("target", key):
        return _made(key, train, workspace.run_dir / "target" / name, workspace.cache, files)


def _made(
    key: dict[str, Any],
    train: Callable[[Path, Unfinished], FineTuningResult],
    folder: Path,
    cache: Cache,
    files: Sequence[str],
) -> FineTuningResult:
    found = once(cache.find, "targets", key)
    if found is None:
        unfinished = Unfinished(cache, {"of": "target", **key})
        result = train(folder, unfinished)
        cache.make("targets", key, partial(_keep, folder=folder, files=files, result=result), result.seconds)
        if rank() == 0:
            unfinished.remove()
        return result
    for file, content in once(_read_all, found.path).items():
        if file == RESULT:
            result = FineTuningResult(**json.loads(content))
        elif rank() == 0:
            link(found.path / file, folder / file)
        else:  # a folder of its own, and perhaps no store that holds the file
            with atomic_path(folder / file) as part:
                part.write_bytes(content)
    return replace(result, reused=True)


def hash_adapter(folder: Path) -> str:
    """Digest of an adapter's weights and of what its configuration says beside where the backbone lies."""
    said = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config = {name: value for name, value in said.items() if name not in PLACES}
    return hash_key({"config": config, "weights": file_checksum(folder / "adapter_model.safetensors")})


def _keep(part: Path, folder: Path, files: Sequence[str], result: FineTuningResult) -> None:
    for file in files:
        shutil.copytree(folder / file, part / file) if (folder / file).is_dir() else link(folder / file, part / file)
    (part / RESULT).write_text(json.dumps(asdict(result)), "utf-8")


def _read_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
