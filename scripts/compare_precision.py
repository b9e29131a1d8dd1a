"""Differences of the fused engine's norms in a narrow type from those in fp32, and of both from a float64 loop.

export PYTHONPATH=.  # for the loop engine among the tests
python scripts/compare_precision.py --proxy gpt2-random --tokenizer folder/of/gpt2 --data alpaca_data.json --rows 256

The same weights, adapters (B drawn at random, as in mid-training) and rows each time. The loop takes the first
`--loop-rows` rows only.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tests.reference.gradients import LoopEngine

from bench_gradients import Bench, add_common_options
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--loop-rows", type=int, default=16)
    options = parser.parse_args()
    keep_freed_memory()
    limit_kept_programs()
    bench = Bench(options)
    exact = norms(bench, LoopEngine, "fp64", options.loop_rows)
    wide = norms(bench, FusedEngine, "fp32", len(bench.examples))
    narrow = norms(bench, FusedEngine, "bf16", len(bench.examples))
    relative = np.abs(narrow / wide - 1)
    figures = {
        "rows": len(bench.examples),
        "members": options.members,
        "fp32_fused_against_fp64_loop_max_relative": float(np.abs(wide[:, : options.loop_rows] / exact - 1).max()),
        "bf16_against_fp32_spearman": [float(spearmanr(*pair)[0]) for pair in zip(narrow, wide, strict=True)],
        "bf16_against_fp32_median_relative": float(np.median(relative)),
        "bf16_against_fp32_max_relative": float(relative.max()),
    }
    print(json.dumps(figures, indent=2))


def norms(bench: Bench, kind: type[GradientEngine], precision: str, rows: int) -> np.ndarray:
    """[M, rows] gradient norms."""
    model = bench.model(precision)
    engine = kind(model, ResponseNLL(), 2048)
    engine.to(bench.device)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    adapters = {name: value.to(dtype) for name, value in bench.adapters(model).items()}
    order = np.argsort(bench.examples.lengths[:rows], kind="stable")
    all_norms: Any = np.zeros((bench.options.members, rows))
    for start in range(0, rows, bench.options.batch_size):
        positions = order[start : start + bench.options.batch_size]
        measured = engine.measure(adapters, bench.batch(positions), with_mean_gradient=False)
        all_norms[:, positions] = measured.grad_norm.cpu().numpy()
        print(f"{precision}: {start + len(positions)} of {rows} rows", flush=True)
    return all_norms


if __name__ == "__main__":
    main()
