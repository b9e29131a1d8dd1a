"""Answers through vLLM: refused where it cannot run; what it is asked for, by a stand-in of its interface."""

import json
import sys
from importlib import util
from types import ModuleType, SimpleNamespace

import pytest
import torch

from gradfiltering.errors import UserError
from gradfiltering.judging.answers import generate_answers
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.vllm_answers import check_vllm
from gradfiltering.runs.cache import Cache
from tests.support.small_targets import load_small_target, make_small_dataset

PROMPTS = [Prompt("set", "1", "Say it.", "", None), Prompt("set", "2", "Name one.", "", None)]


def test_without_vllm_or_a_gpu_it_is_refused_with_a_remedy(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install vllm.*let transformers generate"):
            check_vllm()
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs a GPU.*let transformers generate"):
        check_vllm()


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in that notes what it is asked for, and answers `x` and the stop token."""
    asked = SimpleNamespace(engines=[], sampling=[], adapters=[], prompts=[])

    class Engine:
        def __init__(self, **options):
            asked.engines.append(options)

        def generate(self, prompts, sampling, lora_request):
            asked.adapters.append(lora_request)
            asked.prompts.append([prompt["prompt_token_ids"] for prompt in prompts])
            token_ids = (5, sampling["stop_token_ids"][0], 7)
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=token_ids)]) for _ in prompts]

    def sampling_params(**options):
        asked.sampling.append(options)
        return options

    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = Engine, sampling_params
    request.LoRARequest = lambda name, number, path: (name, number, path)
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_one_base_model_is_loaded_for_all_adapters(vllm, monkeypatch, tmp_path):
    language_model = load_small_target(make_small_dataset(8), tmp_path)
    folders = {name: tmp_path / name for name in ("candidate", "full")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": 12}))
        (folder / "adapter_model.safetensors").write_text(name)
    settings = GenerationSettings(6, 2, "vllm")
    for _ in range(2):  # the second time from the cache
        generated = generate_answers(
            folders, language_model, PROMPTS, "plain", settings, Cache(tmp_path / "cache"), torch.device("cpu")
        )
    (engine,), (sampling,) = vllm.engines, vllm.sampling
    assert engine["model"] == language_model.path and engine["dtype"] == "float32" and engine["max_lora_rank"] == 16
    assert sampling["temperature"] == 0.0 and sampling["max_tokens"] == 6
    assert [(number, path) for _, number, path in vllm.adapters] == [
        (1, str(folders["candidate"])),
        (2, str(folders["full"])),
    ]
    tokenizer = language_model.tokenizer
    assert vllm.prompts[0] == [tokenizer(text)["input_ids"] for text in ("Say it.\n", "Name one.\n")]
    for responses in generated.responses.values():
        assert [response.response_tokens for response in responses] == [2, 2]
        assert all(response.stop_reason == "eos" for response in responses)
        assert responses[0].response == tokenizer.decode([5])
