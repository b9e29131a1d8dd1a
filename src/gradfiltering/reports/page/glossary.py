"""Terms of the pages in plain words, shown where they stand and listed at the end of a run's page."""

import re

from markupsafe import Markup, escape

# Term -> its meaning; longer terms are looked for first.
TERMS = {
    "PWS": "Pairwise winning score: 1 is on a par, above 1 the model trained on the selected rows gives the better "
    "answers more often, 2 would be always.",
    "held-out loss": "How badly the trained model predicts answers of rows that it never saw, in nats per token. "
    "Lower is better. A mean over rows; by tokens, each of their tokens counts the same instead.",
    "random rows": "As many rows, drawn by chance. A selection is worth something only if it beats them.",
    "proxy": "The small model that the rows are scored with. The model you train in the end may be another one.",
    "ensemble": "Several small adapters trained on the same rows, each from a start of its own.",
    "members": "The adapters of the ensemble. Where they agree about a row, its measurement can be relied on.",
    "gradient norm": "How strongly a row would still change the model. It falls when the model has learned the row.",
    "resampled ensembles": "The same scores from members drawn anew, with replacement, 100 times: how much the choice "
    "depends on which members happened to be trained.",
    "Holm's correction": "Makes up for testing several settings at once: one of many looks good by luck alone.",
    "seeds": "Repetitions of the whole run that differ by chance alone. Three are needed to tell a difference from "
    "luck.",
    "interval": "Where the true value lies with a confidence of 95 %. An interval that holds the even value shows no "
    "difference.",
    "Spearman": "Agreement of two orders: 1 is the same order, 0 none, −1 the reverse.",
    "IFD": "Instruction-following difficulty: how surprising the answer is to the model with its prompt, divided by "
    "how surprising it is alone. Near 1 the prompt helps little, and the row is taken first; from 1 on the prompt "
    "hinders, and the row is taken last.",
    "AUC": "Chance that a clean row scores above a planted bad one: 1 is always, 0.5 is guessing.",
    "G_s": "A row's gradient norm at the early snapshot, the mean over the members.",
    "G_t": "A row's gradient norm at the late snapshot, the mean over the members.",
    "V_t": "Variance of a row's gradient norm over the members at the late snapshot: small where they agree.",
    "V/G²": "How much the members disagree, relative to the size of the gradient norm.",
}
_TERM = re.compile(
    r"(?<!\w)(" + "|".join(sorted(map(re.escape, TERMS), key=len, reverse=True)) + r")(?![\w²])", re.IGNORECASE
)
_BY_FOLDED_NAME = {term.casefold(): meaning for term, meaning in TERMS.items()}


def mark_terms(text: str) -> Markup:
    """Escape a text and mark the first use of each term in it, so that the page can explain it.

    The meaning is shown when a pointer rests on the term, and when it has the keyboard's focus.
    """
    seen_terms: set[str] = set()
    parts: list[str] = []
    end = 0
    for match in _TERM.finditer(text):
        folded = match[0].casefold()
        if folded in seen_terms:
            continue
        seen_terms.add(folded)
        meaning = escape(_BY_FOLDED_NAME[folded])
        parts += [
            str(escape(text[end : match.start()])),
            f'<dfn tabindex="0" data-tip="{meaning}">{escape(match[0])}</dfn>',
        ]
        end = match.end()
    return Markup("".join([*parts, str(escape(text[end:]))]))


def mark_verdict(sentence: str) -> Markup:
    """Set the verdict's own words apart from its reasons, and mark the terms in these."""
    word, separator, reasons = sentence.partition(": ")
    return Markup('<span class="word">') + escape(word + separator.strip()) + Markup("</span> ") + mark_terms(reasons)
