"""Compare both gradient engines with the loop for every causal architecture of transformers, and write the table.

    OMP_NUM_THREADS=1 python scripts/architecture_table.py "machine in words"

writes docs/architectures.md; with `--only gpt2 llama` it prints these lines and writes nothing. Models have two layers
and large random weights (tests/support/architectures.py says how they are made small), and compute in float64
throughout.
"""

import argparse
import datetime
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.architectures import (  # noqa: E402
    NOT_SMALL,
    Comparison,
    NotSmallError,
    causal_architectures,
    compare_engines,
)

INTRODUCTION = """# Architectures and gradient engines

The table shows, for each architecture, how far the per-example gradients of each engine are from those of a loop that
takes one row at a time. A number is the largest relative difference of a gradient, or of its norm, in float64. `auto`
is the engine that `gradients=auto` takes.

The models have two layers, weights of standard deviation 0.5, soft caps of 1, sliding windows of 4 tokens, and random
sinks. They read rows of 12, 7 and 9 tokens, padded together, with two adapters: LoRA on all linear layers but the head,
or on the layers named in tests/support/architectures.py where PEFT refuses that.

Models that are encoders by default (BERT, RoBERTa and their like) are listed with `is_decoder: true`, without which
they are refused. A refusal comes before anything is trained, because each engine is compared with the loop on two short
rows of the user's own model before it is used.

If only upper layers have adapters (`ensemble.lora.layers`), the fused engine starts from the hidden states that enter
the first of them. This was tested with adapters in the second of the two layers, and the states after the first as the
cache holds them. The engine then equals the loop to 1e-12 for every architecture that it supports
(tests/gradients/test_prefix.py), except nemotron_h, which was left out because its second layer has none of the adapted
modules.

{count} architectures of transformers {transformers} with torch {torch}; {date}; {machine}.
`python scripts/architecture_table.py "{machine}"`

| architecture | `auto` | fused | vmap |
|---|---|---|---|
"""

REASON_CHARACTERS = 160


def describe(comparison: Comparison) -> str:
    """Give a difference, or the reason of a refusal without the name of the model."""
    if not comparison.refusal:
        return f"{comparison.difference:.0e}"
    reason = comparison.refusal.partition("; let the engine")[0].replace("|", "/")
    return textwrap.shorten(reason, REASON_CHARACTERS, placeholder=" …")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machine", help="in words")
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", help="print these lines alone, and write nothing")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    lines, not_built = [], [f"- {name}: {reason}" for name, reason in sorted(NOT_SMALL.items())]
    for model_type in options.only or causal_architectures():
        try:
            chosen, comparisons = compare_engines(model_type)
        except NotSmallError as error:
            not_built.append(f"- {model_type}: {error}")
            continue
        described = " | ".join(describe(comparison) for comparison in comparisons.values())
        lines.append(f"| {model_type} | {chosen or 'none'} | {described} |")
        print(lines[-1], flush=True)
    if options.only:
        return
    introduction = INTRODUCTION.format(
        count=len(lines),
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        date=datetime.date.today(),
        machine=options.machine,
    )
    rest = "\n## Not compared\n\nNo small random model that computes could be made of these.\n\n" + "\n".join(not_built)
    (ROOT / "docs" / "architectures.md").write_text(introduction + "\n".join(lines) + "\n" + rest + "\n", "utf-8")


if __name__ == "__main__":
    main()
