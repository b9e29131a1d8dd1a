"""Per-example gradients of anybody's PEFT LoRA model, in one call."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.activations import NewGELUActivation

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.errors import UserError
from gradfiltering.gradients.auto import choose_engine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.statistics import GradientStatistic
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective, ResponseNLL

BATCH_KEYS = ("input_ids", "labels", "attention_mask")
_LORA_KEY = re.compile(r"\.lora_([AB])\.(?:[^.]+\.)?weight$")


def per_example_gradients(
    model: PeftModel,
    batch: Batch | Mapping[str, Tensor],
    adapters: Sequence[str | Mapping[str, Tensor]],
    statistics: Sequence[str | GradientStatistic | Callable[[str, Tensor], Tensor]] = ("norm",),
    objective: Objective | None = None,
    chunk_tokens: int = 16384,
) -> dict[str, Tensor]:
    """Compute statistics of each example's gradient with respect to each of several LoRA adapters.

    All adapters are measured in one forward and backward pass where the architecture allows it. A
    gradient is that of the example's own loss, so it depends neither on the batch nor on padding.
    Dropout is off. The model is left as it was.

    Args:
        model: a causal language model with LoRA adapters of PEFT. It stays on its device.
        batch: B examples, padded on the right to T tokens: `input_ids` [B, T] int64, `labels`
            [B, T] int64 with -100 where there is nothing to learn, and perhaps `attention_mask`
            [B, T], which may hide padding on the right only.
        adapters: M names of adapters loaded in the model, or their state dicts, as
            `get_peft_model_state_dict` gives them. They must have the same rank, scaling and target
            modules.
        statistics: `norm`, the L2 norm over all parameters of the adapter (GradFiltering, arXiv
            2601.13697, eq. 1); `loss`, in nats per response token; `projection`, a random projection
            to 1024 numbers (`Projection(width, seed)` for another); or functions from a parameter's
            name and gradients [M, B, ...] to [M, B] or [M, B, K], which are summed over parameters
            and named by their `__name__`.
        objective: the loss; None for the mean negative log-likelihood of each example's response
            tokens.
        chunk_tokens: padded tokens computed at once, over adapters and examples; no result depends
            on it.

    Returns:
        Name of each statistic -> [M, B] or [M, B, K], at least float32, on the model's device.

    Raises:
        UserError: the model has no LoRA adapters of PEFT, adapters do not fit together, the batch is
            padded on the left, an example has no label, or no engine serves the model.
    """
    slot_name = _check_adapters(model, adapters)
    checked_batch = _as_batch(batch).to(model.device)
    named_statistics = _name_statistics(statistics)
    further_statistics = {name: statistic for name, statistic in named_statistics.items() if callable(statistic)}
    with _preserved(model):
        model.set_adapter(slot_name)
        stacked_adapters = _stack_adapters(model, adapters, slot_name)
        model.requires_grad_(False)
        engine = choose_engine(model, objective or ResponseNLL(), chunk_tokens)
        measured = engine.measure(stacked_adapters, checked_batch, False, further_statistics)
    built_in = {"norm": measured.grad_norm, "loss": measured.loss}
    return {
        name: measured.statistics[name] if name in measured.statistics else built_in[name] for name in named_statistics
    }


def _check_adapters(model: PeftModel, adapters: Sequence[str | Mapping[str, Tensor]]) -> str:
    """Return the adapter whose place the stacked adapters take; refuse what is not plain LoRA."""
    if not isinstance(model, PeftModel):
        raise UserError(
            f"the model is a {type(model).__name__}; give one with LoRA adapters of PEFT, as "
            "peft.get_peft_model or PeftModel.from_pretrained make it"
        )
    if isinstance(adapters, str) or not adapters:
        raise UserError("adapters must be a list of adapter names or state dicts with at least one item")
    adapter_names = [adapter for adapter in adapters if isinstance(adapter, str)]
    slot_name = adapter_names[0] if adapter_names else str(model.active_adapter)
    for adapter_name in [*adapter_names, slot_name]:
        config: Any = model.peft_config.get(adapter_name)
        if config is None:
            raise UserError(f"the model has no adapter {adapter_name}; it has {', '.join(model.peft_config)}")
        if config.peft_type != PeftType.LORA:
            raise UserError(f"the adapter {adapter_name} is {config.peft_type.value}, not LoRA")
        if config.bias != "none" or config.lora_bias or config.modules_to_save or config.use_dora:
            raise UserError(
                f"the adapter {adapter_name} trains biases, magnitudes or whole modules beside LoRA "
                "matrices, whose gradients are not computed; give one without"
            )
    if any(isinstance(module, LoraLayer) and module.merged for module in model.modules()):
        raise UserError("adapters are merged into the model's weights; call unmerge_adapter first")
    return slot_name


def _stack_adapters(model: PeftModel, adapters: Sequence[str | Mapping[str, Tensor]], slot_name: str) -> Adapters:
    """Stack M adapters under the parameter names of one of them: name -> [M, ...]."""
    slot_parameters, slot_scalings = _adapter_parameters(model, slot_name)
    slot_shapes = {key: value.shape for key, value in slot_parameters.items()}
    adapter_states: list[dict[str, Tensor]] = []
    for adapter in adapters:
        adapter_label, scalings = f"number {len(adapter_states)}", slot_scalings
        if isinstance(adapter, str):
            adapter_label = adapter
            state, scalings = _adapter_parameters(model, adapter)
        else:
            state = {_LORA_KEY.sub(r".lora_\1", key): value for key, value in adapter.items()}
        shapes = {key: value.shape for key, value in state.items()}
        if shapes != slot_shapes or scalings != slot_scalings:
            raise UserError(
                f"adapter {adapter_label} and adapter {slot_name} differ in rank, scaling or target "
                "modules; measure them in calls of their own"
            )
        adapter_states.append(state)
    return {
        f"{key}.{slot_name}.weight": torch.stack([state[key].detach().to(parameter.device) for state in adapter_states])
        for key, parameter in slot_parameters.items()
    }


def _adapter_parameters(model: PeftModel, adapter_name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Find an adapter's matrices by `<module>.lora_A` or `_B`, and the scaling of each module."""
    matrices: dict[str, Tensor] = {}
    scalings: dict[str, float] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.scaling:
            if adapter_name not in module.lora_A:
                raise UserError(f"the adapter {adapter_name} adapts the embedding {module_name}")
            for part, linears in (("A", module.lora_A), ("B", module.lora_B)):
                linear: Any = linears[adapter_name]
                matrices[f"{module_name}.lora_{part}"] = linear.weight
            scalings[module_name] = module.scaling[adapter_name]
    return matrices, scalings


def _name_statistics(statistics: Sequence[Any]) -> dict[str, Any]:
    """Name each statistic; the value is a function, or None for those that engines always give."""
    named_statistics: dict[str, Any] = {}
    for statistic in [statistics] if isinstance(statistics, str) else statistics:
        statistic_name = getattr(statistic, "__name__", type(statistic).__name__)
        if isinstance(statistic, str):
            known_statistics = {"norm": None, "loss": None, "projection": Projection()}
            if statistic not in known_statistics:
                raise UserError(
                    f"there is no statistic {statistic}; give a function, or one of: {', '.join(known_statistics)}"
                )
            statistic_name, statistic = statistic, known_statistics[statistic]
        if statistic_name in named_statistics:
            raise UserError(f"two statistics are named {statistic_name}; give one another __name__")
        named_statistics[statistic_name] = statistic
    return named_statistics


def _as_batch(batch: Batch | Mapping[str, Tensor]) -> Batch:
    """Check a batch, and leave out the attention mask, which right padding makes superfluous."""
    if isinstance(batch, Batch):
        input_ids, labels, mask = batch.input_ids, batch.labels, None
    else:
        unknown_keys = set(batch) - set(BATCH_KEYS)
        if unknown_keys or not {"input_ids", "labels"} <= set(batch):
            raise UserError(
                f"the batch has {', '.join(map(str, batch))}; give input_ids, labels and perhaps attention_mask"
            )
        input_ids, labels, mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    if input_ids.dim() != 2 or labels.shape != input_ids.shape:
        raise UserError(
            f"input_ids have the shape {tuple(input_ids.shape)} and labels "
            f"{tuple(labels.shape)}; both must be [examples, tokens]"
        )
    if mask is not None:
        is_padding = mask == 0
        if mask.shape != input_ids.shape or (is_padding[:, :-1] & ~is_padding[:, 1:]).any():
            raise UserError("attention_mask must hide padding on the right only; pad on the right")
        if (labels[is_padding] != IGNORED).any():
            raise UserError(f"padding has labels; set them to {IGNORED}")
    without_label = (labels[:, 1:] == IGNORED).all(1).nonzero()[:, 0].tolist()
    if without_label:
        raise UserError(f"examples {without_label[:10]} have no label after their first token")
    return Batch(input_ids, labels, torch.arange(len(input_ids)))


@contextmanager
def _preserved(model: PeftModel) -> Iterator[None]:
    """Bring the model back to how it came: modes, flags, active adapters, attention, activations."""
    base_model: Any = model.get_base_model()
    tuner: Any = model.base_model
    attention = base_model.config._attn_implementation
    active_adapter, active_adapters = model.active_adapter, list(tuner.active_adapters)
    training_modes = [(module, module.training) for module in model.modules()]
    gradient_flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    disabled_layers = [
        module for module in model.modules() if isinstance(module, LoraLayer) and module.disable_adapters
    ]
    activations = [
        (module, child_name, child)
        for module in model.modules()
        for child_name, child in module.named_children()
        if isinstance(child, NewGELUActivation)
    ]
    try:
        for layer in disabled_layers:
            layer.enable_adapters(True)
        yield
    finally:
        tuner.set_adapter(active_adapters)
        model.active_adapter = active_adapter
        for layer in disabled_layers:
            layer.enable_adapters(False)
        for module, is_training in training_modes:
            module.training = is_training
        for parameter, requires_grad in gradient_flags:
            parameter.requires_grad_(requires_grad)
        for module, child_name, child in activations:
            setattr(module, child_name, child)
        if base_model.config._attn_implementation != attention:
            base_model.set_attn_implementation(attention)
