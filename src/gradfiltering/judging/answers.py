"""Answers of fine-tuned models to evaluation prompts, generated once for each model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache as call_once
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradfiltering.data.tokenizer_hash import hash_tokenizer
from gradfiltering.judging.generation import GenerationSettings, generate_responses, render_prompts
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response, read_responses, write_responses
from gradfiltering.judging.vllm_answers import VllmGenerator
from gradfiltering.models.language_model import LanguageModel, find_context_length
from gradfiltering.models.lora import load_adapter, read_rank
from gradfiltering.models.weights import hash_adapter, hash_model
from gradfiltering.runs.cache import Cache, CachedResult
from gradfiltering.runs.files import hash_key

ANSWERS = "answers"  # kind of result
ANSWERS_FILE = "answers.jsonl"
ANSWERS_VERSION = 1  # raise it when the same model would answer otherwise


@dataclass(frozen=True)
class ModelAnswers:
    """Answers of several models to the same prompts.

    Attributes:
        responses: by model, its responses in the order of the prompts.
        reused_seconds: seconds that cached answers had taken to generate.
    """

    responses: dict[str, list[Response]]
    reused_seconds: float


def generate_answers(
    adapter_folders: Mapping[str, Path],
    language_model: LanguageModel,
    prompts: Sequence[Prompt],
    template_name: str,
    settings: GenerationSettings,
    cache: Cache,
    device: torch.device,
) -> ModelAnswers:
    """Generate greedy answers of every fine-tuned model, or take them from the cache.

    Answers depend on weights, tokenizer, prompts and lengths; a model under another name is the
    same model.

    Args:
        adapter_folders: by model name, the folder of its adapter.
        language_model: the base model with its tokenizer.
        prompts: prompts to answer.
        template_name: name of the prompt template that the models were trained with.
        settings: length and batch size.
        cache: cache of answers.
        device: device to generate on.
    """
    prompt_texts = render_prompts(prompts, template_name, language_model.tokenizer)
    shared_key = share_answers_key(language_model, hash_model(language_model.model), prompts, prompt_texts, settings)
    responses, reused_seconds = {}, 0.0

    @call_once
    def start_vllm() -> VllmGenerator:
        """Load the base model into vLLM, where any answer is missing, once for all adapters."""
        ranks = [read_rank(adapter_folder) for adapter_folder in adapter_folders.values()]
        return VllmGenerator(language_model, max(ranks), settings.max_new_tokens)

    for model_name, adapter_folder in adapter_folders.items():
        cache_key = {**shared_key, "adapter": hash_adapter(adapter_folder)}
        cached_answers = cache.get_or_compute_on_rank_zero(
            ANSWERS,
            cache_key,
            _write_answers,
            adapter_folder,
            language_model,
            prompts,
            prompt_texts,
            settings,
            device,
            description=f"answers of {model_name}",
            start_vllm=start_vllm if settings.engine == "vllm" else None,
        )
        responses[model_name] = read_responses(cached_answers.path / ANSWERS_FILE)
        reused_seconds += cached_answers.seconds if cached_answers.reused else 0.0
    return ModelAnswers(responses, reused_seconds)


def share_answers_key(
    language_model: LanguageModel,
    model_hash: str,
    prompts: Sequence[Prompt],
    prompt_texts: Sequence[str],
    settings: GenerationSettings,
) -> dict[str, Any]:
    """Return the part of a cache key that the answers of all fine-tuned models share.

    Args:
        language_model: the base model with its tokenizer.
        model_hash: digest of the base model.
        prompts: prompts to answer.
        prompt_texts: their rendered texts.
        settings: length and batch size.
    """
    prompt_content = [
        [prompt.prompt_set, prompt.prompt_id, text] for prompt, text in zip(prompts, prompt_texts, strict=True)
    ]
    return {
        "code": ANSWERS_VERSION,
        "base_model": model_hash,
        "tokenizer": hash_tokenizer(language_model.tokenizer),
        "context": find_context_length(language_model.model.config, language_model.tokenizer),
        "prompts": hash_key(prompt_content),
        "generation": asdict(settings),
    }


def find_answers(shared_key: Mapping[str, Any], adapter_folder: Path, cache: Cache) -> CachedResult | None:
    """Find the answers of a fine-tuned model in the cache.

    Args:
        shared_key: of `share_answers_key`.
        adapter_folder: of the model.
        cache: cache of answers.
    """
    return cache.find(ANSWERS, {**shared_key, "adapter": hash_adapter(adapter_folder)})


def _write_answers(
    answers_folder: Path,
    adapter_folder: Path,
    language_model: LanguageModel,
    prompts: Sequence[Prompt],
    prompt_texts: Sequence[str],
    settings: GenerationSettings,
    device: torch.device,
    description: str,
    start_vllm: Callable[[], VllmGenerator] | None,
) -> None:
    if start_vllm is not None:
        generate = partial(start_vllm().generate, adapter_folder=adapter_folder)
        answers = generate_responses(
            language_model.model, language_model.tokenizer, prompts, prompt_texts, settings, description, generate
        )
        write_responses(answers_folder / ANSWERS_FILE, answers)
        return
    tuned_model: Any = load_adapter(language_model.model, adapter_folder)
    tokenizer = language_model.tokenizer
    try:
        tuned_model.to(device)
        generated_responses = generate_responses(tuned_model, tokenizer, prompts, prompt_texts, settings, description)
    finally:
        tuned_model.unload()
    write_responses(answers_folder / ANSWERS_FILE, generated_responses)
