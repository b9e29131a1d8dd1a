"""Changing a configuration field looks for other results of exactly the stages that depend on it.

The experiment runs as it is, but training and measuring are stood in for by arrays that follow from what they would
have been made of: so nothing is trained, and a stage sees another input wherever it really would.
"""

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gradfiltering.ensembles.member_cache import ONLINE_LOG_FILE
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.experiment.model_loading import load_language_model
from gradfiltering.finetuning.fine_tune import FineTuningResult
from gradfiltering.requests import EpochLog
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.files import hash_key
from gradfiltering.runs.gradient_log import write_member
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.synthetic.pretraining import hash_corpus, new_model, train_tokenizer
from tests.support.configuration_fields import EVERYTHING, LEFT_OUT, PROXY_TEXT, TEXT, TOUCHING, UNTOUCHING
from tests.support.pipeline import ROOT, run_train

# direction_gsnr looks at projections too, which the default scorer does not.
BASE = [
    "logger=none", "until=target", "progress=false", "report.page=false", "scorer=direction_gsnr",
    "projection.width=8", "batch.tokens=512",
    "data.rows=60", "data.heldout_rows=8", "ensemble.m=2", "ensemble.lora.rank=2", "diagnostics.bootstrap=5",
    *(f"{model}.base_model.{one}" for model in ("proxy", "target") for one in (
        "layers=1", "width=32", "heads=2", "vocabulary=400", "characters=20000")),
]  # fmt: skip
PAIRED = {  # other fields that a value needs
    "epochs.early": ["epochs.late=2"],
}


def leaves(node, place=""):
    for key, value in node.items():
        path = f"{place}.{key}".lstrip(".")
        if isinstance(value, dict):
            yield from leaves(value, path)
        elif not key.startswith("_"):
            yield path


def default_fields() -> set[str]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg: DictConfig = compose("train", overrides=["run_dir=somewhere"])
    return set(leaves(OmegaConf.to_container(cfg, resolve=False)))


def test_every_field_is_said_to_touch_something_or_nothing():
    said = [*TOUCHING, *UNTOUCHING, *LEFT_OUT]
    assert len(said) == len(set(said)), "a field stands in two tables"
    missing, gone = default_fields() - set(said), set(said) - default_fields()
    assert not missing, f"say in tests/support/configuration_fields.py which stages these touch: {sorted(missing)}"
    assert not gone, f"no field of the default configuration: {sorted(gone)}"


class Keys:
    """What was looked for in the cache: stage -> keys."""

    def __init__(self):
        self.found: dict[str, list[str]] = {}

    def note(self, stage, key):
        known = self.found.setdefault(stage, [])
        if hash_key(key) not in known:
            known.append(hash_key(key))

    def lookup(self, stage, key):
        # The target's base model comes second, and what is tokenised after it is tokenised for the target.
        target = len(self.found.get("base_models", [])) > 1 and stage == "tokens"
        self.note("target_tokens" if target else stage, key)

    def stages(self):
        models = dict(zip(("candidate", "full", "random"), self.found.get("targets", []), strict=False))
        base_models = dict(zip(("base_model", "target_base_model"), self.found.get("base_models", []), strict=False))
        rest = {stage: set(keys) for stage, keys in self.found.items() if stage not in ("targets", "base_models")}
        return {**rest, **{name: {key} for name, key in {**models, **base_models}.items()}}


def digest(*arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)).hexdigest()


def weights(model) -> str:
    return digest(*(value.detach().double().numpy() for _, value in sorted(model.state_dict().items())))


def pretrain(folder, documents, shape, settings, seed, trainer):
    tokenizer = train_tokenizer(documents, shape["vocabulary"])
    model = new_model(shape, tokenizer, seed)
    seed_of_model = derive_seed("stand-in", hash_key({**shape, **asdict(settings)}), hash_corpus(documents), seed)
    rng = torch.Generator().manual_seed(seed_of_model)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(generator=rng)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def made_up(examples, members, *names) -> EpochLog:
    norm, loss = numpy_rng("stand-in", *names).random((2, members, len(examples))) + 0.1
    return EpochLog(examples.example_ids, norm, loss, examples.response_tokens)


def write_online_log(member_folder, log):
    write_member(member_folder / ONLINE_LOG_FILE, log, 0)


def train_members(stack_trainer, initial_state, data):
    member_cache = stack_trainer.member_cache
    for epoch, _, _ in data.stretches:
        for position, member_id in enumerate(data.member_ids):
            key = member_cache.member_key(member_id, epoch)
            rng = torch.Generator().manual_seed(derive_seed("stand-in", hash_key(key)))
            own = initial_state.select_member(position).adapters
            adapters = {name: value + torch.randn(value.shape, generator=rng).to(value) for name, value in own.items()}
            write_log = None
            if stack_trainer.settings.collect == "online":
                log = made_up(data.examples, 1, hash_key(key))
                write_log = partial(write_online_log, log=log)
            state = StackState(adapters, {}, epoch)
            member_cache.commit_member(key, state, stack_trainer.model, 1.0, [], write_log)


def measure_rows(passes, member_ids, epoch, gradient_sketch, shards):
    examples, members = passes.examples, len(member_ids)
    adapters = passes.ensemble.load_adapters(member_ids, epoch)
    names = digest(*(adapters[name].double().numpy() for name in sorted(adapters)), examples.example_ids)
    log = made_up(examples, members, names)
    shards.record(log.example_ids, log.grad_norm, log.loss)
    if gradient_sketch is None:
        return None
    rng = numpy_rng("projection", names, gradient_sketch.width, gradient_sketch.seed)
    return rng.normal(size=(members, len(examples), gradient_sketch.width))


def measure_row_losses(passes, member_ids, epoch, shards):
    measure_rows(passes, member_ids, epoch, None, shards)


def compute_losses(context, objective, examples):
    return numpy_rng(weights(context.base_model.model)).random(len(examples))


def fine_tune(model_name, examples, context, output_folder, resume_point, schedule=None):
    (output_folder / "adapter").mkdir()
    (output_folder / "adapter" / "adapter_config.json").write_text("{}")
    (output_folder / "curve.csv").write_text("step\n")
    return FineTuningResult(1, len(examples), 1, 1.0, 1.0, 1.0, 1)


STAND_INS = {
    "gradfiltering.synthetic.causal_training.pretrain": pretrain,
    "gradfiltering.ensembles.stack_training.StackTrainer.train": train_members,
    "gradfiltering.evidence.ensemble_passes.EnsemblePasses._measure_rows": measure_rows,
    "gradfiltering.evidence.ensemble_passes.EnsemblePasses._measure_row_losses": measure_row_losses,
    "gradfiltering.evidence.base_model_losses._compute_losses": compute_losses,
    "gradfiltering.finetuning.fine_tune.fine_tune": fine_tune,
}


@pytest.fixture(scope="module")
def look_up(tmp_path_factory):
    """What a run with some overrides looks for, in a cache of its own."""

    def run(*overrides):
        keys, folder = Keys(), tmp_path_factory.mktemp("run")
        original = Cache.find

        def find(cache, stage, key, **options):
            keys.lookup(stage, key)
            return original(cache, stage, key, **options)

        with pytest.MonkeyPatch.context() as patch:
            for place, stand_in in STAND_INS.items():
                patch.setattr(place, stand_in)
            patch.setattr(Cache, "find", find)
            places = [f"run_dir={folder / 'run'}", f"hydra.run.dir={folder / 'run'}", f"cache.path={folder / 'cache'}"]
            run_train(*BASE, *places, *overrides)
        return keys.stages()

    return run


@pytest.fixture(scope="module")
def usual(look_up):
    found = look_up()
    assert set(found) == EVERYTHING, "the run did not look for a result of every stage"
    return found


def differing(one, other) -> set[str]:
    stages = (one.keys() | other.keys()) - {"calibrations"}  # speeds that plans are made of, and no result
    return {stage for stage in stages if one.get(stage) != other.get(stage)}


def given(field, value) -> str:
    text = str(value).replace(" ", "").replace("'", "") if isinstance(value, list) else value
    return f"{field}={text}"


@pytest.mark.slow
def test_the_same_again_looks_for_the_same(usual, look_up):
    assert differing(usual, look_up()) == set()


def test_fields_that_no_result_depends_on_touch_nothing(usual, look_up):
    """All at once: what does not change with all of them does not change with one."""
    fields = [given(field, value) for field, value in UNTOUCHING.items()]
    assert differing(usual, look_up("logger=wandb", *fields)) == set()


@pytest.mark.slow
def test_an_earlier_end_looks_for_less_and_nothing_else(usual, look_up):
    found = look_up("until=select")
    assert set(found) == {"row_hygiene", *PROXY_TEXT} - {"candidate"}
    assert all(found[stage] == usual[stage] for stage in found)


QUICK = ("ensemble.lr", "selector.fraction")  # the others take minutes together


def changed(field, look_up, folder: Path) -> dict[str, set[str]]:
    value = TOUCHING[field][0]
    if value == TEXT:
        text = folder / "text.txt"
        text.write_text("A hen lays an egg.\n\n\nA cow gives milk.\n" * 50, encoding="utf-8")
        value = [str(text)]
    return look_up(given(field, value), *PAIRED.get(field, []))


@pytest.mark.parametrize(
    "field", [field if field in QUICK else pytest.param(field, marks=pytest.mark.slow) for field in TOUCHING]
)
def test_a_field_touches_exactly_the_stages_that_depend_on_it(field, usual, look_up, tmp_path):
    assert differing(usual, changed(field, look_up, tmp_path)) == TOUCHING[field][1]


def test_another_scorer_touches_no_stage_of_the_proxy(usual, look_up):
    found = look_up("scorer=raw_drop")
    assert differing(usual, found) == {"projections", "candidate"} and "projections" not in found


@pytest.mark.slow
@pytest.mark.parametrize("field", ["ensemble.m", "epochs.late"])
def test_more_of_an_ensemble_adds_to_what_is_there(field, usual, look_up, tmp_path):
    found = changed(field, look_up, tmp_path)
    assert usual["members"] < found["members"]


@pytest.mark.parametrize(("context", "times_loaded"), [(128, 1), (64, 2)])
def test_one_model_as_proxy_and_target_is_loaded_once(context, times_loaded, look_up, monkeypatch):
    loaded_sources = []

    def load(source, *arguments):
        loaded_sources.append(source)
        return load_language_model(source, *arguments)

    for module in ("run", "stages.target"):
        monkeypatch.setattr(f"gradfiltering.experiment.{module}.load_language_model", load)
    look_up("target.base_model.architecture=gpt2", f"target.base_model.context={context}")
    assert len(loaded_sources) == times_loaded
