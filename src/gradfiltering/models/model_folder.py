"""Folders given as a model or tokenizer: what they hold instead, and whether the weights are all there."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from safetensors import SafetensorError

from gradfiltering.errors import UserError

POINTER_START = b"version https://git-lfs.github.com/spec/"
WEIGHT_ENDINGS = (".safetensors", ".bin")
READ_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "spiece.model", "special_tokens_map.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
# Buffers that older versions of transformers saved and newer ones make themselves.
OLD_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_bias|bias|causal_mask)$|\.inv_freq$|(^|\.)position_ids$")
SHOWN_KEYS = 3
SAMPLE_MESSAGES = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def check_folder_files(folder: Path) -> None:
    """Refuse a folder whose files are not what their names say; a hub id passes.

    Raises:
        UserError: pointers of git-lfs in place of files, empty files, or JSON that cannot be read.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name in READ_FILES or path.suffix in WEIGHT_ENDINGS:
            _refuse_pointer(path)
    for name in (name for name in READ_FILES if name.endswith(".json") and (folder / name).is_file()):
        try:
            content = json.loads((folder / name).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{folder / name} is no JSON ({error}); copy or download it again") from error
        if not isinstance(content, dict):
            raise UserError(f"{folder / name} holds no JSON object; copy or download it again")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that holds an adapter, or damaged files; a hub id passes.

    Raises:
        UserError: says which, and the remedy.
    """
    check_folder_files(folder)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter of PEFT{_adapter_base(folder)}, not a whole model; give the base model, or "
            "merge the adapter into it (merge_and_unload, then save_pretrained) and give that folder"
        )


def check_quantization(config: Any, model_name: str) -> None:
    """Refuse a model whose weights are stored quantised: what they were before decides what is measured."""
    quantization = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if quantization:
        settings = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
        raise UserError(
            f"{model_name} is quantised ({settings.get('quant_method', 'by an unnamed method')}); give its weights in "
            "bf16, fp16 or fp32, as most models have them under the name without the quantisation (a target can be "
            "quantised as it is loaded: quantization 4bit or 8bit), or delete quantization_config from config.json "
            "where the weights are none of it"
        )


def check_loaded_weights(loading_info: Mapping[str, Any], model_name: str, class_name: str) -> None:
    """Refuse weights that would be random, that the model does not use, or that have another shape.

    Args:
        loading_info: as `from_pretrained` gives it with `output_loading_info`; tied weights are not
            among the missing, nor are those that the model's class ignores.
        model_name: folder or hub id.
        class_name: of the model.
    """
    problems = []
    if missing_keys := sorted(loading_info["missing_keys"]):
        problems.append(f"lacks {_list_keys(missing_keys)}")
    if unexpected_keys := sorted(key for key in loading_info["unexpected_keys"] if not OLD_BUFFERS.search(key)):
        problems.append(f"holds {_list_keys(unexpected_keys)}, which {class_name} does not use")
    for key, saved_shape, model_shape in sorted(loading_info["mismatched_keys"])[:SHOWN_KEYS]:
        problems.append(f"holds {key} of shape {list(saved_shape)} where config.json asks for {list(model_shape)}")
    problems += [str(message).splitlines()[0] for message in loading_info.get("error_msgs", [])[:1]]
    if problems:
        raise UserError(
            f"the checkpoint {model_name} does not fit its config.json: it {' and '.join(problems)}. Give a checkpoint "
            f"of a causal language model with the weights of {class_name}, whole and under its own names, as "
            "save_pretrained writes it"
        )


def describe_loading_error(error: BaseException, model_name: str) -> str | None:
    """Put an error of damaged files or missing packages into words; None for any other error."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"the pickled weights of {model_name} hold more than tensors, which could run any code, and are not read; "
            "convert them to safetensors where you trust them (load the model, then save_pretrained)"
        )
    if isinstance(error, SafetensorError | EOFError):
        return f"the weights of {model_name} cannot be read ({str(error).splitlines()[0]}); copy or download them again"
    if isinstance(error, ImportError):
        return f"{model_name} needs a package that is not installed: {' '.join(str(error).split())[:300]}"
    if isinstance(error, ValueError) and "attn_implementation" in str(error):
        first_line = str(error).splitlines()[0]
        return f"{model_name} has no such attention: {first_line[:200]}. Choose the attention auto or eager"
    return None


def check_tokenizer(tokenizer: Any, tokenizer_name: str) -> None:
    """Refuse a tokenizer without a vocabulary, or with a chat template that fails or has no plain name."""
    if not tokenizer("Say 1")["input_ids"]:
        raise UserError(
            f"the tokenizer of {tokenizer_name} has no vocabulary, so its files are missing; put tokenizer.json (or "
            "vocabulary files) into the folder, or name another tokenizer"
        )
    chat_template = getattr(tokenizer, "chat_template", None)
    if isinstance(chat_template, dict) and "default" not in chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer_name} has several chat templates ({', '.join(sorted(chat_template))}) and "
            "none is named default; keep the one you want under that name in its folder"
        )
    if chat_template is None:
        return
    try:
        tokenizer.apply_chat_template(SAMPLE_MESSAGES, tokenize=False)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template of {tokenizer_name} is broken ({str(error).splitlines()[0]}); mend it in its "
            "tokenizer_config.json or chat_template.jinja, or delete it"
        ) from error
    except TemplateError:  # raised by the template itself, for want of a system turn perhaps
        return
    except Exception as error:
        raise UserError(
            f"the chat template of {tokenizer_name} fails on a question with an answer "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); mend or delete it"
        ) from error


def _refuse_pointer(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER_START)) == POINTER_START
    if is_pointer:
        raise UserError(
            f"{path} is a pointer of git-lfs, not the file itself; run `git lfs install` and `git lfs pull` in its "
            "repository, or download the model with `hf download`"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; copy or download it again")


def _adapter_base(folder: Path) -> str:
    try:
        base_name = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return ""
    return f" for {base_name}" if base_name else ""


def _list_keys(keys: list[str]) -> str:
    shown_keys = ", ".join(keys[:SHOWN_KEYS])
    return shown_keys if len(keys) <= SHOWN_KEYS else f"{shown_keys} and {len(keys) - SHOWN_KEYS} more"
