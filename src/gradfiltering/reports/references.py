"""Publications behind the parts that a run used: the single home of references for pages and cards."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pybtex.database import BibliographyData, parse_string

METHOD = ("yuan2026gradfiltering",)
LORA = "hu2022lora"
ENSEMBLE = (*METHOD, LORA)
MODEL_JUDGE = ("zheng2023judging",)
LOSS_RATIO = ("li2024quantity",)  # IFD with ratio=loss, which Superfiltering does not use
# References of a part by the name of its class; a part of our own has none.
PART_REFERENCES: dict[str, tuple[str, ...]] = {
    "GSNR": METHOD,
    "RawDrop": METHOD,
    "NormalizedDrop": METHOD,
    "VarianceOnly": METHOD,
    "RankGSNR": METHOD,
    "DirectionGSNR": METHOD,
    "GradNorm": ("paul2021diet",),
    "EL2N": ("paul2021diet",),
    "Learnability": ("mindermann2022rho",),
    "IFD": ("li2024superfiltering", "li2024quantity"),
    "LossScorer": ("marion2023less",),
    "PerplexityMiddle": ("marion2023less",),
    "LengthScorer": ("zhao2024long",),
    "LESS": ("xia2024less",),
    "FacilityLocationSelector": ("li2024superfiltering",),
    "KCenterSelector": ("sener2018coreset",),
    "SpiceSelector": ("chang2026spice",),
    "DeduplicatedSelector": ("broder1997resemblance",),
    "LoraEnsemble": ENSEMBLE,
    "EnsembleSettings": ENSEMBLE,  # the former name
    "BootstrapEnsemble": ENSEMBLE,
    "DropoutEnsemble": (*ENSEMBLE, "gal2016dropout"),
    "SnapshotEnsemble": (*ENSEMBLE, "huang2017snapshot"),
    "OpenAIJudge": MODEL_JUDGE,
    "LocalJudge": MODEL_JUDGE,
    "ReplayJudge": MODEL_JUDGE,
}
# References by a pattern in the name or path of a base model, and of a dataset.
MODEL_REFERENCES = {"gpt2": "radford2019gpt2", "llama-?2": "touvron2023llama2"}
DATASET_REFERENCES = {"alpaca[-_]gpt4": "peng2023alpacagpt4", "alpaca(?![-_]gpt4)": "taori2023alpaca"}


@cache
def read_bibliography() -> BibliographyData:
    """Read `references.bib`."""
    text = (files("gradfiltering.reports") / "references.bib").read_text("utf-8")
    return parse_string(text, "bibtex")


def list_references(run_config: Mapping[str, Any], run_summary: Mapping[str, Any]) -> list[str]:
    """List the keys of the publications behind a run: methods as they followed each other, models, data, judging.

    A part that the summary does not mention was configured and not used.
    """
    target_config, selection_summary = run_config.get("target") or {}, run_summary.get("selection", {})
    reference_keys: list[str] = []
    if "proxy" in run_summary:
        reference_keys += _part_references(run_config.get("ensemble"))
    if "proxy" in run_summary or "influence" in run_summary:
        reference_keys.append(LORA)
    model_configs = [run_config.get("proxy"), target_config if "target" in run_summary else None]
    if target_config.get("data") == "lead":  # the target takes the place of proxy, scorer and selector
        reference_keys += ["lin2025lead", *_part_references(target_config.get("lead"))]
        model_configs = [target_config]
    else:
        if selection_summary.get("scorer") or any(stage["name"] == "score" for stage in run_summary.get("stages", [])):
            reference_keys += _part_references(run_config.get("scorer"))
        if selection_summary:
            reference_keys += _part_references(run_config.get("selector"))
    if "target" in run_summary:
        reference_keys.append(LORA)
    reference_keys += _match_references(MODEL_REFERENCES, _collect_texts(model_configs, {"model"}))
    reference_keys += _match_references(DATASET_REFERENCES, _collect_texts(run_config.get("data"), {"name", "path"}))
    if run_summary.get("pws"):
        reference_keys += [*_part_references(run_config.get("judge")), "efron1993bootstrap"]
    return list(dict.fromkeys(reference_keys))


def format_bibtex(run_config: Mapping[str, Any], run_summary: Mapping[str, Any]) -> str:
    """Write the references of a run as one BibTeX file; empty where there are none."""
    bib_entries = read_bibliography().entries
    used_entries = {key: bib_entries[key] for key in list_references(run_config, run_summary)}
    bibtex: str = BibliographyData(used_entries).to_string("bibtex")
    return bibtex.strip()


def _part_references(part: Any) -> Iterator[str]:
    """Find the references of a part and of the parts inside it."""
    if isinstance(part, Mapping):
        class_name = str(part.get("_target_", "")).rpartition(".")[2]
        uses_loss_ratio = class_name == "IFD" and part.get("ratio") == "loss"
        yield from LOSS_RATIO if uses_loss_ratio else PART_REFERENCES.get(class_name, ())
    for inner_part in _inner_parts(part):
        yield from _part_references(inner_part)


def _match_references(pattern_references: Mapping[str, str], found_texts: Iterator[str]) -> list[str]:
    text = "\n".join(found_texts).lower()
    return [key for name_pattern, key in pattern_references.items() if re.search(name_pattern, text)]


def _collect_texts(part: Any, option_names: set[str]) -> Iterator[str]:
    """Collect the texts under these names in a part and in the parts inside it."""
    if isinstance(part, Mapping):
        yield from (value for name, value in part.items() if name in option_names and isinstance(value, str))
    for inner_part in _inner_parts(part):
        yield from _collect_texts(inner_part, option_names)


def _inner_parts(part: Any) -> Iterator[Any]:
    if isinstance(part, Mapping):
        yield from part.values()
    elif isinstance(part, list):
        yield from part
