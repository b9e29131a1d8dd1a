"""Every numeric option with values that no number can be: refused with its name and the remedy, or right.

Options are those of the composed configuration that hold a number, or nothing where their class takes a number. All
are tried at the build step, before anything is loaded.
"""

import math
import random
from copy import deepcopy
from typing import get_args, get_type_hints

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gradfiltering.config.build import build_experiment
from gradfiltering.config.composition import composed
from gradfiltering.config.option_names import options_named
from gradfiltering.distributed.process_group import try_trainer
from gradfiltering.errors import UserError
from tests.support.command import run_command

BAD_VALUES = [-1, 0, math.nan, math.inf, -math.inf, 1e309, "text", None, [], True, {}]
SAMPLE, SEED = 60, 0
CHOICES = [  # together they hold every group's numeric options
    ["scorer=gsnr"],
    [
        "ensemble=mc_dropout", "selector=spice", "scorer=less", "data=file", "data.path=rows.jsonl", "judge=openai",
        "target=llama2_7b", "proxy=gpt2",
    ],
    ["judge=human", "selector=deduplicated", "scorer=length_controlled", "epochs=auto"],
    ["judge=local", "judge.model=x", "method=lead", "trainer=ddp_cpu"],
    ["data=mixture", "+data.sources.a={path: rows.jsonl, weight: 1}", "selector=two_stage", "scorer=fused_rank"],
    ["selector=stratified", "scorer=direction_gsnr", "eval=vicuna", "epochs=loss_fall"],
    ["selector=facility_location", "scorer=gsnr_rank", "logger=csv", "epochs=e1_e2_limited"],
]  # fmt: skip

NOTHING = "null: no limit, or the measure is left out"
RIGHT = {  # (end of an option's name, value) -> why the value is right
    ("seed", 0): "a seed like another",
    ("batch.workers", 0): "0: rows are read in the process itself",
    ("batch.prefix_limit", 0): "0: what frozen layers hand on is not kept",
    ("warmup_steps", 0): "0: no warm-up",
    ("warmup_share", 0): "0: no warm-up",
    ("weight_decay", 0): "0: no decay",
    ("init_b_std", 0): "0: the usual start of LoRA, B = 0",
    ("epochs.early", 0): "0: before the training",
    ("ddof", 0): "the population's variance",
    ("scorer.direction", 0): "0: plain G-SNR",
    ("scorer.agreement", 0): "0: ranks alone",
    ("smoothing", 0): "0: only the last round counts",
    ("ensemble.dropout", 0): "0: members that agree; a diagnostic warns of it",
    ("train_dropout", 0): "0: no dropout in training",
    ("report.rows", 0): "0: no row's text on the page",
    ("heldout_rows", 0): "0: no row is held out",
    ("data.heldout.rows", 0): "0: no row is held out",
    ("heldout.share", 0): "0: no share is held out",
    ("data.flipped", 0): "0: no pair of answers is exchanged",
    ("tie_margin", 0): "0: only equal answers tie",
    ("temperature", 0): "0: greedy",
    ("first_wait", 0): "0: tried again at once",
    ("price_per_gpu_hour", 0): "0: free",
    ("latency_us", 0): "0: messages take no time beside their bytes",
    ("max_requests", 0): "0: only replies of earlier runs",
    ("max_cost", 0): "0: only replies of earlier runs",
    ("input_million", 0): "0: free",
    ("output_million", 0): "0: free",
    ("judge.port", 0): "0: a free port",
    ("least_kappa", 0): "no worse than chance",
    ("least_kappa", -1): "never called unusable",
    ("weights.ifd", 0): "the other part alone counts",
    ("weights.learnability", 0): "the other part alone counts",
    ("weights.ifd", -1): "the other way round",
    ("weights.learnability", -1): "the other way round",
    ("selector.conflict", 0): "0: conflicts cost nothing",
    ("stop_below", 0): "0: no early stop",
    ("num_sanity_val_steps", 0): "0: none, as by default",
    ("num_sanity_val_steps", -1): "Lightning's: all; there are no validation steps here",
    ("log_every_n_steps", 0): "0: nothing is logged by step",
    ("diagnostics.median_relative_drop", -1): "warn where the norm doubled",
    ("diagnostics.member_agreement", -1): "never warn; a correlation",
    **{
        (f"diagnostics.{name}", 0): "a limit at the end of its range"
        for name in (
            "positive_drop_share", "median_relative_drop", "relative_variance", "update_ratio", "easiness",
            "negative_selected_share", "length_correlation", "member_agreement", "source_spread", "chance_loss_share",
            "unknown_token_share",
        )
    },
    **{
        (f"corrupt.{kind}", 0): "0: none planted"
        for kind in ("wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")
    },
    **{
        (name, None): NOTHING
        for name in (
            "data.limit", "eval.limit", "clip_norm", "temperature", "max_requests", "max_cost", "input_million",
            "output_million", "keep_below", "num_sanity_val_steps", "log_every_n_steps", "pool", "quota", "stop_below",
            "eval.sets.heldout.rows", "weight", "count", "train_rows", "neighbours",
            "plan.minutes", "fleet.gpus", "peak_tflops", "price_per_gpu_hour",
        )
    },
}  # fmt: skip


def numeric_options(node: DictConfig, path: str = "") -> list[str]:
    """Options that hold a number, or a list of numbers, or null where their class takes a number."""
    names = []
    target = node.get("_target_")
    owner = get_object(target) if target else None
    hints = get_type_hints(owner, include_extras=True) if isinstance(owner, type) else {}
    for name in map(str, node):
        option = f"{path}.{name}".lstrip(".")
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        value = node[name]
        if OmegaConf.is_dict(value):
            names += numeric_options(value, option)
        elif holds_number(value) or (value is None and takes_number(hints.get(name))):
            names.append(option)
    return names


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def holds_number(value) -> bool:
    return any(map(is_number, value)) if OmegaConf.is_list(value) else is_number(value)


def takes_number(hint) -> bool:
    return hint in (int, float) or any(takes_number(part) for part in get_args(hint))


@pytest.fixture(scope="module")
def configurations(tmp_path_factory):
    """The configuration of each choice, within Hydra's state of one of them, which none depends on."""
    folder = tmp_path_factory.mktemp("ranges")
    made = []
    for overrides in CHOICES:
        with composed([*overrides, f"hydra.run.dir={folder}", f"cache.path={folder / 'cache'}"]) as cfg:
            cfg.run_dir = str(folder)
            made.append(deepcopy(cfg))
    with composed([f"hydra.run.dir={folder}"]):
        yield made


def all_cases(configurations) -> list[tuple[int, str, object]]:
    seen, cases = set(), []
    for number, cfg in enumerate(configurations):
        for option in numeric_options(cfg):
            key = (option, str(OmegaConf.select(cfg, option.rpartition(".")[0] + "._target_") if "." in option else ""))
            if key not in seen:
                seen.add(key)
                cases += [(number, option, value) for value in BAD_VALUES]
    return cases


def why_right(option: str, value) -> str:
    if not (value is None or is_number(value)):
        return ""
    reasons = [
        reason
        for (name, right_value), reason in RIGHT.items()
        if (option == name or option.endswith(f".{name}"))
        and (right_value is value if value is None else right_value == value)
    ]
    return next(iter(reasons), "")


def complaint(cfg: DictConfig, option: str, value) -> str:
    """What is wrong with how a value of an option is met; empty where nothing is."""
    tried = deepcopy(cfg)
    OmegaConf.update(tried, option, value, merge=False, force_add=True)
    reason = why_right(option, value)
    try:
        with options_named(tried):
            try_trainer(build_experiment(tried).build_trainer)
    except UserError as refused:
        message = str(refused)
        if reason:
            return f"{option}={value} is refused, but right ({reason}): {message}"
        remedy = any(word in message.lower() for word in ("give", "choose", "must be"))
        return "" if option in message and remedy else f"{option}={value}: no name or no remedy in: {message}"
    except Exception as error:
        return f"{option}={value}: {type(error).__name__}: {error}"
    return "" if reason else f"{option}={value} is taken"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ensemble.clip_norm=-1"], "ensemble.clip_norm=-1: give a positive number or null"),
        (["ensemble.lora.alpha=0"], "ensemble.lora.alpha=0: give a positive number"),
        (["ensemble.lr=0"], "ensemble.lr=0: give a positive number"),
        (["proxy.ensemble.lr=0"], "proxy.ensemble.lr=0: give a positive number"),
        (["scorer.epsilon=inf"], "scorer.epsilon=inf: give a positive number"),
        (["scorer.epsilon=1e309"], "scorer.epsilon=inf: give a positive number"),
        (["seed=abc"], "seed=abc: give a non-negative whole number"),
        (["judge=openai", "judge.max_cost=nan"], "judge.max_cost=nan: give a non-negative number or null"),
        (["ensemble.betas=[0.9,1.0]"], "ensemble.betas[1]=1.0: give a number in [0, 1)"),
        (["method=lead", "target.lead.clusters=0"], "target.lead.clusters=0: give a positive whole number"),
        (["target.lead.clusters=0"], "target.lead.clusters=0: give a positive whole number"),
        (["judge.confidence=1"], "judge.confidence=1: give a number in (0, 1)"),
        (["judge.against=full"], "judge.against=full: give a list"),
        (["debug=perhaps"], "debug=perhaps: give true or false"),
        (["+judge.note={a: [1, nan]}"], "judge.note.a[1]=nan: give a finite number"),
        (["+trainer.limit_train_batches=0.1"], "trainer.limit_train_batches is no option"),
        (["trainer.accelerator=abacus"], "no such trainer can be made on this machine"),
        (["trainer.devices=0"], "trainer.devices=0: give"),
        (["scorer=less", "epochs=auto"], "Interpolation key 'epochs.late' not found"),
        (["+logger.none.wings=2"], "logger.none cannot be built: "),
    ],
)
def test_wrong_options_of_the_command_line_are_named(overrides, message, tmp_path):
    with (
        pytest.raises(UserError) as refused,
        composed([*overrides, f"hydra.run.dir={tmp_path}", "logger=none"]) as cfg,
        options_named(cfg),
    ):
        experiment = build_experiment(cfg)
        try_trainer(experiment.build_trainer)
        experiment.build_loggers()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["cache", "prune", "--older-than", "nan"],
        ["cache", "prune", "--older-than", "-1"],
        ["cache", "prune", "--older-than", "1e309"],
        ["cache", "prune", "--larger-than", "inf"],
        ["cache", "prune", "--larger-than", "many"],
        ["judge", "rescore", "a.json", "--confidence", "nan"],
        ["judge", "rescore", "a.json", "--resamples", "0"],
        ["judge", "rescore", "a.json", "--seed", "-1"],
        ["judge", "harness", "run", "--tasks", "a", "--shots", "-1"],
    ],
)
def test_wrong_numbers_of_the_tools_are_refused(arguments, capsys):
    assert run_command(*arguments) == 2
    shown = capsys.readouterr().err
    assert arguments[-2] in shown and "Traceback" not in shown


def test_a_sample_of_wrong_numbers_is_refused_by_name(configurations):
    cases = random.Random(SEED).sample(all_cases(configurations), SAMPLE)
    complaints = [complaint(configurations[number], option, value) for number, option, value in cases]
    assert "\n".join(filter(None, complaints)) == ""


@pytest.mark.slow
def test_every_wrong_number_is_refused_by_name(configurations):
    cases = all_cases(configurations)
    assert len(cases) > 1500
    complaints = [complaint(configurations[number], option, value) for number, option, value in cases]
    assert "\n".join(filter(None, complaints)) == ""
