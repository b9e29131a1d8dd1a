"""Signs of poor rows: right counts on rows of every kind, in several scripts, and no hit on good rows."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.row_duplicates import (
    BAND_WIDTH,
    BANDS,
    NEAR_SIMILARITY,
    PERMUTATIONS,
    ExactDuplicates,
    NearDuplicates,
)
from gradfiltering.data.row_hygiene import (
    HYGIENE_NAMES,
    UnexpectedLanguages,
    asks_any_of,
    check_hygiene,
    identify_language,
    is_empty,
    is_one_word,
    is_refusal,
    is_repetitive,
    is_unfinished,
    make_checks,
)
from gradfiltering.data.row_texts import RowText

STORY = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp, and every morning he wrote down how "
    "many ships had passed, what the wind had done, and whether the gulls had come back to the rocks below the tower."
)
ENGLISH = [
    "The committee will meet on Thursday to discuss the budget for the coming year and to elect a new chair.",
    "Plants turn sunlight into sugar, which feeds nearly every other living thing on land and in the sea.",
    "You should wash the vegetables first, then cut them into small pieces and fry them in a little oil.",
]


def find_rows(check, rows, batch_size=1000):
    """Add rows to a check in batches, and return the positions of those that show its sign."""
    for first_row in range(0, len(rows), batch_size):
        check.add_rows(rows[first_row : first_row + batch_size])
    hits = check.find_hits()
    assert hits.shape == (len(rows),) and hits.dtype == bool
    return np.flatnonzero(hits).tolist()


GOOD_ANSWERS = {
    "sentence": "Paris is the capital of France and also its largest city by far.",
    "number": "7",
    "name without a stop": "Paris",
    "short phrase": "The capital of France is Paris",
    "title": "Uncaffeinated? Think Again! New Research Suggests Drinking Coffee May Reduce Stroke Risk",
    "hashtags": "Trees give us oxygen and shade. Let us look after all of them! #SaveOurTrees #Nature",
    "address": "You will find the whole of the report here. Read it at https://example.org/reports/2020",
    "list": "Here are some fruits:\n- red apples\n- ripe bananas\n- sour cherries\n- sweet dates",
    "numbered list": "1. Wash the rice\n2. Boil the water\n3. Add salt and stir\n4. Wait for ten minutes",
    "lettered list": "i. Verify the identity\nii. Process the payment\niii. Display order\niv. Offer customer support",
    "letter": "Dear Anna, thank you for the flowers. They are lovely.\n\nYours sincerely,\nBob Miller",
    "sign-off": "Thank you for the flowers. They are lovely, and we hope to see you soon.\n\nSincerely,",
    "code ends in a brace": "int main() {\n  int total = 0;\n  for (int i = 0; i < 9; i++) {\n    total += i;\n  }\n}",
    "code ends in a word": "def add(a, b):\n    # Add two numbers. Of any kind.\n    total = a + b\n    return total",
    "fenced code": "Use this function, which adds:\n```python\ndef add(a, b):\n    return a + b\n```",
    "html": "<ul>\n  <li>One of the items</li>\n  <li>Two of the items</li>\n</ul>",
    "formula": "Let v be the speed of the first. Then the time that it takes is t = s/v",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n| 7 | 8 |\n| 9 | 1 |\n| 1 | 1 |\n| 2 | 2 |",
    "chinese": "巴黎是法国的首都，也是最大的城市。",
    "japanese": "東京は日本の首都です。とても大きいです。",
    "russian": "Париж — столица Франции.",
    "apology that was asked for": "I'm sorry I was late to the meeting yesterday; the train had broken down.",
    "about a model": "Write as an AI researcher would, and explain what a language model does with a prompt.",
}


@pytest.mark.parametrize("answer", GOOD_ANSWERS.values(), ids=GOOD_ANSWERS)
def test_good_answers_show_no_sign(answer):
    signs = {"refusal": is_refusal, "unfinished": is_unfinished, "repetition": is_repetitive, "empty": is_empty}
    assert [name for name, is_hit in signs.items() if is_hit(answer)] == []


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I have no opinion of my own.",
        "I’m sorry, but I cannot help with that.",
        "I'm sorry, but as an AI I don't have access to the internet.",
        "Sorry, I can't play a song.",
        "I cannot fulfill this request.",
        "Unfortunately, I am unable to browse the web.",
        "I am just a language model and have no body.",
    ],
)
def test_refusals(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The countries work together in many organisations. Both are members of the United Nations, of NATO and of the",
        "There are three steps to this. First the water has to boil, and then you add the salt and stir until it has",
        "The rules are simple. Each player rolls two dice, adds them up,",
        "1. Wash the rice well.\n2. Boil the water in a large pot.\n3. Add the salt and then slowly",
        "Use this function, which adds:\n```python\ndef add(a, b):\n    return a",
        "巴黎是法国的首都。它也是最大的",
    ],
)
def test_answers_that_break_off(answer):
    assert is_unfinished(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "the cat sat on the mat and " * 12,
        "I like it very much. " * 20,
        "no" * 40,
        "a" * 60,
        "很好吃的苹果" * 12,
    ],
)
def test_degenerate_repetition(answer):
    assert is_repetitive(answer)


@pytest.mark.parametrize("answer", [STORY, "C D D D D D D E E " * 8, "7 + 7 + 7 + 7 = 28, " * 12, "[0, 0, 0, 1]" * 30])
def test_prose_notes_and_numbers_are_no_degenerate_repetition(answer):
    assert not is_repetitive(answer)


def test_empty_and_one_word_answers():
    assert [is_empty(answer) for answer in ("", " \n", "7", "\u3000")] == [True, True, False, True]
    ones = ("7", "Yes.", "-3", "是", "да", "✓", "$5")
    assert all(is_one_word(answer) for answer in ones)
    more = ("", "Yes, sir", "巴黎", "1.5", "東京です")
    assert not any(is_one_word(answer) for answer in more)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_exact_duplicates_repeat_question_and_answer_of_an_earlier_row(batch_size):
    rows = [RowText("a", "b"), RowText("a", "c"), RowText("a", "b"), RowText("ab", ""), RowText("a", "b")]
    assert find_rows(ExactDuplicates(), rows, batch_size) == [2, 4]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_near_duplicates_differ_by_a_word_or_not_at_all(tmp_path, batch_size):
    rows = [
        RowText("Tell a story.", STORY), RowText("Tell a story.", STORY), RowText("Tell a story!", STORY),
        RowText("Tell a story.", STORY.replace("evening", "night")), RowText("Tell a story.", STORY[:90]),
        *(RowText("What is it?", text) for text in ENGLISH), RowText("", ""), RowText("What is 3 + 4?", "7"),
        RowText("What is 3 + 5?", "8"),
    ]  # fmt: skip
    assert find_rows(NearDuplicates(tmp_path), rows, batch_size) == [1, 2, 3]


def test_near_duplicates_in_a_script_without_blanks(tmp_path):
    text = "".join(chr(0x4E00 + 7 * position) for position in range(90))
    rows = [RowText("", text), RowText("", text[:45] + "\u4e00" + text[46:]), RowText("", text[:40])]
    assert find_rows(NearDuplicates(tmp_path), rows) == [1]


@pytest.mark.parametrize("check_type", [ExactDuplicates, UnexpectedLanguages])
def test_no_rows_show_no_signs(check_type, tmp_path):
    assert find_rows(check_type(), []) == find_rows(NearDuplicates(tmp_path), []) == []


@pytest.mark.parametrize("row_count", [1, 2, 5])
def test_rows_that_agree_in_nothing_are_no_near_duplicates(tmp_path, row_count):
    rows = [RowText(f"Question {number}?", STORY[30 * number : 30 * number + 60]) for number in range(row_count)]
    assert find_rows(NearDuplicates(tmp_path), rows) == []


def draw_similar_rows(row_count, seed):
    """Draw rows of which many share most of their words with others, a few all of them."""
    rng = np.random.default_rng(seed)
    stems = [rng.choice(5000, 60).astype(str) for _ in range(row_count // 12)]
    rows = []
    for _ in range(row_count):
        words = stems[rng.integers(len(stems))].copy()
        changed_words = rng.random(60) < rng.choice([0.0, 0.02, 0.04, 0.06, 0.08, 0.2, 0.5])
        words[changed_words] = rng.choice(5000, changed_words.sum()).astype(str)
        rows.append(RowText("Go on.", " ".join(words)))
    return rows


def find_near_rows_in_memory(rows):
    """Find near duplicates by datasketch's own index, which holds all sketches in memory."""
    lookup_index, sketches, near_rows = MinHashLSH(threshold=NEAR_SIMILARITY, num_perm=PERMUTATIONS), {}, []
    assert (lookup_index.b, lookup_index.r) == (BANDS, BAND_WIDTH)
    for row_id, row in enumerate(rows):
        words = f"{row.question} {row.answer}".lower().replace(".", "").split()
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        sketch.update_batch([" ".join(words[start : start + 3]).encode() for start in range(len(words) - 2)])
        if any(sketches[other].jaccard(sketch) >= NEAR_SIMILARITY for other in lookup_index.query(sketch)):
            near_rows.append(row_id)
        else:
            lookup_index.insert(row_id, sketch)
            sketches[row_id] = sketch
    return near_rows


@pytest.mark.parametrize("seed", [0, 1])
def test_near_duplicates_are_those_of_an_index_in_memory(tmp_path, seed):
    rows = draw_similar_rows(600, seed)
    near_rows = find_rows(NearDuplicates(tmp_path), rows, batch_size=70)
    assert near_rows == find_near_rows_in_memory(rows) and 100 < len(near_rows) < 500


FRENCH = "Ceci est un document qui décrit l'état actuel de la recherche en apprentissage automatique."
JAPANESE = "東京は日本の首都です。とても大きい町です。"


def test_languages_that_few_rows_are_in():
    rows = [RowText("", text) for text in [*ENGLISH * 10, FRENCH, JAPANESE, "7", "def add(a, b):\n    return a + b"]]
    assert find_rows(UnexpectedLanguages(), rows, batch_size=7) == [30, 31]
    assert find_rows(UnexpectedLanguages(), [RowText("", text) for text in [*ENGLISH * 2, FRENCH, FRENCH]]) == []
    assert find_rows(UnexpectedLanguages(), [RowText("", "7")]) == []
    assert [identify_language(text) for text in (ENGLISH[0], FRENCH, JAPANESE, "oui")] == ["en", "fr", "ja", None]


def test_questions_of_the_evaluation_are_recognised_whatever_case_and_blanks():
    rows = [RowText("Name a  city\n", "x"), RowText("Name a town", "x"), RowText("", "x")]
    assert find_rows(asks_any_of(["name A city", ""]), rows) == [0]


ROWS = [
    ("Name a city.", "", "Paris is a city."), ("Name a city.", "", "Paris is a city."),
    ("Say it.", "", "I'm sorry, but I cannot say it."), ("Go.", "", " "), ("How many?", "", "7"),
    ("Ask", "me", "Why not?"),
]  # fmt: skip


def test_counts_of_all_checks_and_a_second_look_from_the_cache(make_records, cache, tmp_path, monkeypatch):
    dataset = make_records(ROWS)
    hygiene = check_hygiene(dataset, ["ask me"], cache)
    counted = {name: count for name, count in hygiene.counts.items() if count}
    assert list(hygiene.counts) == list(HYGIENE_NAMES) and list(HYGIENE_NAMES) == list(make_checks(tmp_path, []))
    assert counted == {
        "exact_duplicate": 1, "empty_answer": 1, "one_word_answer": 1, "refusal": 1, "evaluation_prompt": 1
    }  # fmt: skip
    (result_folder,) = {path.parent for path in cache.folder.rglob("hygiene.npz")}
    assert not any(path.is_dir() for path in result_folder.iterdir())
    monkeypatch.delattr("gradfiltering.data.row_hygiene.make_checks")
    assert check_hygiene(dataset, ["Ask  me"], cache).counts == hygiene.counts
    set_aside = replace(dataset, set_aside=frozenset({5}))
    assert check_hygiene(set_aside, ["ask me"], cache).counts["evaluation_prompt"] == 0


def test_dropped_rows_are_unscored_with_the_sign_and_ids_stay(make_records, cache, tokenizer):
    dataset = make_records(ROWS)
    dropped = check_hygiene(dataset, [], cache).rows_to_drop(["refusal", "exact_duplicate", "empty_answer"])
    assert dropped == {1: "dropped: exact duplicate", 2: "dropped: refusal", 3: "dropped: empty answer"}
    examples = Encoder(tokenizer, 512, cache).encode(replace(dataset, dropped=dropped))
    assert examples.example_ids.tolist() == [0, 4, 5]
    assert dict(examples.unscored) == dropped | {3: "empty response"}
    assert check_hygiene(dataset, [], cache).rows_to_drop([]) == {}
