"""Coverage of nominal 95 % intervals of a winning score over seeds, by simulation, and the rate of false stars.

    python scripts/simulate_intervals.py [--experiments 4000] [--resamples 400] [--json FILE]

An outcome (1 win, 0 tie, -1 loss) comes of a normal variable cut at two thresholds, which is the sum of the effect, a
part of the seed, one of the random subset drawn within the seed, one of the prompt (shared by all seeds, or each
seed's own) and the rest. Seeds have one draw, or one to three in turn. Between-seed spread is the standard deviation of
the seeds' true winning scores. Coverage counts intervals that hold the true score over all seeds, draws and prompts
there could be; a false star is an interval that leaves out no difference where there is none.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.seed_intervals import two_way_interval

CONFIDENCE = 0.95
TIE_THRESHOLD = 0.35  # of the standard normal rest: about a fifth of ties, as GPT-4 gives
PROMPT_DEVIATION, DRAW_DEVIATION = 0.5, 0.1  # of the prompt's part, on the same scale; of a draw's, as a score
MOST_DRAWS = 3
EXPERIMENTS_AT_ONCE = 100
Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A kind of experiment.

    Attributes:
        seeds: number of seeds.
        prompts: prompts judged for each seed.
        spread: standard deviation between the seeds' true scores.
        effect: effect, in standard deviations of the rest; 0 for none.
        shares_prompts: whether all seeds are judged on the same prompts.
        unequal_draws: one, two, three, one, … random subsets for the seeds, else one each.
    """

    seeds: int
    prompts: int
    spread: float
    effect: float
    shares_prompts: bool
    unequal_draws: bool

    @property
    def draw_counts(self) -> np.ndarray:
        """[S] random subsets of each seed."""
        return 1 + np.arange(self.seeds) % MOST_DRAWS if self.unequal_draws else np.ones(self.seeds, dtype=int)


def list_settings() -> Iterator[Setting]:
    """List the settings of the comparison."""
    for seeds, prompts, spread in product((3, 4, 5, 8, 10), (80, 300), (0.0, 0.05, 0.1, 0.15)):
        for effect, shares_prompts, unequal_draws in ((0.0, True, False), (0.0, False, True), (0.4, True, True)):
            yield Setting(seeds, prompts, spread, effect, shares_prompts, unequal_draws)


def true_mean(setting: Setting) -> float:
    """Compute the mean outcome over all seeds, draws and prompts there could be."""
    total_deviation = np.sqrt(1 + PROMPT_DEVIATION**2 + sum(part**2 for part in latent_deviations(setting)))
    upper, lower = (
        (TIE_THRESHOLD - setting.effect) / total_deviation,
        (-TIE_THRESHOLD - setting.effect) / total_deviation,
    )
    return float(stats.norm.sf(upper) - stats.norm.cdf(lower))


def latent_deviations(setting: Setting) -> tuple[float, float]:
    """Translate the spread between seeds and between draws from winning scores to the normal variable."""
    within = np.sqrt(1 + PROMPT_DEVIATION**2)
    # The slope of the mean outcome in the effect.
    slope = sum(stats.norm.pdf((sign * TIE_THRESHOLD - setting.effect) / within) for sign in (1, -1)) / within
    has_draws = setting.unequal_draws
    return setting.spread / slope, (DRAW_DEVIATION / slope if has_draws else 0.0)


def simulate_outcomes(setting: Setting, experiments: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw experiments.

    Returns:
        [R, S, D, P] outcomes 1, 0 and -1 and [S, D] bool, the draws that a seed has.
    """
    seed_deviation, draw_deviation = latent_deviations(setting)
    counts = setting.draw_counts
    draws, shape = int(counts.max()), (experiments, setting.seeds)
    prompt_seeds = 1 if setting.shares_prompts else setting.seeds
    latent = rng.standard_normal((*shape, draws, setting.prompts), dtype=np.float32)
    latent += PROMPT_DEVIATION * rng.standard_normal((experiments, prompt_seeds, 1, setting.prompts), dtype=np.float32)
    latent += (seed_deviation * rng.standard_normal((*shape, 1, 1))).astype(np.float32)
    latent += (draw_deviation * rng.standard_normal((*shape, draws, 1))).astype(np.float32)
    latent += setting.effect
    outcomes = (latent > TIE_THRESHOLD).astype(np.int8) - (latent < -TIE_THRESHOLD).astype(np.int8)
    return outcomes, np.arange(draws) < counts[:, None]


def average_draws(outcomes: np.ndarray, has_draw: np.ndarray) -> np.ndarray:
    """Average over the draws of each seed, [R, S, D, P] -> [R, S, P]."""
    weights = has_draw / has_draw.sum(1, keepdims=True)  # [S, D]
    averages: np.ndarray = np.einsum("rsdp,sd->rsp", outcomes.astype(np.float32), weights.astype(np.float32))
    return averages


def spread_prompts(setting: Setting, cells: np.ndarray) -> np.ndarray:
    """Give each seed prompts of its own, [R, S, P] -> [R, S, S * P], NaN elsewhere; nothing to do for shared ones."""
    if setting.shares_prompts:
        return cells
    own_prompts = np.full((*cells.shape[:2], setting.seeds, setting.prompts), np.nan)
    for seed in range(setting.seeds):
        own_prompts[:, seed, seed] = cells[:, seed]
    return own_prompts.reshape(*cells.shape[:2], -1)


def t_of_seed_means(setting: Setting, outcomes: np.ndarray, has_draw: np.ndarray) -> Interval:
    """Student's interval of the seeds' means."""
    seed_means = average_draws(outcomes, has_draw).mean(-1)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, setting.seeds - 1) * seed_means.std(1, ddof=1) / np.sqrt(setting.seeds)
    return seed_means.mean(1) - reach, seed_means.mean(1) + reach


def t_of_two_ways(setting: Setting, outcomes: np.ndarray, has_draw: np.ndarray) -> Interval:
    """The interval of `seed_intervals`: variance by seed and by prompt, S - 1 degrees of freedom."""
    cells = average_draws(outcomes, has_draw)
    parts = [
        two_way_interval(spread_prompts(setting, part), CONFIDENCE)
        for part in np.array_split(cells, max(1, len(cells) // EXPERIMENTS_AT_ONCE))
    ]
    return np.concatenate([low for low, _, _ in parts]), np.concatenate([high for _, high, _ in parts])


def t_of_two_ways_satterthwaite(setting: Setting, outcomes: np.ndarray, has_draw: np.ndarray) -> Interval:
    """The same variance with Satterthwaite's degrees of freedom."""
    cells = average_draws(outcomes, has_draw)
    seed_means = cells.mean(-1)
    seed_variance = seed_means.var(1, ddof=1) / setting.seeds
    errors = (cells - seed_means[..., None]) / (setting.seeds * setting.prompts)
    prompt_variance = np.zeros(len(cells))
    if setting.shares_prompts:
        prompt_variance = np.maximum(np.square(errors.sum(1)).sum(1) - np.square(errors).sum((1, 2)), 0)
    variance = seed_variance + prompt_variance
    parts = seed_variance**2 / (setting.seeds - 1) + prompt_variance**2 / (setting.prompts - 1)
    freedom = np.maximum(variance**2 / np.maximum(parts, 1e-30), setting.seeds - 1)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
    return seed_means.mean(1) - reach, seed_means.mean(1) + reach


def make_bootstrap(resamples: int, levels: tuple[str, ...], accelerated: bool = False) -> Callable[..., Interval]:
    """Make a percentile (or BCa) bootstrap that draws again at these levels."""

    def bootstrap(setting: Setting, outcomes: np.ndarray, has_draw: np.ndarray) -> Interval:
        rng, lows, highs = numpy_rng(0, "bootstrap", *levels), [], []
        uniform = np.full(setting.prompts, 1 / setting.prompts)
        for experiment in outcomes.astype(np.float32):  # [S, D, P]
            seed_weights: np.ndarray = np.ones((resamples, setting.seeds))
            if "seeds" in levels:
                seed_weights = rng.multinomial(setting.seeds, [1 / setting.seeds] * setting.seeds, size=resamples)
            draw_weights = np.zeros((resamples, *has_draw.shape))
            for seed, count in enumerate(setting.draw_counts):
                drawn = rng.multinomial(count, [1 / count] * count, size=resamples) if "draws" in levels else 1
                draw_weights[:, seed, :count] = drawn / count
            weights = (draw_weights * seed_weights[..., None] / setting.seeds).astype(np.float32)  # [B, S, D]
            if "prompts" not in levels:
                values = weights.reshape(resamples, -1) @ experiment.mean(-1).ravel()
            elif setting.shares_prompts:
                prompt_weights = rng.multinomial(setting.prompts, uniform, size=resamples) / setting.prompts
                by_prompt = weights.reshape(resamples, -1) @ experiment.reshape(-1, setting.prompts)  # [B, P]
                values = (by_prompt * prompt_weights).sum(1)
            else:
                values = np.zeros(resamples)
                for seed in range(setting.seeds):
                    prompt_weights = rng.multinomial(setting.prompts, uniform, size=resamples) / setting.prompts
                    values += ((weights[:, seed] @ experiment[seed]) * prompt_weights).sum(1)
            quantiles = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            if accelerated:
                seed_means = (experiment.mean(-1) * has_draw).sum(1) / has_draw.sum(1)
                quantiles = accelerate(quantiles, values, seed_means)
            low, high = np.quantile(values, quantiles)
            lows.append(low)
            highs.append(high)
        return np.array(lows), np.array(highs)

    return bootstrap


def accelerate(quantiles: np.ndarray, values: np.ndarray, seed_means: np.ndarray) -> np.ndarray:
    """Move quantiles as BCa does (Efron, 1987), by the jackknife over seeds."""
    share_below = ((values < seed_means.mean()).mean() + (values <= seed_means.mean()).mean()) / 2
    deviations = seed_means - seed_means.mean()
    square_sum = np.square(deviations).sum()
    if not 0 < share_below < 1 or square_sum == 0:
        return quantiles
    bias, acceleration = stats.norm.ppf(share_below), (deviations**3).sum() / (6 * square_sum**1.5)
    ends = bias + stats.norm.ppf(quantiles)
    moved_quantiles: np.ndarray = stats.norm.cdf(bias + ends / (1 - acceleration * ends))
    return moved_quantiles


def list_methods(resamples: int) -> dict[str, tuple[Callable[..., Interval], bool]]:
    """List the candidates, and whether each is slow."""
    return {
        "t, two ways": (t_of_two_ways, False),
        "t, two ways, Satterthwaite": (t_of_two_ways_satterthwaite, False),
        "t, seed means": (t_of_seed_means, False),
        "bootstrap, prompts": (make_bootstrap(resamples, ("prompts",)), True),
        "bootstrap, all levels": (make_bootstrap(resamples, ("seeds", "draws", "prompts")), True),
        "BCa, seeds": (make_bootstrap(resamples, ("seeds",), accelerated=True), True),
    }


def measure_coverage(
    setting: Setting, method: Callable[..., Interval], outcomes: np.ndarray, has_draw: np.ndarray
) -> dict[str, float]:
    """Measure the share of intervals that hold the true mean, of those that leave out 0, and their mean width."""
    low, high = method(setting, outcomes, has_draw)
    truth = true_mean(setting)
    return {
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "stars": float(((low > 0) | (high < 0)).mean()),
        "width": float((high - low).mean()),
    }


def main(command_line: Sequence[str] | None = None) -> None:
    """Simulate every setting and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=4000, help="of each setting; a tenth for the slow methods")
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--json", type=Path, help="write every setting's numbers there")
    arguments = parser.parse_args(command_line)
    started_at, lines = time.process_time(), []
    for setting in list_settings():
        rng = numpy_rng(0, "simulate intervals", *map(str, asdict(setting).values()))
        outcomes, has_draw = simulate_outcomes(setting, arguments.experiments, rng)
        for name, (method, is_slow) in list_methods(arguments.resamples).items():
            used = outcomes[: max(1, arguments.experiments // 10)] if is_slow else outcomes
            lines.append(asdict(setting) | {"method": name} | measure_coverage(setting, method, used, has_draw))
    table = pd.DataFrame(lines)
    if arguments.json:
        arguments.json.write_text(table.to_json(orient="records", indent=1))
    coverage = table.groupby("method", sort=False)["coverage"]
    summary = pd.DataFrame({"lowest": coverage.min(), "mean": coverage.mean(), "highest": coverage.max()})
    by_seeds = table.pivot_table(index="method", columns="seeds", values="coverage", aggfunc="min", sort=False)
    null_cases = table[table["effect"] == 0]
    summary["false stars, mean"] = null_cases.groupby("method")["stars"].mean()
    summary["false stars, highest"] = null_cases.groupby("method")["stars"].max()
    summary["width"] = table.groupby("method")["width"].mean()
    print("Coverage over all settings\n" + summary.to_markdown(floatfmt=".3f"))
    print("\nLowest coverage by the number of seeds\n" + by_seeds.to_markdown(floatfmt=".3f"))
    by_spread = null_cases.pivot_table(index="method", columns="spread", values="stars", sort=False)
    print("\nFalse stars by the spread between seeds\n" + by_spread.to_markdown(floatfmt=".3f"))
    print(f"\n{len(table) // table['method'].nunique()} settings, {time.process_time() - started_at:.0f} s of one core")


if __name__ == "__main__":
    main()
