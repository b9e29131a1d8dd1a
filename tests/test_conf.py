"""Every YAML under conf/ composes, resolves, and fits the signature of what it builds."""

import inspect
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gradfiltering.config.build import build
from gradfiltering.requests import Request

CONF = Path(__file__).parents[1] / "conf"
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}
COMBINED = ["[paper_main,bundled]", "[convergence,bundled]"]
# Whose signatures take the remaining keywords.
FORWARDS = {
    "lightning.pytorch.loggers.WandbLogger": ["wandb.init"],
    "gradfiltering.reports.wandb_logger.RunWandbLogger": ["lightning.pytorch.loggers.WandbLogger", "wandb.init"],
}
PLACEHOLDER = "filled in by the test"

FILES = sorted(CONF.rglob("*.yaml"))
SHARED = [file for file in FILES if file.is_relative_to(CONF / "shared")]
EXPERIMENTS = [file for file in FILES if file.is_relative_to(CONF / "experiment")]
METHODS = [file for file in FILES if file.is_relative_to(CONF / "method")]
HELP = CONF / "hydra" / "help" / "manual.yaml"
FOR_HYDRA = [file for file in FILES if file.is_relative_to(CONF / "hydra")]  # its help, and a launcher: test_slurm.py
OPTIONS = [file for file in FILES if file.parent != CONF and file not in (*SHARED, *EXPERIMENTS, *METHODS, *FOR_HYDRA)]


def name_of(file: Path) -> str:
    return file.relative_to(CONF).with_suffix("").as_posix()


@cache
def composed(*overrides: str) -> DictConfig:
    """What `train.py` gets; required values are filled in and everything resolves. Not to be changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["run_dir=a_folder", *overrides])
    filled = OmegaConf.create(_fill(OmegaConf.to_container(cfg, resolve=False)))
    OmegaConf.resolve(filled)
    return filled


def _fill(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fill(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry) for entry in value]
    return PLACEHOLDER if value == "???" else value


def group_override(file: Path) -> str:
    group, _, option = name_of(file).rpartition("/")
    return f"{group}={option}"


def targets(node: Any, path: str = "") -> list[tuple[str, dict]]:
    """Every node with a `_target_`, nested ones too, with its path."""
    if isinstance(node, list):
        return [found for position, entry in enumerate(node) for found in targets(entry, f"{path}[{position}]")]
    if not isinstance(node, dict):
        return []
    inner = [found for key, entry in node.items() for found in targets(entry, f"{path}.{key}".lstrip("."))]
    return [(path, node), *inner] if "_target_" in node else inner


def misfit(node: dict) -> str | None:
    """Why a node does not fit its target: keys that are no parameter, parameters without a value; None if it fits."""
    target = node["_target_"]
    keys = {key for key in node if key not in HYDRA_KEYS}
    parameters = dict(inspect.signature(get_object(target)).parameters)
    known = {name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    for forwarded in FORWARDS.get(target, ()):
        known |= set(inspect.signature(get_object(forwarded)).parameters)
    if keys - known:
        return f"{target} has no parameter {', '.join(sorted(keys - known))} (it has: {', '.join(sorted(known))})"
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = {n for n, one in parameters.items() if one.kind in plain and one.default is one.empty}
    if required - keys and not node.get("_partial_", False):
        return f"{target} needs {', '.join(sorted(required - keys))}"
    return None


def misfits(cfg: DictConfig) -> list[str]:
    nodes = targets(OmegaConf.to_container(cfg))
    return [f"{path}: {problem}" for path, node in nodes if (problem := misfit(node))]


def defaults_of(file: Path) -> list[str]:
    """Names of the files that the defaults list of `file` names, group options of train.yaml left out."""
    entries = (yaml.safe_load(file.read_text("utf-8")) or {}).get("defaults", [])
    named = [entry.split("@")[0] for entry in entries if isinstance(entry, str) and entry != "_self_"]
    folder = name_of(file).rpartition("/")[0]
    return [name[1:] if name.startswith("/") else f"{folder}/{name}".lstrip("/") for name in named]


def test_all_files_found_are_tested():
    tested = [CONF / "train.yaml", *OPTIONS, *SHARED, *EXPERIMENTS, *METHODS, *FOR_HYDRA]
    assert sorted(tested) == FILES and len(FILES) == len(set(FILES)) > 40
    others = [path for path in CONF.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert not others, f"Hydra does not see {others}; name configuration *.yaml"


def test_train_yaml_composes_and_fits():
    cfg = composed()
    assert misfits(cfg) == []
    assert len(targets(OmegaConf.to_container(cfg))) > 15, "the walk over targets found hardly any"


@pytest.mark.parametrize("file", OPTIONS, ids=name_of)
def test_every_option_composes_as_a_whole_and_fits(file):
    cfg = composed(group_override(file))
    assert misfits(cfg) == []


@pytest.mark.parametrize("file", OPTIONS, ids=name_of)
def test_every_option_brings_something_to_build(file):
    """Some node of the option itself has a target, wherever the option is placed."""
    cfg, name = composed(group_override(file)), name_of(file)
    package = next((line.split()[-1] for line in file.read_text("utf-8").splitlines() if "@package" in line), None)
    place = package or name.rpartition("/")[0].replace("/", ".")
    found = targets(OmegaConf.to_container(OmegaConf.select(cfg, place)))
    assert found, f"nothing under {place} has a _target_"


@pytest.mark.parametrize("file", SHARED, ids=name_of)
def test_every_shared_file_is_part_of_a_tested_option(file):
    reached, open_names = set(), [name_of(option) for option in OPTIONS]
    while open_names:
        name = open_names.pop()
        if name not in reached:
            reached.add(name)
            open_names += defaults_of(CONF / f"{name}.yaml")
    assert name_of(file) in reached, "no option uses this file"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name_of)
def test_every_experiment_composes_and_fits(file):
    assert misfits(composed(f"experiment={file.stem}")) == []
    first = file.read_text("utf-8")
    command = first.split("\n\n")[0].split("defaults", 1)[0]
    assert re.search(rf"experiment=\S*\b{file.stem}\b", command), "an experiment opens with its run command"


@pytest.mark.parametrize("file", METHODS, ids=name_of)
def test_every_method_composes_and_changes_only_what_a_method_is(file):
    cfg, plain = composed(f"method={file.stem}"), composed()
    assert misfits(cfg) == []
    differing = {key for key in plain if cfg[key] != plain[key]}
    assert differing <= {"scorer", "selector", "ensemble", "target"}
    assert file.stem == "gradfiltering" or differing, "the method is what runs anyway"


def swept(experiment: str) -> dict[str, list[str]]:
    """What an experiment sweeps over."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    return {key: str(values).split(",") for key, values in (cfg.hydra.sweeper.params or {}).items()}


@pytest.mark.parametrize("experiment", [*(file.stem for file in EXPERIMENTS), *COMBINED])
def test_every_job_of_an_experiments_sweep_composes_and_fits(experiment):
    """As many jobs as the longest axis has values, which between them have every value of each axis."""
    axes = swept(experiment)
    for number in range(max(map(len, axes.values()), default=0)):
        overrides = [f"{key}={values[number % len(values)]}" for key, values in axes.items()]
        assert misfits(composed(f"experiment={experiment}", *overrides)) == [], overrides


def test_the_shoot_out_takes_in_every_method():
    assert sorted(swept("shootout")["method"]) == sorted(file.stem for file in METHODS)


def test_the_papers_main_table_has_its_24_cases():
    axes = swept("paper_main")
    jobs = len(axes["data"]) * len(axes["target"]) * len(axes["selector.fraction"])
    assert jobs * len(composed("experiment=paper_main").eval.sets) == 24


@pytest.mark.parametrize(("experiment", "jobs"), [("sensitivity", 48), ("ablation", 4)])
def test_an_experiment_that_is_a_sweep_has_its_jobs_in_its_file(experiment, jobs):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = compose("train", overrides=[f"experiment={experiment}"], return_hydra_config=True).hydra.sweeper.params
    lists = [[f"{name}={value}" for value in str(values).split(",")] for name, values in asked.items()]
    assert len(list(product(*lists))) == jobs
    for values in lists:
        for value in values:
            assert misfits(composed(f"experiment={experiment}", value)) == []


def test_every_example_of_the_help_page_composes():
    page = yaml.safe_load(HELP.read_text("utf-8"))["template"]
    examples = [line.split()[2:] for line in page.split("EXAMPLES")[1].splitlines() if "python train.py" in line]
    assert len(examples) >= 5
    for overrides in examples:
        first_of_sweep = [one.split(",")[0] if "-m" in overrides else one for one in overrides if one != "-m"]
        assert misfits(composed(*first_of_sweep)) == []


class TestTheCheckItself:
    """The check above must be able to fail."""

    NODE: dict = {"_target_": "gradfiltering.scorers.gsnr.GSNR", "epsilon": 1e-8, "ddof": 0}  # noqa: RUF012

    def test_a_fitting_node_passes(self):
        assert misfit(self.NODE) is None

    def test_an_unknown_key_is_found(self):
        assert "has no parameter epsilonn" in misfit({**self.NODE, "epsilonn": 1})

    def test_an_unknown_key_behind_keyword_arguments_is_found(self):
        assert misfit({"_target_": "lightning.pytorch.loggers.WandbLogger", "group": "a"}) is None
        assert "no parameter offlin" in misfit({"_target_": "lightning.pytorch.loggers.WandbLogger", "offlin": True})

    def test_an_unknown_key_of_a_partial_node_is_found(self):
        assert "devicez" in misfit({"_target_": "lightning.Trainer", "_partial_": True, "devicez": 1})

    def test_a_missing_parameter_is_found_unless_partial(self):
        node = {"_target_": "gradfiltering.scorers.rank_fusion.RankFusion", "parts": {}}
        assert "needs weights" in misfit(node)
        assert misfit({**node, "_partial_": True}) is None

    def test_nested_targets_are_found_in_mappings_and_lists(self):
        tree = {"a": {"_target_": "x", "b": [{"c": {"_target_": "y"}}]}}
        assert [path for path, _ in targets(tree)] == ["a", "a.b[0].c"]

    def test_a_target_that_does_not_exist_is_an_error(self):
        with pytest.raises(Exception, match="NoSuchScorer"):
            misfit({"_target_": "gradfiltering.scorers.gsnr.NoSuchScorer"})


def test_unknown_keys_and_options_are_errors_that_list_what_exists():
    with pytest.raises(ConfigCompositionException, match=r"selector\.fractoin"):
        composed("selector.fractoin=0.1")
    with pytest.raises(Exception, match=r"(?s)scorer/gsnrr.*gsnr.*raw_drop"):
        composed("scorer=gsnrr")


def test_several_prompt_sets_stand_side_by_side():
    assert set(composed("eval=[vicuna,koala,file]").eval.sets) == {"vicuna", "koala", "file"}


@pytest.mark.parametrize(("data", "sets"), [("tasks", {"tasks"}), ("file", {"heldout"}), ("alpaca", {"heldout"})])
def test_a_dataset_brings_the_prompts_that_suit_it_and_yields_to_the_user(data, sets):
    assert set(composed(f"data={data}").eval.sets) == sets
    assert set(composed(f"data={data}", "eval=vicuna").eval.sets) == {"vicuna"}


@pytest.mark.parametrize(
    "overrides",
    [
        ("scorer=length_controlled", "scorer@scorer.base=loss"),
        ("scorer=fused_rank", "+scorer@scorer.parts.el2n=el2n", "+scorer.weights.el2n=0.5"),
        ("selector=deduplicated", "selector@selector.inner=random", "selector.fraction=0.2"),
        ("selector=two_stage", "selector@selector.second=k_center", "selector.first.fraction=0.3"),
    ],
)
def test_the_parts_of_a_combinator_can_be_swapped(overrides):
    cfg = composed(*overrides)
    assert misfits(cfg) == []
    named = str(OmegaConf.to_container(cfg.scorer)) + str(OmegaConf.to_container(cfg.selector))
    assert any(target in named for target in ("LossScorer", "EL2N", "RandomSelector", "KCenterSelector"))


RANKERS = [one for one in OPTIONS if one.parent.name in ("scorer", "selector")]


@pytest.mark.parametrize("file", RANKERS, ids=name_of)
def test_every_method_can_be_built_and_says_what_it_needs(file):
    method = build(composed(group_override(file))[file.parent.name])
    assert all(isinstance(request, Request) for request in method.requests)
    assert hasattr(method, "row_wise") or isinstance(method.uses_scores, bool)


@pytest.mark.parametrize("file", RANKERS, ids=name_of)
def test_conf_has_the_defaults_of_the_class(file):
    """Files that set a variant (ifd_loss) or parts (fused_rank) differ from the class in these alone."""
    if file.stem not in ("ifd_loss", "fused_rank"):
        method = build(composed(group_override(file))[file.parent.name])
        required = {"path"} if file.stem == "from_file" else set()
        assert method == type(method)(**dict.fromkeys(required, PLACEHOLDER))


@pytest.mark.parametrize("file", RANKERS, ids=name_of)
def test_every_method_stands_in_the_docs_and_has_a_mirrored_test(file):
    assert f"`{file.stem}`" in (CONF.parent / "docs" / "methods.md").read_text("utf-8").split("## Scorers")[1]
    target = composed(group_override(file))[file.parent.name]._target_.split(".")
    folder = CONF.parent / "tests" / target[1]
    assert list(folder.glob(f"test_{target[2]}*.py")), f"no test of {target[2]}"


PAIRS = [one for one in OPTIONS if one.parent.name == "epochs" and one.stem not in ("auto", "updates", "loss_fall")]


@pytest.mark.parametrize("file", PAIRS, ids=name_of)
def test_an_epoch_pairs_name_says_what_it_holds(file):
    epochs = composed(group_override(file)).epochs
    limited = "_limited" if epochs.get("longest_epoch") else ""
    assert file.stem == f"e{epochs.early}_e{epochs.late}{limited}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["proxy=smollm2"], "e1_e2_limited"),
        (["data=file", "data.path=rows.jsonl"], "e1_e2_limited"),
        (["experiment=real", "data.path=alpaca.json"], "e1_e2_limited"),
        (["data=file", "data.path=rows.jsonl", "proxy=tiny"], "e1_e2"),
        (["proxy=smollm2", "epochs=e1_e3"], "e1_e3"),
        ([], "e1_e2"),
    ],
)
def test_a_proxy_whose_norms_rise_late_limits_its_epochs(overrides, expected):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["run_dir=a_folder", *overrides], return_hydra_config=True)
    assert cfg.hydra.runtime.choices.epochs == expected


REAL_ROWS = ["file", "hub", "mixture", "alpaca", "alpaca_gpt4"]


def models_and_end(*overrides: str) -> tuple[str, str, str]:
    """The proxy, the target and the last stage that the command line would run with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["run_dir=a_folder", *overrides], return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    return choices["proxy"], choices["target"], cfg.until


@pytest.mark.parametrize("dataset", REAL_ROWS)
def test_rows_of_a_user_bring_a_real_model_and_end_with_the_selection(dataset):
    assert models_and_end(f"data={dataset}") == ("smollm2", "smollm2", "select")


def test_the_bundled_tasks_keep_the_tiny_models_and_the_whole_experiment():
    assert models_and_end() == models_and_end("data=tasks") == ("tiny", "tiny", "report")


@pytest.mark.parametrize("dataset", REAL_ROWS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["proxy=tiny"], ("tiny", "smollm2", "select")),
        (["target=llama2_7b"], ("smollm2", "llama2_7b", "select")),
        (["until=report"], ("smollm2", "smollm2", "report")),
        (["proxy=gpt2", "target=tiny", "until=target"], ("gpt2", "tiny", "target")),
    ],
)
def test_what_the_command_line_names_wins_over_what_data_brings(dataset, given, expected):
    assert models_and_end(*given, f"data={dataset}") == models_and_end(f"data={dataset}", *given) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=alpaca_small"], ("tiny", "tiny", "report")),
        (["experiment=paper_main", "data=alpaca", "target=llama2_7b"], ("gpt2", "llama2_7b", "report")),
        (["experiment=[paper_main,bundled]"], ("tiny", "tiny", "report")),
        (["experiment=convergence"], ("gpt2", "llama2_13b", "target")),
        (["experiment=[convergence,bundled]"], ("tiny", "tiny", "target")),
        (["experiment=shootout", "data=alpaca"], ("smollm2", "smollm2", "report")),
        (["experiment=shootout"], ("tiny", "tiny", "report")),
        (["experiment=ablation", "data=alpaca"], ("smollm2", "smollm2", "select")),
        (["experiment=quick", "data=file"], ("smollm2", "smollm2", "report")),
    ],
)
def test_an_experiment_keeps_its_models_and_its_last_stage(overrides, expected):
    assert models_and_end(*overrides) == expected


def test_the_quick_experiment_needs_no_gradients_and_one_baseline():
    cfg = composed("experiment=quick", "data=file", "data.path=my.jsonl")
    assert cfg.scorer["_target_"].endswith(".IFD") and list(cfg.judge.against) == ["random"]
    assert (cfg.plan.minutes, cfg.data.heldout.share, cfg.selector.fraction) == (10, 0.1, 0.1)
    named = composed("experiment=quick", "data=file", "data.path=my.jsonl", "scorer=gsnr", "plan.minutes=30")
    assert named.scorer["_target_"].endswith(".GSNR") and named.plan.minutes == 30, "what the user names wins"
    quick = composed("experiment=quick", "method=filtered_random", "data=file", "data.path=my.jsonl")
    alone = composed("method=filtered_random")
    assert (quick.scorer, quick.selector) == (alone.scorer, alone.selector)
