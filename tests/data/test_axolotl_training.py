"""Exported messages as axolotl's own chat strategy tokenises them: which parts of a conversation are learnt."""

import importlib.util
import json

import pytest

from gradfiltering.data.training_formats import ExportSettings
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("axolotl") is None or importlib.util.find_spec("addict") is None,
    reason="axolotl is not installed: pip install --no-deps axolotl==0.19.0 addict==2.4.0",
)

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "Say it."}, {"role": "assistant", "content": "right"}
DETAIL_ENTRY = {"message_field_training": "train", "message_field_training_detail": "train_detail"}


@pytest.fixture
def learnt_texts(write_rows, file_source, make_tokenizer, tmp_path):
    """Exports rows as messages; returns what axolotl trains on of each, as text."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE

    def run(rows, **dataset_entry):
        from axolotl.prompt_strategies.chat_template import StrategyLoader
        from axolotl.utils.dict import DictDefault

        folder = tmp_path / "run"
        settings = ExportSettings(format="messages")
        write_subset(RunFolder(folder), file_source(write_rows(rows)).load(0), range(len(rows)), None, export=settings)
        strategy = StrategyLoader()(
            tokenizer,
            DictDefault(train_on_inputs=False, sequence_len=512, chat_template="tokenizer_default"),
            {"chat_template": "tokenizer_default", "train_on_eos": "turn", **dataset_entry},
        )
        texts = []
        for line in (folder / "subset_as_messages.jsonl").read_text("utf-8").splitlines():
            tokenised = strategy.tokenize_prompt(json.loads(line))
            learnt = [token for token in tokenised["labels"] if token != -100]
            texts.append(tokenizer.decode(learnt))
        return texts

    return run


def test_axolotl_learns_each_answer_and_its_end(learnt_texts):
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}]
    assert learnt_texts(rows) == ["right</s>", "right</s>right</s>"]


def test_axolotl_leaves_out_turns_that_are_marked(learnt_texts):
    other = {"role": "assistant", "content": "wrong", "weight": 0}
    rows = [{"messages": [QUESTION, other, QUESTION, ANSWER]}]
    assert learnt_texts(rows, **DETAIL_ENTRY) == ["right</s>"]


def test_axolotl_leaves_out_stretches_that_are_marked(learnt_texts):
    details = [
        {"begin_offset": 0, "end_offset": 3, "train": False},
        {"begin_offset": 4, "end_offset": 8, "train": True},
    ]
    partly = {"role": "assistant", "content": "not right", "train_detail": details}
    (learnt,) = learnt_texts([{"messages": [QUESTION, partly]}], **DETAIL_ENTRY)
    assert learnt.removesuffix("</s>").strip() == "right"
