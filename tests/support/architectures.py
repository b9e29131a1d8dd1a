"""Every causal architecture of transformers, small, random, and such that its special arithmetic matters."""

import contextlib
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.attention import EAGER, set_attention
from gradfiltering.gradients.auto import choose_engine
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.lora import Adapters, LoraSettings, initial_adapters
from gradfiltering.models.objectives import ResponseNLL
from tests.reference.gradients import LoopEngine

VOCABULARY, WIDTH, HEADS, HEAD_WIDTH = 64, 32, 4, 8
WEIGHT_SPREAD, VECTOR_SPREAD = 0.5, 0.3  # standard deviations; sinks and biases are vectors
WINDOW = 4  # shorter than the rows
# A pattern of the whole name -> value; the first that matches counts. Where a default is None or a list it stays,
# unless it is named in `FORCED`.
SMALL_VALUES: dict[str, Any] = {
    r"(padded_)?vocab_size|.*_vocab_size(_per_layer_input)?": VOCABULARY,
    r"hidden_size_per_layer_input": 8,
    r"hidden_size|n_embd|d_model|dim|embedding_size|embedding_dim|word_embed_proj_dim|decoder_hidden_size|lru_width"
    r"|attention_hidden_size|width|emb_dim": WIDTH,
    r"n_inner|d_ff|ffn_dim|decoder_ffn_dim|encoder_ffn_dim|ffn_hidden_size|mlp_hidden_size|(\w*_)?intermediate_size"
    r"|intermediate_size\w*|(\w*_)?expert_(hidden_size|ffn_hidden_size)|expert_dim|shared_expert_\w*size": 48,
    r"num_hidden_layers|n_layers?|num_layers|num_decoder_layers|num_encoder_layers|decoder_layers|encoder_layers"
    r"|depth": 2,
    r"num_key_value_heads|num_kv_heads|multi_query_group_num|swa_num_key_value_heads": 2,
    r"num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads|swa_num_attention_heads"
    r"|linear_num_(key|value)_heads|mamba_num_heads|mamba_n_heads|index_n_heads|num_attn_heads": HEADS,
    r"(global_|swa_|full_)?head_dim|kv_channels|v_head_dim|qk_nope_head_dim|attention_head_dim|d_kv"
    r"|linear_(key|value)_head_dim|index_head_dim|swa_v_head_dim|attn_head_size|mamba_head_dim|global_v_head_dim":
        HEAD_WIDTH,
    r"qk_rope_head_dim|rotary_dim": 4,
    r"kv_lora_rank|q_lora_rank|o_lora_rank": 16,
    r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts|n_experts)": 4,
    r"num_experts_per_token?|num_experts_per_tok|moe_topk|moe_k|num_experts_per_topk"
    r"|top_k_experts|moe_top_k|top_k|num_selected_experts": 2,
    r"n_shared_experts|num_shared_experts": 1,
    r"n_group|topk_group|num_expert_group|num_limited_groups": 1,
    r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|first_k_dense": 1,
    r"sliding_window(_size)?|attention_window_size|window_size|sliding_window_\w*|attention_chunk_size"
    r"|chunk_size": WINDOW,
    r"attn_logit_softcapping|attention_logit_cap|attn_softcap|\w*attn\w*_soft_?cap\w*": 1.0,
    r"mamba_d_state|state_size|ssm_state_size|mamba_state_dim": 8,
    r"mamba_d_head": 16,
    r"time_step_rank|mamba_dt_rank": 4,
    r"mamba_chunk_size": 8,
    r"max_position_embeddings|n_positions|max_seq_len|seq_length|n_ctx|max_target_positions|max_sequence_length"
    r"|original_max_position_embeddings": 64,
    r"(pad|bos|eos|decoder_start|sep|cls|mask|unk)_token_id": 0,
    r"index_topk|index_top_k": 4,
    r"dropout|\w+_dropout|\w+_pdrop|layerdrop": 0.0,
}  # fmt: skip
DERIVED_HEAD_WIDTHS = {"head_dim", "qk_head_dim", "swa_head_dim"}  # of attention with a part that is rotated
FORCED: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "falcon": {"alibi": True, "new_decoder_architecture": False, "num_kv_heads": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, "layer_types": ["sliding_attention"] * 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "mpt": {"expansion_ratio": 2, "attn_config": {}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}, "ffn_config": {"ffn_hidden_size": 48}},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "attention_head_dim": 16, "hybrid_layer_ids": [1]},
    "nemotron_h": {"hybrid_override_pattern": "M*"},
}


NOT_SMALL = {
    "blt": "needs a second model for its patches",
    "gemma3n": "needs the package timm",
    "musicgen": "writes music",
    "musicgen_melody": "writes music",
    "phi4_multimodal": "its towers for images and sound cannot be made small",
}


def causal_architectures() -> list[str]:
    """Model types of the causal language models of transformers, by name; not those of `NOT_SMALL`."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - NOT_SMALL.keys())


def small_config(model_type: str) -> PretrainedConfig:
    """Shrink the default configuration of an architecture."""
    default_config = CONFIG_MAPPING[model_type]()
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(default_config)]
    if not issubclass(type(default_config), model_class.config_class):
        default_config = default_config.get_text_config()
    return type(default_config)(**{**_small_values(default_config), **FORCED.get(model_type, {})})


def _small_values(config: PretrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    has_rotated_part = hasattr(config, "qk_rope_head_dim")
    for name, default in config.to_dict().items():
        if name in config.sub_configs and isinstance(getattr(config, name, None), PretrainedConfig):
            own_config = getattr(config, name)
            values[name] = {**_small_values(own_config), "model_type": own_config.model_type}
        elif isinstance(default, list) and name in ("layer_types", "mlp_layer_types", "layers_block_type"):
            values[name] = (list(dict.fromkeys(default)) * 2)[:2]  # two layers, of two kinds where there are
        elif name == "is_decoder" and default is False and not config.is_encoder_decoder:
            values[name] = True
        elif has_rotated_part and name in DERIVED_HEAD_WIDTHS:
            continue
        elif has_rotated_part and name == "num_key_value_heads":
            values[name] = HEADS
        elif default is None and name in ("head_dim", "num_key_value_heads"):
            values[name] = _small_value(name)
        elif not isinstance(default, bool) and isinstance(default, int | float) and _small_value(name) is not None:
            values[name] = type(default)(_small_value(name))
    return values


def _small_value(name: str) -> Any:
    return next((value for pattern, value in SMALL_VALUES.items() if re.fullmatch(pattern, name)), None)


def small_model(model_type: str) -> nn.Module:
    """Build an architecture with large random weights in float64."""
    config = small_config(model_type)
    torch.manual_seed(0)
    default_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    model_class: Any = default_class or MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    model = model_class._from_config(config, experts_implementation="eager").double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        is_matrix = parameter.dim() > 1
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = noise * WEIGHT_SPREAD if is_matrix else parameter.data + noise * VECTOR_SPREAD
        parameter.requires_grad_(False)
    return model


class KeepFloat64(TorchFunctionMode):
    """Leaves float64 as it is where a model asks for float32, so that differences are not those of rounding."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        is_wide = bool(arguments) and isinstance(arguments[0], torch.Tensor) and arguments[0].dtype == torch.float64
        if is_wide and function is torch.Tensor.float:
            return arguments[0]
        if is_wide:
            arguments = tuple(torch.float64 if value is torch.float32 else value for value in arguments)
            options = {name: torch.float64 if value is torch.float32 else value for name, value in options.items()}
        return function(*arguments, **options)


@contextlib.contextmanager
def exact_arithmetic():
    """Compute in float64 throughout, constants that a model makes on the way included."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with KeepFloat64():
            yield
    finally:
        torch.set_default_dtype(default_dtype)


# Where not all linear layers can be adapted: PEFT refuses those of state-space models, and fails at routers that are
# linear layers and return more than one tensor.
NAMED_TARGETS = {
    "llama4": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "llama4_text": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "phimoe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "falcon_h1": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "falcon_mamba": ["in_proj"],
    "mamba": ["in_proj"],
    "mamba2": ["in_proj"],
    "nemotron_h": ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj"],
}
LENGTHS, PROMPTS = (12, 7, 9), (4, 3, 2)  # rows longer than WINDOW
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Comparison:
    """What an engine makes of an architecture.

    Attributes:
        difference: largest relative difference of an example's norm, or of its gradient in units of its norm.
        refusal: why the engine does not serve the architecture; empty where it does.
    """

    difference: float = float("nan")
    refusal: str = ""


class NotSmallError(Exception):
    """No small random model of an architecture computes per-example gradients, even one row at a time."""


def compare_engines(model_type: str) -> tuple[str, dict[str, Comparison]]:
    """Compare each engine with the loop, and say which `auto` takes (empty for none).

    Raises:
        NotSmallError: there is nothing to compare with; an error of an engine passes as it is.
    """
    with exact_arithmetic():
        model, adapters, expected = _measure_by_loop(model_type, "all")
        comparisons = {}
        for engine_class in (FusedEngine, VmapEngine):
            try:
                engine = engine_class(model, ResponseNLL(), 10_000)
                engine.to(CPU)
            except UserError as error:
                comparisons[engine_class.name] = Comparison(refusal=str(error))
                continue
            comparisons[engine.name] = Comparison(_largest_difference(_example_gradients(engine, adapters), expected))
        try:
            chosen = choose_engine(model, ResponseNLL(), 10_000).name
        except UserError:
            chosen = ""
    return chosen, comparisons


def compare_frozen_prefix(model_type: str) -> Comparison:
    """Compare the fused engine with the loop where only the last of two layers has adapters.

    The states of the first layer are given, with the last token's in the place of padding, as the cache gives them.

    Returns:
        The difference, also where the prefix is refused and the gradients are those of all layers.

    Raises:
        NotSmallError: there is nothing to compare with.
    """
    with exact_arithmetic():
        model, adapters, expected = _measure_by_loop(model_type, "last_1")
        try:
            engine = FusedEngine(model, ResponseNLL(), 10_000)
            engine.to(CPU)
        except UserError as error:
            return Comparison(refusal=str(error))
        batch = _batch()
        if engine.prefix is not None:
            states = engine.compute_prefix_states(engine.prefix, batch.input_ids)
            for row, length in enumerate(LENGTHS):
                states[row, length:] = states[row, length - 1]
            batch = replace(batch, prefix_states=states)
        found = _example_gradients(engine, adapters, batch)
    return Comparison(_largest_difference(found, expected), engine.prefix_refusal)


def _measure_by_loop(model_type: str, layers: str) -> tuple[PeftModel, Adapters, tuple[Tensor, dict[str, Tensor]]]:
    """Build a small model with two adapters, and measure their gradients one row at a time."""
    try:
        targets = NAMED_TARGETS.get(model_type, "all-linear")
        settings = LoraSettings(rank=2, alpha=4, target_modules=targets, init_b_std=0.3, layers=layers)
        model = settings.attach(small_model(model_type))
        adapters = {name: value.double() for name, value in initial_adapters(model, settings, (0, 1), 0).items()}
        base_model: Any = model.get_base_model()
        attention = base_model.config._attn_implementation
        set_attention(base_model, EAGER)
        expected = _example_gradients(LoopEngine(model, ResponseNLL(), 10_000), adapters)
        set_attention(base_model, attention)
    except Exception as error:  # whatever a configuration made small does not allow
        first_line = (str(error).splitlines() or [""])[0]
        raise NotSmallError(f"{type(error).__name__}: {first_line[:140]}") from error
    return model, adapters, expected


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    labels = input_ids.clone()
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        input_ids[row, length:] = 0
        labels[row, length:] = IGNORED
        labels[row, :prompt] = IGNORED
    return Batch(input_ids, labels, torch.arange(len(LENGTHS)))


def _example_gradients(
    engine: GradientEngine, adapters: Adapters, batch: Batch | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Measure norms [M, B], and all gradients, parameter name -> [M, B, ...]."""
    gradients: dict[str, Tensor] = {}

    def collect(parameter_name: str, example_gradients: Tensor) -> Tensor:
        gradients[parameter_name] = example_gradients.detach().clone()
        return example_gradients.flatten(2).sum(2)

    measured = engine.measure(adapters, batch or _batch(), with_mean_gradient=True, statistics={"collect": collect})
    return measured.grad_norm, gradients


def _largest_difference(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> float:
    norms, gradients = found
    expected_norms, expected_gradients = expected
    squared_error = sum(
        (gradients[name] - expected_gradients[name]).square().flatten(2).sum(2) for name in expected_gradients
    )
    relative_errors = torch.as_tensor(squared_error).sqrt() / expected_norms
    return float(torch.maximum(relative_errors, (norms / expected_norms - 1).abs()).max())
