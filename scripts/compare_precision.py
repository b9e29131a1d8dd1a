"""Differences of the fused engine's norms in bfloat16 from those in float32, and of the latter from a float64 loop.

    export PYTHONPATH=.  # for the loop engine among the tests
    python scripts/compare_precision.py --tokenizer folder/of/gpt2 --data alpaca_data.json --rows 256

The same weights, adapters (B drawn at random, as in mid-training) and rows each time. The loop takes the first
`--loop-rows` rows only.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from measured_proxy import ALL_LAYERS, MeasuredProxy, add_common_options

from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.runs.memory import keep_freed_memory, limit_kept_programs
from gradfiltering.statistics.rank_correlation import spearman_correlation
from tests.reference.gradients import LoopEngine

CHUNK_TOKENS = 2048


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the norms three times, and print how far they are from each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, is_data_required=True)
    parser.add_argument("--loop-rows", type=int, default=16)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    limit_kept_programs()
    loop_rows = min(options.loop_rows, options.rows)
    exact_norms = measure_norms(options, LoopEngine, "fp64", loop_rows)
    wide_norms = measure_norms(options, FusedEngine, "fp32", options.rows)
    narrow_norms = measure_norms(options, FusedEngine, "bf16", options.rows)
    relative = np.abs(narrow_norms / wide_norms - 1)
    figures = {
        "rows": options.rows,
        "members": options.members,
        "fp32_fused_against_fp64_loop_max_relative": float(np.abs(wide_norms[:, :loop_rows] / exact_norms - 1).max()),
        "bf16_against_fp32_spearman": [
            spearman_correlation(narrow, wide) for narrow, wide in zip(narrow_norms, wide_norms, strict=True)
        ],
        "bf16_against_fp32_median_relative": float(np.median(relative)),
        "bf16_against_fp32_max_relative": float(relative.max()),
    }
    print(json.dumps(figures, indent=2))


def measure_norms(
    options: argparse.Namespace, engine_class: type[GradientEngine], precision: str, row_count: int
) -> np.ndarray:
    """Measure [M, N] gradient norms of the first rows in one precision."""
    proxy = MeasuredProxy(options, precision)
    model = proxy.model(ALL_LAYERS, precision)
    engine = engine_class(model, ResponseNLL(), CHUNK_TOKENS)
    engine.to(proxy.device)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    adapters = {name: value.to(dtype) for name, value in proxy.adapters(model, ALL_LAYERS).items()}
    order = np.argsort(proxy.examples.lengths[:row_count], kind="stable")
    norms = np.zeros((proxy.members, row_count))
    for start in range(0, row_count, options.batch_size):
        positions = order[start : start + options.batch_size]
        measured = engine.measure(adapters, proxy.batch(positions), with_mean_gradient=False)
        norms[:, positions] = measured.grad_norm.cpu().numpy()
        print(f"{precision}: {start + len(positions)} of {row_count} rows", flush=True)
    return norms


if __name__ == "__main__":
    main()
