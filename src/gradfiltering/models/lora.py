"""M LoRA adapters on one frozen backbone: their settings, stacked parameters, measurements, and PEFT export."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import atomic_path
from gradfiltering.seeding import torch_rng

Adapters = dict[str, Tensor]


@dataclass(frozen=True)
class LoraSettings:
    """One LoRA adapter (Hu et al., 2022).

    Attributes:
        rank: R.
        alpha: the update is scaled by alpha / rank.
        target_modules: `all-linear` (all linear layers but the head), or a list of module name endings.
        init_b_std: standard deviation of B's initial values. 0 is the usual start, in which only B has a gradient and
            norms rise as B grows; a positive value gives A a gradient from the first step.
    """

    rank: int
    alpha: float
    target_modules: str | Sequence[str]
    init_b_std: float

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"{_option('rank')} is {self.rank}: give a positive rank")
        if self.init_b_std < 0:
            raise UserError(f"{_option('init_b_std')} is {self.init_b_std}: give 0 or a positive standard deviation")

    def attach(self, model: nn.Module) -> PeftModel:
        """Wraps `model` with LoRA layers of this shape.

        Raises:
            UserError: no module of the model matches `target_modules`.
        """
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules=targets,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"{_option('target_modules')} is {targets}: {error} Give all-linear or a list of module name endings"
            ) from error


def _option(name: str) -> str:
    """An option of a LoRA adapter by the names it goes by: the same settings serve the ensemble and the target."""
    return f"ensemble.lora.{name} (of the proxy) or target.tuning.lora.{name} (of the target)"


def initial_adapters(model: PeftModel, settings: LoraSettings, members: Sequence[int], seed: int) -> Adapters:
    """Independently drawn adapters, stacked.

    A is drawn as PEFT does (Kaiming uniform with a = √5, that is U(−1/√d_in, 1/√d_in)), B normal with `init_b_std`.
    Each member has a random stream of its own, so it starts the same whoever is stacked beside it.

    Returns:
        Parameter name of the PEFT model -> [M, ...] float32 (or the model's float64).
    """
    templates = {name: value for name, value in model.named_parameters() if value.requires_grad}
    adapters = {}
    for name in sorted(templates):
        template = templates[name]
        drawn = []
        for member in members:
            rng = torch_rng(seed, "adapter", member, name)
            if "lora_A" in name:
                bound = template.shape[1] ** -0.5
                value = torch.empty(template.shape).uniform_(-bound, bound, generator=rng)
            else:
                value = torch.empty(template.shape).normal_(0.0, 1.0, generator=rng) * settings.init_b_std
            drawn.append(value.to(torch.promote_types(template.dtype, torch.float32)))
        adapters[name] = torch.stack(drawn)
    return adapters


def export_adapter(model: PeftModel, adapters: Adapters, position: int, folder: Path) -> None:
    """Writes one member as a PEFT folder that `PeftModel.from_pretrained` loads.

    Args:
        model: the PEFT model the adapters belong to.
        adapters: stacked parameters.
        position: which of the stack.
        folder: where to; written whole or not at all.
    """
    state = {name: value[position].detach().cpu().contiguous() for name, value in adapters.items()}
    with atomic_path(folder) as part:
        part.mkdir(parents=True)
        saved = get_peft_model_state_dict(model, state_dict=state)
        save_file(saved, part / "adapter_model.safetensors", metadata={"format": "pt"})
        config = model.peft_config["default"]
        inference, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(part))
        config.inference_mode = inference


def update_ratio(model: PeftModel, adapters: Adapters, settings: LoraSettings) -> list[float]:
    """‖ΔW‖_F / ‖W‖_F of each member over all adapted layers: is the first-order picture of the update valid?

    ‖BA‖² = ⟨BᵀB, AAᵀ⟩, so ΔW is never formed.

    Returns:
        M ratios.
    """
    scale = settings.alpha / settings.rank
    weights: Any = 0.0
    updates: Any = 0.0
    modules = dict(model.named_modules())
    for name in (name for name in adapters if "lora_A" in name):
        a = adapters[name].double()  # [M, R, D_in]
        b = adapters[name.replace("lora_A", "lora_B")].double()  # [M, D_out, R]
        updates = updates + ((b.mT @ b) * (a @ a.mT)).sum((1, 2)) * scale**2  # [M]
        layer: Any = modules[name.split(".lora_A")[0]]
        weights = weights + layer.get_base_layer().weight.detach().double().square().sum()
    return (updates / weights).sqrt().tolist()
