"""Seconds and peak memory of the SPICE selector on made-up projections.

    python scripts/bench_spice.py --rows 52002 --width 1024 --fraction 0.1 --spectrum decaying

`flat` draws all directions alike, which is the hardest for lazy evaluation; `decaying` gives direction j the standard
deviation 1/√j, nearer to gradients of a language model. Rows differ in length by a log-normal factor.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from gradfiltering.requests import Evidence, Projections
from gradfiltering.runs.environment import peak_memory_bytes
from gradfiltering.selectors.spice import SpiceSelector


def draw_projections(rows: int, width: int, spectrum: str, seed: int) -> np.ndarray:
    """Draw [1, N, K] float32."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((rows, width), dtype=np.float32)
    if spectrum == "decaying":
        directions /= np.sqrt(np.arange(1, width + 1, dtype=np.float32))
    directions *= np.exp(0.5 * rng.standard_normal((rows, 1))).astype(np.float32) / np.float32(np.sqrt(width))
    return directions[None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Select once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=52_002)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--spectrum", choices=("flat", "decaying"), default="decaying")
    parser.add_argument("--mode", choices=("full", "diagonal"), default="full")
    parser.add_argument("--conflict", type=float, default=0.1)
    parser.add_argument("--pool", type=int, default=None)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the gradients")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    gradients = draw_projections(options.rows, options.width, options.spectrum, options.seed)
    gradients *= np.float32(options.scale)
    no_tokens = np.zeros(options.rows, dtype=np.int32)
    evidence = Evidence(
        np.arange(options.rows), options.seed, no_tokens, no_tokens, None, {Projections(members=1): gradients}
    )
    selector = SpiceSelector(
        fraction=options.fraction, conflict=options.conflict, mode=options.mode, members="first", pool=options.pool
    )
    started = time.monotonic()
    selection = selector.select(evidence, options.rows, None)
    seconds = time.monotonic() - started
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()} cores")
    peak = peak_memory_bytes(torch.device("cpu")) / 2**30
    measured = {"selected": len(selection.example_ids), "seconds": round(seconds, 1), "peak_gib": round(peak, 2)}
    print(json.dumps({**vars(options), "threads": threads, **measured, **selection.facts}))


if __name__ == "__main__":
    main()
