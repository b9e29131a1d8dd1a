"""Base models whose frozen weights are quantised as they are loaded, for adapters trained on them (QLoRA)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any, Literal

import torch
from torch import nn

from gradfiltering.errors import UserError

Quantization = Literal["4bit", "8bit"]
PACKAGE = "bitsandbytes"
INSTALL_COMMAND = "python -m pip install 'gradfiltering[quantized]'"
OLDEST_VERSION = (0, 46)  # the first that runs without CUDA, too
DEVICES = ("cuda", "xpu", "cpu")
WEIGHT_ATTRIBUTES = ("quant_state", "compress_statistics", "quant_type")  # of a 4-bit weight, beside its packed bytes


def check_quantization_package() -> None:
    """Refuse quantisation where bitsandbytes is not installed, or too old.

    Raises:
        UserError: names the command that installs it.
    """
    if util.find_spec(PACKAGE) is None:
        raise UserError(f"quantised weights need the package {PACKAGE}; install it: {INSTALL_COMMAND}")
    version = metadata.version(PACKAGE)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        oldest_version = ".".join(map(str, OLDEST_VERSION))
        raise UserError(f"{PACKAGE} {version} is too old, {oldest_version} at least is needed: {INSTALL_COMMAND}")


def quantized_loading_arguments(
    quantization: Quantization, compute_dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Build the arguments of `from_pretrained` that quantise a model's linear layers.

    `4bit` is NF4 with doubly quantised constants, as in QLoRA (Dettmers et al., 2023, sec. 3); `8bit` is LLM.int8()
    (Dettmers et al., 2022). Embeddings, norms and the output layer are not quantised. Unlike
    `peft.prepare_model_for_kbit_training` these are not widened to float32 either: transformers' norms compute in
    float32 whatever their type, and the losses are float32 here, so that a quantised model differs from one that is
    not in its quantised weights alone.

    Args:
        quantization: bits of a weight.
        compute_dtype: type of the matrix products.
        device: where the model is put; quantised weights are made there.

    Raises:
        UserError: bitsandbytes is missing or does not know the device.
    """
    check_quantization_package()
    if device.type not in DEVICES:
        raise UserError(
            f"quantised weights need a device of {PACKAGE} ({', '.join(DEVICES)}), not {device.type}; leave the "
            "quantisation out, or choose another accelerator"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
        # It says at every product that inputs become float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": config, "device_map": {"": device}}


def keep_weight_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from laying 4-bit weights out anew for inference on some CPUs.

    It does so in place at the first forward pass in evaluation mode, and no gradient passes through that layout.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def kept_quantization(module: nn.Module) -> Iterator[None]:
    """Give 4-bit weights of a module their quantisation back when the block ends, which replaces them by others.

    bitsandbytes gives the constants that a layer has to a weight that has none, such as packed bytes just gathered.
    """
    quantized_layers: list[tuple[Any, dict[str, Any]]] = [
        (layer, {name: getattr(layer.weight, name) for name in WEIGHT_ATTRIBUTES})
        for layer in module.modules()
        if getattr(getattr(layer, "weight", None), "quant_state", None) is not None
    ]
    yield
    for layer, attributes in quantized_layers:
        layer.quant_state = attributes["quant_state"]
        for name, value in attributes.items():
            setattr(layer.weight, name, value)


def weight_shape(weight: nn.Parameter) -> torch.Size:
    """Return the shape of a weight before its quantisation; its own shape where it is not quantised."""
    quantization_state = getattr(weight, "quant_state", None)
    return weight.shape if quantization_state is None else torch.Size(quantization_state.shape)
