"""Writes the reference of options from the configuration: values from conf/, ranges and meanings from the classes.

    python scripts/options_reference.py > options.md

`make docs` makes the page anew each time, so that it cannot be out of date.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from gradfiltering.config.plain_options import RunSwitches
from gradfiltering.options import describe_type

CONF = Path(__file__).parents[1] / "conf"
PART_GROUPS = (
    "data", "proxy", "ensemble", "gradients", "epochs", "scorer", "selector", "target", "eval", "judge", "trainer",
    "logger",
)  # fmt: skip
LONE_GROUPS = ("gradients", "epochs", "scorer", "selector")  # whose files change no other group
PRESET_GROUPS = ("method", "experiment")
PACKAGES = {"eval": "eval.sets.{choice}", "logger": "logger.{choice}"}
# What a group's options are for, in the order of PART_GROUPS.
GROUP_PURPOSES = {
    "data": "Where the rows come from.",
    "proxy": "The small model that rows are scored with.",
    "ensemble": "The adapters on it, whose gradients are measured.",
    "gradients": "How per-example gradients are computed.",
    "epochs": "The two snapshots that are compared.",
    "scorer": "How rows are ranked ([formulas](methods.md)).",
    "selector": "Which of the ranked rows are taken ([list](methods.md#selectors)).",
    "target": "The model that is fine-tuned on the subset, and on what it is compared with.",
    "eval": "The prompts that fine-tuned models answer. Several: `'eval=[vicuna,koala]'`.",
    "judge": "Who compares the answers ([how](judging.md)).",
    "trainer": "Devices ([several GPUs and nodes](multi_device.md)).",
    "logger": "Where numbers, tables and figures go besides the run folder. Several: `logger=[wandb,csv]`.",
    "method": "A published recipe: scorer, selector and ensemble at once.",
    "experiment": "A study ready to run.",
}
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
LIBRARY_MEANINGS = {  # arguments of other libraries' classes
    "trainer.accelerator": "kind of device, as Lightning's Trainer takes it",
    "trainer.devices": "number of devices, -1 for all",
    "trainer.num_nodes": "number of machines",
    "trainer.strategy": "how processes work together",
    "trainer.precision": "of the trainer itself; that of the models is `precision=`",
    "trainer.enable_checkpointing": "left off: the project stores its own checkpoints",
    "trainer.enable_model_summary": "left off: the summary would list every adapter",
    "trainer.use_distributed_sampler": "left off: each row is measured exactly once without it",
    "trainer.num_sanity_val_steps": "left at 0: nothing is validated by Lightning",
    "trainer.log_every_n_steps": "steps between logged numbers",
    "logger.csv.save_dir": "folder that it writes into",
    "logger.csv.name": "its subfolder",
    "logger.csv.version": "a further subfolder; empty for none",
    "logger.tensorboard.save_dir": "folder that it writes into",
    "logger.tensorboard.name": "its subfolder",
    "logger.tensorboard.version": "a further subfolder; empty for none",
    "logger.tensorboard.default_hp_metric": "left off: there is no one number that judges a run",
    "logger.wandb.offline": "true: nothing is sent until `wandb sync`",
    "logger.wandb.project": "project of W&B",
    "logger.wandb.save_dir": "folder that it writes into",
    "logger.wandb.settings.silent": "true: W&B prints nothing",
    "logger.wandb.settings.console": "left off: the screen is not copied",
    "logger.wandb.settings.disable_git": "true: nothing of the repository is sent",
    "logger.wandb.settings.disable_code": "true: no code is sent",
    "logger.wandb.settings.x_save_requirements": "whether installed packages are listed; environment.json lists them",
    "logger.wandb.tags": "tags of the run in W&B",
}


@dataclass
class OptionEntry:
    """Description of an option.

    Attributes:
        values: choice of the group -> default.
        meaning: a phrase, empty where there is none.
        allowed: the values that it may have, in words.
    """

    values: dict[str, str] = field(default_factory=dict)
    meaning: str = ""
    allowed: str = ""


def write_options_page() -> str:
    """Write the whole page in Markdown."""
    comments = read_all_comments()
    sections = [
        "# Options\n",
        "Made from the configuration. Choices of a group are swapped by name (`scorer=raw_drop`), values by their full "
        "name (`ensemble.lr=1e-3`). A default such as `as proxy.max_tokens` follows another option. "
        "`python train.py --cfg job` prints the configuration of a run.\n",
        "## General\n",
        *_write_table(collect_general(comments)),
    ]
    compositions = list(compose_all_choices())
    for group in PART_GROUPS:
        sections += [f"\n## {group}\n", GROUP_PURPOSES[group] + "\n", *_write_choices(group)]
        if entries := collect_group(group, compositions, comments):
            sections += ["", *_write_table(entries)]
    for group in PRESET_GROUPS:
        sections += [f"\n## {group}\n", GROUP_PURPOSES[group] + "\n", *_write_choices(group)]
    return "\n".join(sections) + "\n"


def collect_general(comments: Mapping[str, str]) -> dict[str, OptionEntry]:
    """Collect the options that belong to no group."""
    node = OmegaConf.load(CONF / "train.yaml")
    plain_node = {key: value for key, value in _to_plain(node).items() if key not in ("defaults", "hydra")}
    switches = get_type_hints(RunSwitches, include_extras=True)
    entries: dict[str, OptionEntry] = {}
    for path, value, owner in walk_options(plain_node):
        entry = entries.setdefault(path, OptionEntry({"": value}))
        entry.meaning, entry.allowed = describe_option(path, owner, comments)
        if path in switches:
            entry.allowed = describe_type(switches[path])
    return entries


def collect_group(
    group: str, compositions: list[dict[str, Any]], comments: Mapping[str, str]
) -> dict[str, OptionEntry]:
    """Collect the options of a group over all its choices."""
    entries: dict[str, OptionEntry] = {}
    for composition in compositions:
        choice = composition["choices"].get(group)
        if choice is None:
            continue
        package = PACKAGES.get(group, group).format(choice=choice)
        node: Any = composition["config"]
        for name in package.split("."):
            node = node.get(name, {})
        for path, value, owner in walk_options(node, package):
            entry = entries.setdefault(path, OptionEntry())
            entry.values[choice] = value
            meaning, allowed = describe_option(path, owner, comments)
            entry.meaning, entry.allowed = entry.meaning or meaning, entry.allowed or allowed
    return entries


def compose_all_choices() -> Iterator[dict[str, Any]]:
    """Compose configurations that together have every choice of every group, as few as possible."""
    choices = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in PART_GROUPS}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, of files that it takes for whole configurations
        for group in LONE_GROUPS:
            for name in choices.pop(group):
                yield {"choices": {group: name}, "config": _to_plain(compose(f"{group}/{name}"))}
        for index in range(max(map(len, choices.values()))):
            chosen = {group: names[min(index, len(names) - 1)] for group, names in choices.items()}
            overrides = [f"{group}={name}" for group, name in chosen.items()]
            cfg = compose("train", overrides=[*overrides, "run_dir=RUN_FOLDER"])
            yield {"choices": chosen, "config": _to_plain(cfg)}


def walk_options(
    node: Mapping[str, Any], prefix: str = "", owner: tuple[Any, str] | None = None
) -> Iterator[tuple[str, str, tuple[Any, str] | None]]:
    """Yield full name, default and owner (class and argument) of every option below a node."""
    target = get_object(node["_target_"]) if "_target_" in node else None
    for name, value in node.items():
        if name.startswith("_"):
            continue
        path = f"{prefix}.{name}" if prefix else name
        own = (target, name) if target is not None else owner
        if isinstance(value, Mapping) and value:
            yield from walk_options(value, path, own)
        else:
            yield path, _show_value(value), own


def describe_option(path: str, owner: tuple[Any, str] | None, comments: Mapping[str, str]) -> tuple[str, str]:
    """Return meaning and allowed values of an option, as far as they are known."""
    meaning, allowed = comments.get(path, "") or LIBRARY_MEANINGS.get(path, ""), ""
    if owner is not None:
        target, argument = owner
        if argument == path.rpartition(".")[2]:
            allowed = _describe_argument(target, argument)
        meaning = meaning or read_docstring_arguments(target).get(argument, "")
    return meaning.rstrip("."), allowed


def read_docstring_arguments(target: Any) -> dict[str, str]:
    """Read what docstrings of a class and its bases (or of a function) say of each argument."""
    meanings: dict[str, str] = {}
    for documented in reversed(inspect.getmro(target)) if isinstance(target, type) else [target]:
        for section in re.findall(
            r"(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)+)", inspect.getdoc(documented) or "", re.MULTILINE
        ):
            for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
                meanings[name] = " ".join(text.split())
    return meanings


def read_all_comments() -> dict[str, str]:
    """Read the comments beside the options of every file of conf/: full name -> comment."""
    comments: dict[str, str] = {}
    shared = {"judging": "judge", "llm_judging": "judge", "loaded_records": "data", "records": "data",
              "pretrained_proxy": "proxy", "pretrained_target": "target", "tuning": "target"}  # fmt: skip
    files = {path: shared.get(path.stem, "") for path in sorted((CONF / "shared").glob("*.yaml"))}
    for group in PART_GROUPS:
        package = PACKAGES.get(group, group)
        files |= {path: package.format(choice=path.stem) for path in sorted((CONF / group).glob("*.yaml"))}
    for path, prefix in {**files, CONF / "train.yaml": ""}.items():
        for name, comment in read_comments(path.read_text("utf-8")):
            comments.setdefault(f"{prefix}.{name}".lstrip("."), comment)
    return comments


def read_comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a YAML file that have a comment beside or below them, with it."""
    stack: list[tuple[int, str]] = []
    pending: tuple[str, str] | None = None
    for line in text.splitlines():
        continued = re.fullmatch(r"\s+# (.*)", line)
        if continued and pending:
            pending = (pending[0], f"{pending[1]} {continued[1]}")
            continue
        if pending:
            yield pending
            pending = None
        key = re.match(r"(\s*)([\w]+):(.*)", line)
        if not key or line.lstrip().startswith("#"):
            continue
        while stack and stack[-1][0] >= len(key[1]):
            stack.pop()
        stack.append((len(key[1]), key[2]))
        comment = re.search(r"\s# (.*)$", key[3])
        if comment:
            pending = (".".join(name for _, name in stack), comment[1])
    if pending:
        yield pending


def read_header(path: Path) -> str:
    """Read the comment that a file of conf/ opens with."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _describe_argument(target: Any, argument: str) -> str:
    try:
        hints = get_type_hints(target, include_extras=True)
        if isinstance(target, type) and argument not in hints:
            hints = get_type_hints(inspect.getattr_static(target, "__init__"), include_extras=True)
    except (NameError, TypeError):
        return ""
    if argument not in hints:
        return ""
    described = describe_type(hints[argument])
    return described if "typing." not in described and not described.startswith("a Any") else ""


def _write_choices(group: str) -> list[str]:
    describe: Callable[[Path], str] = read_header
    if group in ("scorer", "selector"):
        describe = _describe_scorer
    lines = []
    for path in sorted((CONF / group).glob("*.yaml")):
        description = describe(path).replace("*", "\\*")
        lines.append(f"- `{group}={path.stem}`" + (f": {description}" if description else ""))
    return lines


def _describe_scorer(path: Path) -> str:
    if header := read_header(path):
        return header
    target = get_object(yaml.safe_load(path.read_text("utf-8"))["_target_"])
    return (inspect.getdoc(target) or "").partition("\n")[0]


def _write_table(entries: Mapping[str, OptionEntry]) -> list[str]:
    lines = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for path, entry in sorted(entries.items()):
        cells = [f"`{path}`", _show_defaults(entry.values), entry.allowed, entry.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _show_defaults(values: Mapping[str, str]) -> str:
    different = sorted(set(values.values()))
    if len(different) == 1:
        return different[0]
    choices_by_value = {
        value: ", ".join(choice for choice in sorted(values) if values[choice] == value) for value in different
    }
    return "; ".join(f"{value} ({choices})" for value, choices in choices_by_value.items())


def _show_value(value: Any) -> str:
    if value == "???":
        return "required"
    if isinstance(value, str) and (reference := INTERPOLATION.fullmatch(value)):
        return f"as `{reference[1]}`"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}`"


def _to_plain(node: Any) -> dict[str, Any]:
    plain_node = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain_node, dict), "every file of conf/ is a mapping"
    return {str(name): value for name, value in plain_node.items()}


if __name__ == "__main__":
    print(write_options_page(), end="")
