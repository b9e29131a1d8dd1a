"""Exported subsets as TRL's own SFTTrainer prepares and trains on them: tokens, and which of them are learnt."""

import json
import math

import pytest
from datasets import load_dataset
from transformers import GPT2Config, GPT2LMHeadModel

from gradfiltering.data.export import name_run
from gradfiltering.data.training_formats import ExportSettings
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
pytestmark = pytest.mark.slow

MARKED_CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{% generation %}{{ m.content + '</s>' }}"
    "{% endgeneration %}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ALPACA = [
    {"instruction": "Say it.", "input": "", "output": "right"},
    {"instruction": "Name", "input": "o", "output": "w"},
]
TALKS = [
    {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "right"}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "Name one."},
            {"role": "assistant", "content": "wrong"},
            {"role": "user", "content": "another"},
            {"role": "assistant", "content": "right"},
        ]
    },
]


@pytest.fixture
def prepare(write_rows, file_source, make_tokenizer, tmp_path):
    """Exports rows and hands the file to SFTTrainer; returns text and learnt text of each of its examples."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.pad_token = MARKED_CHAT, "<s>"

    def run(rows, export_format, **config):
        folder = tmp_path / "run"
        settings = ExportSettings(format=export_format)
        write_subset(RunFolder(folder), file_source(write_rows(rows)).load(0), range(len(rows)), None, export=settings)
        name = "subset.jsonl" if export_format == "native" else f"subset_as_{export_format}.jsonl"
        exported = load_dataset("json", data_files=str(folder / name), split="train", cache_dir=str(tmp_path / "hf"))
        trainer = trl.SFTTrainer(
            model=GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)),
            args=trl.SFTConfig(
                output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to=[], max_steps=1,
                save_strategy="no", disable_tqdm=True, **config,
            ),
            train_dataset=exported,
            processing_class=tokenizer,
        )  # fmt: skip
        examples = []
        for example in trainer.train_dataset:
            labels = example["labels"]
            assert all(label in (-100, token) for token, label in zip(example["input_ids"], labels, strict=True))
            learnt_tokens = [label for label in labels if label != -100]
            examples.append((tokenizer.decode(example["input_ids"]), tokenizer.decode(learnt_tokens)))
        assert math.isfinite(trainer.train().training_loss)
        return folder, examples

    return run


TALK_TEXTS = [
    "<|user|>\nSay it.\n<|assistant|>\nright</s>",
    "<|system|>\ns\n<|user|>\nName one.\n<|assistant|>\nwrong</s><|user|>\nanother\n<|assistant|>\nright</s>",
]


@pytest.mark.parametrize("export_format", ["messages", "native"])
def test_trl_learns_the_answers_of_conversations(export_format, prepare):
    _, examples = prepare(TALKS, export_format, assistant_only_loss=True)
    assert examples == [(TALK_TEXTS[0], "right</s>"), (TALK_TEXTS[1], "wrong</s>right</s>")]


def test_trl_learns_one_answer_of_each_exported_pair(prepare):
    _, examples = prepare(TALKS, "prompt_completion")
    first_answer = TALK_TEXTS[1].partition("<|user|>\nanother")[0]
    assert examples == [
        (TALK_TEXTS[0], "right</s>"),
        (first_answer, "wrong</s>"),
        (TALK_TEXTS[1], "right</s>"),
    ]


def test_trl_learns_the_completions_of_single_questions(prepare):
    _, examples = prepare(ALPACA, "prompt_completion")
    assert [text for text, _ in examples] == ["Say it.right</s>", "Name\n\now</s>"]
    assert all(text.endswith(learnt) for text, learnt in examples)
    assert [learnt for _, learnt in examples] == ["right</s>", "w</s>"]


def test_trl_learns_the_answers_of_alpaca_rows_as_messages(prepare):
    _, examples = prepare(ALPACA, "messages", assistant_only_loss=True)
    assert examples[1] == ("<|user|>\nName\n\no\n<|assistant|>\nw</s>", "w</s>")


def test_native_pairs_are_learnt_and_named_in_dataset_info(prepare):
    folder, examples = prepare([{"prompt": "Which? ", "completion": "w"}] * 2, "native")
    assert examples == [("Which? w</s>", "w</s>")] * 2
    entry = json.loads((folder / "dataset_info.json").read_text("utf-8"))[name_run(folder)]
    assert entry["columns"] == {"prompt": "prompt", "response": "completion"} and entry["file_name"] == "subset.jsonl"
