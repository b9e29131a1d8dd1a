"""Rows that become learnable only after others: two skills taught alone, compositions of them, and a rare format.

Each word has a partner, which only the rows tell (the first skill); the second skill is to find the last word of a
list. A composition asks for the partner of the last word: f(g(x)) for the skills f and g. The rare format asks for a
partner, as the first skill does, and wants the answer in a form that few rows show.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gradfiltering.seeding import numpy_rng
from gradfiltering.synthetic.task_families import NAMES, WORDS

CurriculumRow = dict[str, str]
CurriculumSplit = Literal["train", "heldout"]

PARTNER, LAST_WORD, COMPOSITION, RARE_FORMAT = "partner", "last_word", "composition", "rare_format"
FAMILY_NAMES = (PARTNER, LAST_WORD, COMPOSITION, RARE_FORMAT)
SKILL_KIND = "clean"  # of rows that teach one skill alone; the others bear their family's name
PARTNER_STEP = 7  # shares no divisor with the number of words, so that partners make one ring over all words
LIST_WORDS = (3, 6)
HELDOUT_SHARE = 0.2
QUESTIONS = {
    PARTNER: ("{name} asks: which word is the partner of {word}?", "Tell {name} the partner of {word}."),
    LAST_WORD: ("{name} asks: which word comes last in this list?", "Tell {name} the last word of the list."),
    COMPOSITION: (
        "{name} asks: which word is the partner of the last word in this list?",
        "Tell {name} the partner of the last word of the list.",
    ),
    RARE_FORMAT: (
        "{name} asks for the partner of {word}, written as a record.",
        "Write the partner of {word} as a record for {name}.",
    ),
}


def find_partner(word: str) -> str:
    """Return the word's partner."""
    return WORDS[(WORDS.index(word) + PARTNER_STEP) % len(WORDS)]


def is_held_out(question: str, listed_words: Sequence[str]) -> bool:
    """Decide by the question alone whether it is held out, whatever the run's seed."""
    return bool(numpy_rng("curriculum split", question, *listed_words).random() < HELDOUT_SHARE)


def generate_rows(family_counts: dict[str, int], seed: int, split: CurriculumSplit) -> list[CurriculumRow]:
    """Generate rows of each family, in shuffled order.

    Args:
        family_counts: number of rows by family, any of `FAMILY_NAMES`.
        seed: decides the rows and their order.
        split: no question stands in both.

    Returns:
        Rows with `instruction`, `input` (the list, or empty), `output` and `source`, the family's name. Facts come
        again under other names, so that questions may repeat where more rows are asked for than there are questions.
    """
    generator = numpy_rng(seed, "curriculum", split)
    rows = [
        make_row(family_name, generator, split) for family_name, count in family_counts.items() for _ in range(count)
    ]
    return [rows[index] for index in generator.permutation(len(rows))]


def make_row(family_name: str, generator: np.random.Generator, split: CurriculumSplit) -> CurriculumRow:
    """Draw a row of a family."""
    while True:
        name = NAMES[int(generator.integers(len(NAMES)))]
        word_count = int(generator.integers(*LIST_WORDS)) if family_name in (LAST_WORD, COMPOSITION) else 1
        listed_words = [WORDS[index] for index in generator.permutation(len(WORDS))[:word_count]]
        wordings = QUESTIONS[family_name]
        question = wordings[int(generator.integers(len(wordings)))].format(name=name, word=listed_words[-1])
        if is_held_out(question, listed_words) == (split == "heldout"):
            break
    answer = listed_words[-1] if family_name == LAST_WORD else find_partner(listed_words[-1])
    return {
        "instruction": question,
        "input": ", ".join(listed_words) if word_count > 1 else "",
        "output": f"[{listed_words[-1]} = {answer}]" if family_name == RARE_FORMAT else answer,
        "source": family_name,
    }


def kind_of_family(family_name: str) -> str:
    """Return the planted kind of a family's rows."""
    return family_name if family_name in (COMPOSITION, RARE_FORMAT) else SKILL_KIND
