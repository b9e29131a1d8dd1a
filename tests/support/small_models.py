from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.data.dataset import Columns
from gradfiltering.data.encoder import Encoder
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.causal_model import token_nll
from gradfiltering.models.lora import LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import GradientLog
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.reference.gradients import LoopEngine
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import ROWS, SHAPE, float64_base_model, measurement_context, small_ensemble

VOCABULARY = 64


class FixedLogits:
    """A causal model that gives the same logits whatever it reads."""

    def __init__(self, logits):
        self.logits = logits

    def token_losses(self, input_ids, labels):
        return token_nll(self.logits, labels)


@pytest.fixture
def make_model(monkeypatch) -> Callable:
    """Builds small random models that compute in float64 throughout where their weights are float64.

    transformers' LLaMA takes norms and softmaxes in float32 whatever the weights' type. Then the width of a batch, and
    the kernels of a processor, show in the last bits of float32, which would hide a leak of the same size.
    """
    softmax = torch.nn.functional.softmax

    def exact_softmax(scores, dim, dtype=None):
        return softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    def exact_norm(self, hidden):
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden.dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact_softmax)
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)

    def make(architecture: str = "gpt2", dtype: torch.dtype = torch.float64):
        torch.manual_seed(0)
        if architecture == "gpt2":
            config = GPT2Config(
                vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
                bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            model = GPT2LMHeadModel(config)
        else:
            config = LlamaConfig(
                vocab_size=VOCABULARY, max_position_embeddings=32, hidden_size=16, intermediate_size=24,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, attn_implementation="eager",
                bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        return model.to(dtype).eval().requires_grad_(False)

    return make


@pytest.fixture
def make_adapters() -> Callable:
    def make(model, members=(0, 1, 2), targets="all-linear", rank=3, seed=0, layers="all"):
        """Adapters in mid-training: B is not zero, so A has a gradient as well."""
        settings = LoraSettings(rank=rank, alpha=6, target_modules=targets, init_b_std=0.1, layers=layers)
        attached = settings.attach(model)
        dtype = next(model.parameters()).dtype
        start = initial_adapters(attached, settings, members, seed)
        return attached, {name: value.to(dtype) for name, value in start.items()}, settings

    return make


@pytest.fixture
def make_batch() -> Callable:
    def make(lengths, prompts, members=None, seed=0, pad_to=None, ids=None):
        """Random rows; with `members`, each member has rows of its own."""
        rng = torch.Generator().manual_seed(seed)
        width = pad_to or max(lengths)
        shape = (len(lengths), width) if members is None else (members, len(lengths), width)
        input_ids = torch.randint(1, VOCABULARY, shape, generator=rng)
        labels = input_ids.clone()
        for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
            input_ids[..., row, length:] = 0
            labels[..., row, length:] = IGNORED
            labels[..., row, :prompt] = IGNORED
        known = torch.arange(len(lengths)) if ids is None else torch.as_tensor(ids)
        leading_shape = input_ids.shape[:-1]
        known_lengths = torch.as_tensor(lengths).expand(leading_shape)
        return Batch(input_ids, labels, known.expand(leading_shape), lengths=known_lengths)

    return make


@pytest.fixture(scope="module")
def records():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    return TaskSource(ROWS, 5, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)


@pytest.fixture(scope="module")
def tokenizer(records):
    return train_tokenizer([row["instruction"] + " " + row["output"] for row in records.rows], SHAPE["vocabulary"])


@pytest.fixture
def train(records, tokenizer, tmp_path):
    """Measures the gradient log of a small ensemble; `train.report` tells what it cost."""
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache"))

    def run(name, ensemble=None, pair=(1, 2), tokens=4096, seed=0, cache=None, trainer=quiet_trainer):
        """Trains with a cache of the run's own unless one is given."""
        context = measurement_context(
            records, float64_base_model(tokenizer), tmp_path / name, cache or tmp_path / "caches" / name, trainer,
            encoder=encoder, ensemble=ensemble or small_ensemble(), snapshots=SnapshotPair(*pair),
            batches=BatchSettings(tokens, 0), seed=seed,
        )  # fmt: skip
        run.report = context.reports.ensemble
        find_measurer(GradientLog()).measure(GradientLog(), context)
        return GradientLogReader(tmp_path / name / "gradient_log")

    return run


@pytest.fixture(params=[FusedEngine, VmapEngine, LoopEngine], ids=["fused", "vmap", "loop"])
def engine(request):
    """Builds each kind of engine around a model, on the CPU."""

    def build(model, tokens=10_000):
        built = request.param(model, ResponseNLL(), tokens)
        built.to(torch.device("cpu"))
        return built

    return build
