"""LoRA adapters on one frozen base model: settings, stacked parameters, update size, PEFT export."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradfiltering.errors import UserError, is_out_of_memory
from gradfiltering.models.adapted_layers import (
    ALL_LAYERS,
    LAST_LAYERS,
    choose_layers,
    count_last_layers,
    find_layers,
    index_of_layer,
)
from gradfiltering.options import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    model_validator,
    options,
)
from gradfiltering.seeding import derive_seed

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_model.safetensors"
Adapters = dict[str, Tensor]  # parameter name of the PEFT model -> [M, ...]


@options
class LoraSettings:
    """One LoRA adapter (Hu et al., 2022).

    Attributes:
        rank: R.
        alpha: the update is scaled by alpha / rank.
        target_modules: `all-linear` (all linear layers but the head), or a list of module name
            endings.
        init_b_std: standard deviation of B's initial values. 0 is the usual start, in which only B
            has a gradient and norms rise as B grows; a positive value gives A a gradient from the
            first step.
        layers: which of the model's layers have adapters: `all`; the last eight as `last_8` or 8; the
            last quarter, rounded up, as 0.25; or a list of indices from 0.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    target_modules: str | Sequence[str]
    init_b_std: NonNegativeFloat
    layers: str | PositiveInt | Share | Sequence[NonNegativeInt] = ALL_LAYERS

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        is_unknown_text = (
            isinstance(self.layers, str) and self.layers != ALL_LAYERS and not LAST_LAYERS.fullmatch(self.layers)
        )
        if is_unknown_text or self.layers == []:
            raise UserError(
                f"layers must be {ALL_LAYERS}, last_8, a number such as 8, a share such as 0.25, or a list of indices, "
                f"got {self.layers!r}",
                arguments=("layers",),
            )
        return self

    def cache_key(self) -> dict[str, Any]:
        """Return the settings that tell adapters apart; adapters in all layers have the key they always had."""
        settings = asdict(self)
        layers = settings.pop("layers")
        if layers == ALL_LAYERS:
            return settings
        last_count = count_last_layers(layers)
        return {**settings, "layers": layers if last_count is None else last_count}

    def attach(self, model: nn.Module) -> "PeftModel":
        """Wrap `model` with LoRA layers of this shape.

        `all-linear` leaves routers and experts alone where they are no linear layers but stacked
        parameters, which PEFT would adapt, too.

        Raises:
            UserError: no module of the model matches `target_modules`, one must not be adapted, or the
                model does not have the `layers`.
        """
        peft_model = self._attach_to_all_layers(model)
        return peft_model if self.layers == ALL_LAYERS else self._detach_other_layers(peft_model)

    def _attach_to_all_layers(self, model: nn.Module) -> "PeftModel":
        if not isinstance(self.target_modules, str):
            return self._attach_to(model, list(self.target_modules))
        peft_model = self._attach_to(model, self.target_modules)
        config: Any = peft_model.peft_config["default"]
        if not config.target_parameters:
            return peft_model
        logger.info("not adapted, since they are no linear layers: %s", ", ".join(sorted(config.target_parameters)))
        linear_modules = sorted(config.target_modules)
        return self._attach_to(peft_model.unload(), linear_modules)

    def _detach_other_layers(self, peft_model: "PeftModel") -> "PeftModel":
        """Keep the adapters of the chosen layers only."""
        from peft.tuners.lora import LoraLayer

        base_model: Any = peft_model.get_base_model()
        module_names = [name for name, module in base_model.named_modules() if isinstance(module, LoraLayer)]
        model_name, layer_list = type(base_model).__name__, find_layers(base_model)
        peft_model.unload()
        if layer_list is None:
            raise UserError(
                f"{model_name} has no list of layers to choose from; adapt {ALL_LAYERS} layers", self, ("layers",)
            )
        try:
            chosen_layers = choose_layers(self.layers, len(layer_list.layers))
        except ValueError as error:
            raise UserError(
                f"layers is {self.layers}: it {error} ({model_name}, {layer_list.name})", self, ("layers",)
            ) from error
        layer_indices = {name: index_of_layer(name, layer_list) for name in module_names}
        outside_names = [name for name, layer_index in layer_indices.items() if layer_index is None]
        if outside_names and not isinstance(self.target_modules, str):
            raise UserError(
                f"target_modules names {', '.join(outside_names)}, outside of the layers {layer_list.name}; leave it "
                f"out, or adapt {ALL_LAYERS} layers",
                self,
                ("target_modules", "layers"),
            )
        if outside_names:
            logger.info("not adapted, since they lie outside of the layers: %s", ", ".join(outside_names))
        chosen_names = [name for name, layer_index in layer_indices.items() if layer_index in chosen_layers]
        if not chosen_names:
            raise UserError(
                f"none of the layers {chosen_layers} of {model_name} has a module that target_modules names "
                f"({self.target_modules}); choose other layers",
                self,
                ("layers", "target_modules"),
            )
        return self._attach_to(base_model, chosen_names)

    def _attach_to(self, model: nn.Module, target_modules: str | list[str]) -> "PeftModel":
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers.pytorch_utils import Conv1D

        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT declares int, but takes a float
            lora_dropout=0.0,
            target_modules=target_modules,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            remedy = "a list" if target_modules == self.target_modules == "all-linear" else "all-linear or a list"
            raise UserError(
                f"target_modules is {self.target_modules}: {error} Give {remedy} of module name endings",
                self,
                ("target_modules",),
            ) from error


def member_count(adapters: Mapping[str, Tensor]) -> int:
    """Return M, the number of stacked members."""
    return len(next(iter(adapters.values())))


def initial_adapters(model: "PeftModel", settings: LoraSettings, members: Sequence[int], seed: int) -> Adapters:
    """Draw adapters independently of one another, and stack them.

    A is drawn as PEFT does (Kaiming uniform with a = √5, that is U(−1/√d_in, 1/√d_in)), B normal
    with `init_b_std`. Each member has a random stream of its own, so it starts the same whatever
    members are stacked beside it.

    Returns:
        Parameter name of the PEFT model -> [M, ...] float32 (or the model's float64).
    """
    parameters = dict(model.named_parameters())
    adapters = {}
    for parameter_name, parameter in sorted(parameters.items()):
        if not parameter.requires_grad:
            continue
        member_values = []
        for member in members:
            generator = torch.Generator().manual_seed(derive_seed(seed, "adapter", member, parameter_name))
            initial_values = torch.empty(parameter.shape)
            if "lora_A" in parameter_name:
                bound = parameter.shape[1] ** -0.5
                initial_values = initial_values.uniform_(-bound, bound, generator=generator)
            else:
                initial_values = initial_values.normal_(0.0, 1.0, generator=generator) * settings.init_b_std
            member_values.append(initial_values.to(torch.promote_types(parameter.dtype, torch.float32)))
        adapters[parameter_name] = torch.stack(member_values)
    return adapters


def export_adapter(model: "PeftModel", adapters: Adapters, member_index: int, folder: Path) -> None:
    """Write one member as a PEFT folder that `PeftModel.from_pretrained` loads.

    Args:
        model: the PEFT model the adapters belong to.
        adapters: stacked parameters.
        member_index: position in the stack.
        folder: is made; parent folders too.
    """
    from peft import get_peft_model_state_dict

    member_state = {
        parameter_name: stacked[member_index].detach().cpu().contiguous()
        for parameter_name, stacked in adapters.items()
    }
    folder.mkdir(parents=True)
    # By default PEFT asks the hub for the size of the base model's vocabulary.
    saved_state = get_peft_model_state_dict(model, state_dict=member_state, save_embedding_layers=False)
    save_file(saved_state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"]
    inference_mode, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference_mode


def read_rank(adapter_folder: Path) -> int:
    """Return the rank of the adapter in a PEFT folder."""
    return int(json.loads((adapter_folder / "adapter_config.json").read_text("utf-8"))["r"])


def load_adapter(model: nn.Module, folder: Path) -> "PeftModel":
    """Put the adapter of a PEFT folder on its base model.

    Raises:
        UserError: the folder cannot be read, or its weights are not those that the adapter has on this
            model; PEFT would leave out some, and draw others at random.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        saved_shapes = {name: tuple(value.shape) for name, value in load_file(folder / ADAPTER_FILE).items()}
        peft_model = PeftModel.from_pretrained(model, str(folder))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot load the adapter {folder}: {first_line[:300]}. Give an adapter of this base model, as PEFT's "
            "save_pretrained writes it"
        ) from error
    adapter_shapes = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(peft_model).items()}
    for problem, names in (
        ("lacks", sorted(adapter_shapes.keys() - saved_shapes.keys())),
        ("holds what the model has no place for:", sorted(saved_shapes.keys() - adapter_shapes.keys())),
    ):
        if names:
            peft_model.unload()
            raise UserError(
                f"the adapter {folder} does not fit the model: it {problem} {', '.join(names[:3])} ({len(names)} in "
                "all). Give an adapter of this base model"
            )
    return peft_model


def update_ratio(model: "PeftModel", adapters: Adapters, settings: LoraSettings) -> list[float]:
    """Compute ‖ΔW‖_F / ‖W‖_F of each member over all adapted layers.

    A small ratio means that the first-order picture of the update is valid. ‖BA‖² = ⟨BᵀB, AAᵀ⟩, so
    ΔW is never formed.

    Returns:
        M ratios.
    """
    scaling = settings.alpha / settings.rank
    squared_weights = torch.zeros((), dtype=torch.float64)
    squared_updates = torch.zeros((), dtype=torch.float64)  # [M] from the first layer on
    modules = dict(model.named_modules())
    for parameter_name in (name for name in adapters if "lora_A" in name):
        matrix_a = adapters[parameter_name].double()  # [M, R, D_in]
        matrix_b = adapters[parameter_name.replace("lora_A", "lora_B")].double()  # [M, D_out, R]
        inner_products = ((matrix_b.mT @ matrix_b) * (matrix_a @ matrix_a.mT)).sum((1, 2))  # [M]
        squared_updates = squared_updates + inner_products * scaling**2
        layer: Any = modules[parameter_name.split(".lora_A")[0]]
        base_weight = layer.get_base_layer().weight.detach().double()
        squared_weights = squared_weights + base_weight.square().sum().to(matrix_a.device)
    update_ratios: list[float] = (squared_updates / squared_weights).sqrt().tolist()
    return update_ratios
