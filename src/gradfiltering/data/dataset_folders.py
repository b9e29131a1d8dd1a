"""Folders that hold a dataset in splits: saved by `datasets`, or copied from the Hugging Face hub."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradfiltering.errors import UserError

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"  # as `save_to_disk` names them
SHARD_NAME = re.compile(r"(?P<split>\w[\w.]*)-\d{5}-of-\d{5}[-\w]*\.\w+")
DATA_FOLDER = "data"


def find_split_files(folder: Path, split: str | None) -> list[Path] | None:
    """Find the files of a split; None for a folder that is neither saved by `datasets` nor in the form of the hub.

    Args:
        folder: an existing folder.
        split: name of the split; None takes the only one.

    Raises:
        UserError: there are several splits and none is named, or no such split.
    """
    if (folder / SPLITS_FILE).is_file():
        names = _read_json(folder / SPLITS_FILE).get("splits") or []
        split_folders = {str(name): [folder / str(name)] for name in names}
        return _saved_files(_choose_split(folder, split_folders, split)[0])
    if (folder / STATE_FILE).is_file():
        return _saved_files(folder)
    splits = _splits_of_readme(folder) or _splits_of_shards(folder) or _splits_of_shards(folder / DATA_FOLDER)
    return _choose_split(folder, splits, split) if splits else None


def _saved_files(folder: Path) -> list[Path]:
    entries = _read_json(folder / STATE_FILE).get("_data_files")
    found_names = [entry.get("filename") for entry in entries or [] if isinstance(entry, dict)]
    names = [name for name in found_names if isinstance(name, str)]
    if not names:
        raise UserError(f"{folder / STATE_FILE} names no data files; save the dataset again")
    return [folder / Path(name).name for name in names]


def _choose_split(folder: Path, splits: Mapping[str, Sequence[Path]], split: str | None) -> list[Path]:
    if split is None and len(splits) == 1:
        return list(next(iter(splits.values())))
    if split is None or split not in splits:
        split_paths = "; ".join(f"{name}: {_common_place(files)}" for name, files in splits.items())
        problem = "holds several splits" if split is None else f"holds no split {split}"
        raise UserError(f"{folder} {problem}; name the files of one of them ({split_paths})")
    return list(splits[split])


def _common_place(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return str(files[0])
    match = SHARD_NAME.fullmatch(files[0].name)
    return str(files[0].parent / (f"{match['split']}-*{files[0].suffix}" if match else f"*{files[0].suffix}"))


def _splits_of_readme(folder: Path) -> dict[str, list[Path]]:
    """The splits that the first lines of a README list under `configs`; none where they list none that are there."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    header = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text("utf-8", "replace"), re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        return {}
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    configs = [config for config in configs or [] if isinstance(config, dict)] if isinstance(configs, list) else []
    default_configs = [config for config in configs if config.get("default")] or configs
    splits: dict[str, list[Path]] = {}
    for config in default_configs:
        prefix = f"{config.get('config_name')}/" if len(default_configs) > 1 else ""
        for split_name, patterns in _patterns_by_split(config.get("data_files")):
            files = [file for pattern in patterns for file in _matching_files(folder, pattern)]
            if files:
                splits.setdefault(prefix + split_name, []).extend(files)
    return splits


def _patterns_by_split(data_files: Any) -> list[tuple[str, list[str]]]:
    if isinstance(data_files, str):
        return [("train", [data_files])]
    split_patterns = []
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, str):
            split_patterns.append(("train", [entry]))
        elif isinstance(entry, dict):
            patterns = entry.get("path")
            patterns = [patterns] if isinstance(patterns, str) else patterns if isinstance(patterns, list) else []
            split_patterns.append(
                (str(entry.get("split", "train")), [text for text in patterns if isinstance(text, str)])
            )
    return split_patterns


def _matching_files(folder: Path, pattern: str) -> list[Path]:
    if "://" in pattern or pattern.startswith("/") or ".." in Path(pattern).parts or not pattern.strip():
        return []
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _splits_of_shards(folder: Path) -> dict[str, list[Path]]:
    """Files by the name before `-00000-of-00001`, where all data files of a folder have such names."""
    if not folder.is_dir():
        return {}
    splits: dict[str, list[Path]] = {}
    for file in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_"))):
        match = SHARD_NAME.fullmatch(file.name)
        if match:
            splits.setdefault(match["split"], []).append(file)
    return splits


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; save the dataset again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is no description of a dataset; save the dataset again")
    return value
