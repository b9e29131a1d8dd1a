"""Seconds, memory and value of the greedy selectors on made-up rows, in one round and in two.

    python scripts/bench_selectors.py --selector k_center --rows 1000000 --count 100 --shards 1 100
    python scripts/bench_selectors.py --selector facility_location --rows 100000 --count 100 --neighbours 64

Rows lie in 1,000 clusters of unequal size. What a selection is worth is measured alike for all: the mean similarity to
the nearest selected row over 2,000 random rows, the log determinant, or the greatest distance to a selected row. With
neighbours and one round, recall is the share of the nearest rows of 1,000 random ones that are found.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gradfiltering.requests import Embeddings, Evidence, Projections
from gradfiltering.runs.environment import peak_memory_bytes
from gradfiltering.selectors.base import Selection
from gradfiltering.selectors.facility_location import FacilityLocationSelector, unit_rows
from gradfiltering.selectors.k_center import KCenterSelector
from gradfiltering.selectors.neighbours import find_nearest
from gradfiltering.selectors.spice import SpiceSelector

GreedySelector = SpiceSelector | FacilityLocationSelector | KCenterSelector

CLUSTERS = 1000
BLOCK_ROWS = 1 << 16
MEASURED_ROWS = 2000
RECALLED_ROWS = 1000


def clustered_rows(count: int, width: int, seed: int) -> np.ndarray:
    """[N, D] float32."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=CLUSTERS)
    centres = rng.standard_normal((CLUSTERS, width), dtype=np.float32)
    rows = rng.standard_normal((count, width), dtype=np.float32)
    rows *= 0.3
    clusters = rng.choice(CLUSTERS, size=count, p=weights / weights.sum())
    for start in range(0, count, BLOCK_ROWS):
        rows[start : start + BLOCK_ROWS] += centres[clusters[start : start + BLOCK_ROWS]]
    return rows


def selection_value(selector: GreedySelector, points: np.ndarray, selection: Selection) -> float:
    """Value of a selection: what the selector makes large or, for k-center, small."""
    if isinstance(selector, FacilityLocationSelector):
        sample = np.random.default_rng(1).choice(len(points), size=min(MEASURED_ROWS, len(points)), replace=False)
        return selector.coverage_of(unit_rows(points[sample]), unit_rows(points[selection.example_ids]))
    return float(selection.facts["radius" if isinstance(selector, KCenterSelector) else "log_determinant"])


def measure_recall(points: np.ndarray, count: int) -> float:
    """Share of the nearest rows of sampled rows that the search over all rows finds."""
    rows = unit_rows(points)
    nearest_rows, _ = find_nearest(rows, rows, count)
    sample = np.random.default_rng(2).choice(len(rows), size=min(RECALLED_ROWS, len(rows)), replace=False)
    exact = np.argsort(-(rows[sample] @ rows.T), axis=1)[:, :count]
    row_pairs = zip(exact, nearest_rows[sample], strict=True)
    shares = [len(np.intersect1d(exact_rows, found_rows)) / count for exact_rows, found_rows in row_pairs]
    return float(np.mean(shares))


def main(arguments: Sequence[str] | None = None) -> None:
    """Select by each number of shards, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selector", choices=("spice", "facility_location", "k_center"), required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--count", type=int, default=100, help="rows to select")
    parser.add_argument("--width", type=int, default=16, help="of embeddings or projections")
    parser.add_argument("--shards", type=int, nargs="+", default=[1])
    parser.add_argument("--neighbours", type=int, help="of facility_location")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.neighbours is not None and options.selector != "facility_location":
        parser.error("--neighbours are of --selector facility_location")
    points = clustered_rows(options.rows, options.width, options.seed)
    no_tokens = np.zeros(options.rows, dtype=np.int32)
    results = {Embeddings(): points, Projections(members=1): points[None]}
    evidence = Evidence(np.arange(options.rows), options.seed, no_tokens, no_tokens, None, results)
    selectors: dict[str, GreedySelector] = {
        "spice": SpiceSelector(None, options.count, conflict=0.0),
        "facility_location": FacilityLocationSelector(None, options.count, neighbours=options.neighbours),
        "k_center": KCenterSelector(None, options.count),
    }
    for shards in options.shards:
        sharded = replace(selectors[options.selector], shards=shards)
        started, started_processor = time.monotonic(), time.process_time()
        selection = sharded.select(evidence, options.rows, None)
        seconds, processor = time.monotonic() - started, time.process_time() - started_processor
        print(
            json.dumps(
                {
                    "selector": options.selector, "rows": options.rows, "count": options.count, "shards": shards,
                    "neighbours": options.neighbours,
                    "seconds": round(seconds, 1), "processor_seconds": round(processor, 1),
                    "peak_gib": round(peak_memory_bytes(torch.device("cpu")) / 2**30, 2),
                    "value": round(selection_value(sharded, points, selection), 4),
                }
            ),
            flush=True,
        )  # fmt: skip
    if options.neighbours is not None and 1 in options.shards:
        print(json.dumps({"recall": round(measure_recall(points, options.neighbours), 4)}))


if __name__ == "__main__":
    main()
