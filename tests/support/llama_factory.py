"""LLaMA-Factory's own reader of `dataset_info.json` and of the rows that it names.

Only the modules that read data are imported: its package asks for other releases of transformers and for packages of
audio and video. `make` installs it without what it depends on.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from datasets import load_dataset

PACKAGES = "llamafactory", "llamafactory.data"


def read_as_llama_factory(folder: Path, dataset_name: str, cache_folder: Path) -> list[dict[str, Any]]:
    """Align the rows of an entry of `folder/dataset_info.json` as LLaMA-Factory does before it tokenises them.

    Returns:
        `_prompt` and `_response` (lists of turns with role and content), `_system` and `_tools` of each row.
    """
    parser, converter = _reading_modules()
    (dataset_attributes,) = parser.get_dataset_list([dataset_name], str(folder))
    read = load_dataset(
        "json",
        data_files=str(folder / dataset_attributes.dataset_name),
        split="train",
        cache_dir=str(cache_folder),
    )
    convert = converter.get_dataset_converter(
        dataset_attributes.formatting, dataset_attributes, SimpleNamespace(media_dir="")
    )
    return [convert(row_values) for row_values in read]


def turns_for_llama_factory(folder: Path, dataset_name: str, cache_folder: Path) -> list[tuple[str, list[str], str]]:
    """System turn, prompt turns and response of each row; a row that LLaMA-Factory skips has no prompt."""
    return [
        (
            converted["_system"] or "",
            [turn["content"] for turn in converted["_prompt"]],
            "".join(turn["content"] for turn in converted["_response"]),
        )
        for converted in read_as_llama_factory(folder, dataset_name, cache_folder)
    ]


def _reading_modules() -> tuple[ModuleType, ModuleType]:
    package_spec = importlib.util.find_spec("llamafactory")
    if package_spec is None or package_spec.origin is None:
        pytest.skip("LLaMA-Factory is not installed: pip install --no-deps llamafactory==0.9.5")
    with pytest.MonkeyPatch.context() as patch:
        for package_name in PACKAGES:
            bare_package = ModuleType(package_name)
            bare_package.__path__ = [str(Path(package_spec.origin).parent.joinpath(*package_name.split(".")[1:]))]
            bare_package.__spec__ = ModuleSpec(package_name, None, is_package=True)
            patch.setitem(sys.modules, package_name, bare_package)
        return (
            importlib.import_module("llamafactory.data.parser"),
            importlib.import_module("llamafactory.data.converter"),
        )
