"""Greedy answers through vLLM, which has to be installed and needs a GPU."""

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import torch

from gradfiltering.data.templates import stop_tokens
from gradfiltering.errors import UserError
from gradfiltering.judging.generation import NewTokens, cut_at_stop
from gradfiltering.models.language_model import LanguageModel

SMALLEST_RANK = 8  # vLLM holds adapters of fixed ranks: 8, 16, 32, ...


def check_vllm() -> None:
    """Refuse answers through vLLM where it cannot run.

    Raises:
        UserError: vLLM is not installed, or there is no GPU.
    """
    if util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: python -m pip install vllm, in an environment of its own version of torch; or let "
            "transformers generate the answers"
        )
    if not torch.cuda.is_available():
        raise UserError("vLLM needs a GPU, and none is found; let transformers generate the answers")


class VllmGenerator:
    """One base model in vLLM, which answers with one adapter after another.

    Not run by any test here, for want of a GPU: what vLLM is asked for is compared with its documentation only.

    Args:
        language_model: the base model; vLLM loads it once more, from its hub id or folder, in the same type.
        largest_rank: of the adapters.
        max_new_tokens: longest answer.
    """

    def __init__(self, language_model: LanguageModel, largest_rank: int, max_new_tokens: int):
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]  # optional

        rank = SMALLEST_RANK
        while rank < largest_rank:
            rank *= 2
        model: Any = language_model.model
        self.stop_ids = stop_tokens(language_model.tokenizer)
        self.engine = LLM(
            model=language_model.path,
            dtype=str(model.dtype).removeprefix("torch."),
            enable_lora=True,
            max_lora_rank=rank,
            skip_tokenizer_init=True,
        )
        self.sampling = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=self.stop_ids, detokenize=False
        )
        self.adapter_count = 0

    def generate(self, prompts: Sequence[list[int]], adapter_folder: Path) -> list[NewTokens]:
        """Generate the new tokens of each prompt, with why they end."""
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]  # optional

        self.adapter_count += 1  # vLLM knows adapters by number, from 1 on
        outputs = self.engine.generate(
            [{"prompt_token_ids": token_ids} for token_ids in prompts],
            self.sampling,
            lora_request=LoRARequest(f"adapter {self.adapter_count}", self.adapter_count, str(adapter_folder)),
        )
        return [cut_at_stop(list(output.outputs[0].token_ids), self.stop_ids) for output in outputs]
