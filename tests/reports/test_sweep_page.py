"""The page of a sweep: every cell, missing ones as missing; the paper's tables; nothing in a name is markup."""

import csv
import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from scipy.stats import spearmanr

from gradfiltering.reports.page.sweep_answer import describe_factors, find_best_setting, rank_factors
from gradfiltering.reports.page.sweep_page import MOST_JOBS_PAIRED
from gradfiltering.reports.paper_tables import PaperTable, build_ablation_table, build_main_table
from gradfiltering.reports.sweep_jobs import (
    compute_overlaps,
    compute_rank_correlations,
    find_varying_options,
    read_jobs,
    read_planned_values,
)
from gradfiltering.reports.sweep_table import write_sweep
from tests.judging.browser import CHROMIUM
from tests.reports.browsing import THEMES, WIDTHS, assert_accessible, axe, browse, off_the_sheet, put_on_paper
from tests.reports.folders import config_of, pws, write_run

SCORERS = ("gsnr", "raw_drop", "normalized_drop", "variance_only")
MEMBERS = (3, 5, 7, 10)
PAIRS = ((1, 2), (1, 3), (2, 4))
ABSENT, UNFINISHED = 17, 30
EVIL = "<img src=x onerror=\"document.title='owned'\">"


def one_job(folder, number, scorer, members, pair, **more):
    rng = np.random.default_rng(number)
    asked = [f"scorer={scorer}", f"ensemble.m={members}", f"epochs=e{pair[0]}_e{pair[1]}", *more.pop("asked", [])]
    scores = rng.normal(size=40) + np.linspace(0, 3, 40)
    chosen = sorted(np.argsort(-scores)[:8].tolist())
    value = 1 + 0.05 * (members - 6) / 4 - 0.1 * SCORERS.index(scorer)
    truth = {"share": {"clean": {"pool": 0.7, "selected": 0.9 - 0.05 * SCORERS.index(scorer)}}}
    found = {
        "diagnostics": {"warnings": [], "truth": truth},
        "target": {"candidate": {"heldout_loss": 2.0 - value / 2}},
        "pws": {"full": {"tasks": pws(value), "all": pws(value)}},
        "selection": {"scorer": scorer, "selector": "top", "fraction": 0.2, "selected": 8},
    }
    config = config_of(folder / str(number), scorer, members, *pair, **more)
    return write_run(folder / str(number), config, asked, scores, chosen, **found)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """48 jobs were asked for: one was never run, one ended before it chose anything."""
    folder = tmp_path_factory.mktemp("sweep") / f"of {EVIL.replace('/', '')}"
    for number, (scorer, members, pair) in enumerate(product(SCORERS, MEMBERS, PAIRS)):
        if number == ABSENT:
            continue
        path = one_job(folder, number, scorer, members, pair)
        if number == UNFINISHED:
            for name in ("scores.parquet", "subset.parquet"):
                (path / name).unlink()
            (path / "summary.json").write_text(json.dumps({"stages": [], "diagnostics": {"warnings": []}}))
    (folder / "0" / "report.html").write_text("page")
    write_sweep(folder, Console(quiet=True))
    return folder


def heat_maps(text):
    """`{question: {snapshots: {method: [cells]}}}` of a page, each cell with its class and text."""
    section = "".join(
        text.split(f'id="{name}"')[1].split("</section>")[0] for name in ("heat", "company") if f'id="{name}"' in text
    )
    found = {}
    for part in section.split("<h3>")[1:]:
        tables = re.findall(r"<caption>(.*?)</caption>(.*?)</table>", part, re.DOTALL)
        found[part.split("</h3>")[0]] = {
            pair: {
                method: re.findall(r'<td class="(\w+)"[^>]*>(.*?)</td>', row)
                for method, row in re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL)
            }
            for pair, body in tables
        }
    return found


def test_each_of_the_48_cells_shows_its_value_or_its_absence(sweep):
    maps = heat_maps((sweep / "sweep.html").read_text("utf-8"))
    assert len(maps) == 5
    rows = {row["job"]: row for row in json.loads((sweep / "sweep.json").read_text())}
    keys = ("pws_full", "heldout_loss", "noise", "jaccard", "rank_correlation")
    for key, tables in zip(keys, maps.values(), strict=True):
        for number, (scorer, members, pair) in enumerate(product(SCORERS, MEMBERS, PAIRS)):
            kind, text = tables[f"e{pair[0]}_e{pair[1]}"][scorer][MEMBERS.index(members)]
            if number == ABSENT:
                assert (kind, text) == ("none", "no job")
            elif number == UNFINISHED:
                assert (kind, text) == ("none", "not measured")
            else:
                row = rows[str(number)]
                value = 1 - row["clean_selected"] if key == "noise" else row[key]
                assert kind in ("up", "down") and text == f"{value:.3f}", f"{key} of job {number}"


def test_pws_is_coloured_by_the_side_of_one(sweep):
    cells = next(iter(heat_maps((sweep / "sweep.html").read_text("utf-8")).values()))["e1_e2"]
    assert [kind for kind, _ in cells["gsnr"]] == ["down", "down", "up", "up"]


def test_the_strongest_colour_is_the_best_value(sweep):
    text = (sweep / "sweep.html").read_text("utf-8")
    for question in ("Which subset teaches most?", "Which settings let planted defects through?"):
        part = text.split(f"<h3>{question}")[1].split("<h3>")[0]
        cells = [(int(level), float(value)) for level, value in re.findall(r"--level: (\d+)[^>]*>([\d.]+)<", part)]
        values = [value for _, value in cells]
        assert {value for level, value in cells if level == 100} == {min(values)}
        assert {value for level, value in cells if level == 0} == {max(values)}


def test_the_table_of_jobs_has_every_measure_and_no_empty_column(sweep):
    part = (sweep / "sweep.html").read_text("utf-8").split('id="jobs"')[1]
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', part)
    assert heads[4:] == ["PWS, full", "held-out loss", "noise", "Jaccard", "rank corr.", "seconds"]
    assert "The same in every job: warnings 0." in part
    line = re.search(r'<th scope="row">1</th>(.*?)</tr>', part, re.DOTALL)[1]
    assert re.findall(r"<td[^>]*>(.*?)</td>", line)[:6] == ["gsnr", "3", "e1_e3", "0.963", "1.519", "0.100"]


def test_planned_jobs_that_never_began_have_cells(tmp_path):
    one_job(tmp_path, 0, "gsnr", 3, (1, 2))
    hydra = {"overrides": {"task": ["scorer=gsnr,raw_drop", "seed=1"]}, "sweeper": {"params": {"ensemble.m": "3,5"}}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    assert read_planned_values(tmp_path) == {"scorer": ["gsnr", "raw_drop"], "ensemble.m": ["3", "5"]}
    write_sweep(tmp_path, Console(quiet=True))
    cells = next(iter(heat_maps((tmp_path / "sweep.html").read_text("utf-8")).values()))["e1_e2"]
    assert cells["raw_drop"] == [("none", "no job")] * 2 and [text for _, text in cells["gsnr"]] == ["0.963", "no job"]


def test_seeds_are_averaged_and_other_options_have_own_maps(tmp_path):
    for number, (seed, lr) in enumerate(((0, 1), (1, 1), (0, 2))):
        asked = [f"seed={seed}", f"ensemble.lr={lr}"]
        path = one_job(tmp_path, number, "gsnr", 3, (1, 2), asked=asked)
        summary = json.loads((path / "summary.json").read_text())
        summary["target"]["candidate"]["heldout_loss"] = float(number)
        (path / "summary.json").write_text(json.dumps(summary))
    assert find_varying_options(read_jobs(tmp_path)) == {"ensemble.lr"}
    write_sweep(tmp_path, Console(quiet=True))
    losses = heat_maps((tmp_path / "sweep.html").read_text("utf-8"))["Which subset teaches most?"]
    texts = {name: [text for _, text in cells["gsnr"]] for name, cells in losses.items()}
    assert texts == {"e1_e2 · ensemble.lr=1": ["0.500"], "e1_e2 · ensemble.lr=2": ["2.000"]}


def test_overlap_and_rank_correlation_equal_a_pairwise_computation(sweep):
    jobs = read_jobs(sweep)[:6]
    jaccard, ranks = compute_overlaps(jobs), compute_rank_correlations(jobs)
    for (i, one), (j, other) in product(enumerate(jobs), repeat=2):
        first, second = set(one.selected_ids.tolist()), set(other.selected_ids.tolist())
        assert jaccard[i, j] == pytest.approx(len(first & second) / len(first | second))
        assert ranks[i, j] == pytest.approx(spearmanr(one.score_values, other.score_values)[0])


def test_ranks_are_compared_over_the_rows_that_both_jobs_scored(tmp_path):
    import pyarrow.parquet as pq

    first = one_job(tmp_path, 0, "gsnr", 3, (1, 2))
    second = one_job(tmp_path, 1, "raw_drop", 3, (1, 2))
    table = pq.read_table(second / "scores.parquet")
    pq.write_table(table.slice(10), second / "scores.parquet")
    scores = [pq.read_table(path / "scores.parquet")["score"].to_numpy() for path in (first, second)]
    found = compute_rank_correlations(read_jobs(tmp_path))
    assert found[0, 1] == pytest.approx(spearmanr(scores[0][10:], scores[1])[0])


def rows_of(table, label_count):
    """Numbers of a table by their labels; None where a value is missing."""
    rows = [[None if cell != cell else cell for cell in row] for row in table.table.to_numpy(dtype=object).tolist()]
    return {tuple(row[:label_count]): row[label_count:] for row in rows}


def alpaca(number, scorer, data, model, fraction, folder, values):
    config = config_of(folder / str(number), scorer)
    config["data"] = {"_target_": "gradfiltering.data.sources.HubSource", "name": data}
    config["target"] = {"model": f"meta-llama/{model}"}
    config["selector"]["fraction"] = fraction
    sets = {name: pws(value) for name, value in values.items()}
    selection = {"scorer": scorer, "selector": "top", "fraction": fraction, "selected": 2}
    write_run(folder / str(number), config, pws={"full": {**sets, "all": pws(1.0)}}, selection=selection)


def test_the_main_table_has_the_papers_24_cases(tmp_path):
    place = ("tatsu-lab/alpaca", "Llama-2-7b-hf", 0.1)
    for number, (scorer, value) in enumerate({"gsnr": 1.1, "random": 0.9, "ifd": 1.1}.items()):
        alpaca(number, scorer, *place, tmp_path, {"wizardlm": value, "vicuna": value - (scorer == "gsnr") * 0.5})
    alpaca(9, "gsnr", "vicgalle/alpaca-gpt4", "Llama-2-13b-hf", 0.05, tmp_path, {"vicuna": 1.2})
    table = build_main_table(read_jobs(tmp_path))
    assert list(table.table.columns)[3:] == [
        "WizardLM 5%",
        "WizardLM 10%",
        "WizardLM 15%",
        "Vicuna 5%",
        "Vicuna 10%",
        "Vicuna 15%",
    ]
    assert len(table.table) == 2 * 2 * 3
    rows = rows_of(table, 3)
    assert rows["Alpaca", "LLaMA-2 7B", "GradFiltering"] == [None, 1.1, None, None, pytest.approx(0.6), None]
    assert rows["Alpaca-GPT4", "LLaMA-2 13B", "GradFiltering"] == [None, None, None, 1.2, None, None]
    assert "3 of 24 cases; it is at or above both rivals in 1 of 2" in table.note
    assert "–" in table.to_markdown() and rows["Alpaca", "LLaMA-2 13B", "Random"] == [None] * 6, (
        "a missing case is no zero"
    )


def test_the_main_table_of_other_data_has_their_cases(tmp_path):
    for number, (scorer, fraction) in enumerate(product(("gsnr", "random", "ifd"), (0.05, 0.2))):
        alpaca(number, scorer, "own", "small", fraction, tmp_path, {"tasks": 1 + fraction, "heldout": 0.5})
    table = build_main_table(read_jobs(tmp_path))
    assert list(table.table.columns)[3:] == ["heldout 5%", "heldout 20%", "tasks 5%", "tasks 20%"]
    assert [[*labels] for labels in rows_of(table, 3)] == [
        ["own", "small", name] for name in ("Random", "Superfiltering", "GradFiltering")
    ]
    assert rows_of(table, 3)["own", "small", "GradFiltering"] == [0.5, 0.5, pytest.approx(1.05), pytest.approx(1.2)]
    assert "4 of 4 cases" in table.note


def test_a_method_is_no_option_beside_its_scorer_and_selector(tmp_path):
    for number, (method, scorer) in enumerate((("gradfiltering", "gsnr"), ("superfiltering", "ifd"))):
        config = config_of(tmp_path / str(number), scorer)
        selection = {"scorer": scorer, "selector": "top", "fraction": 0.2, "selected": 2}
        write_run(tmp_path / str(number), config, [f"method={method}"], selection=selection)
    assert find_varying_options(read_jobs(tmp_path)) == set()
    write_sweep(tmp_path, Console(quiet=True))
    cells = next(iter(heat_maps((tmp_path / "sweep.html").read_text("utf-8")).values()))["e1_e2"]
    assert list(cells) == ["gsnr", "ifd"] and all(kind != "none" for row in cells.values() for kind, _ in row)


def test_the_ablation_is_the_difference_to_gsnr_in_the_same_case(sweep):
    jobs = read_jobs(sweep)
    table = build_ablation_table(jobs, find_varying_options(jobs))
    assert list(table.table.columns) == [
        "M",
        "snapshots",
        "G-SNR",
        "Δ raw_drop",
        "Δ normalized_drop",
        "Δ variance_only",
    ]
    rows = rows_of(table, 2)
    assert rows["3", "e1_e2"] == ["0.963", *(pytest.approx(-0.1 * n) for n in (1, 2, 3))]
    scorer, members, pair = list(product(SCORERS, MEMBERS, PAIRS))[ABSENT]
    assert rows[str(members), f"e{pair[0]}_e{pair[1]}"][1 + SCORERS[1:].index(scorer)] is None
    assert rows["mean", ""][1:] == [pytest.approx(-0.1 * n) for n in (1, 2, 3)]


def test_a_sweep_without_the_papers_cells_has_no_build_main_table(sweep):
    assert build_main_table(read_jobs(sweep)) is None and not (sweep / "tables" / "main.tex").exists()


def test_every_table_is_written_in_three_forms(sweep):
    for name in ("ablation", "jobs", "heatmaps", "pairs"):
        assert all((sweep / "tables" / f"{name}.{suffix}").stat().st_size for suffix in ("tex", "md", "csv"))
    with (sweep / "tables" / "heatmaps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 47 and rows[29]["pws_full"] == "" and float(rows[0]["pws_full"]) == pytest.approx(0.9625)
    with (sweep / "tables" / "pairs.csv").open(newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == 47 * 46 // 2


def test_names_are_text_in_latex_and_markdown():
    frame = pd.DataFrame({"a_b": ["c&d|<b>", "e"], "n": [0.5, np.nan]})
    table = PaperTable("x", "50 % of_a", frame, 1)
    latex, markdown = table.to_latex(), table.to_markdown()
    assert r"a\_b & n \\" in latex and r"c\&d|<b> & 0.500 \\" in latex and r"e & -- \\" in latex
    assert r"50 \% of\_a" in latex and latex.count("{tabular}") == 2
    cells = [[cell.strip() for cell in line.split(" | ")] for line in markdown.splitlines()]
    assert cells[2] == [r"| c&d\|\<b\>", "0.500 |"] and cells[3] == ["| e", "– |"]


def test_the_page_loads_nothing_and_names_are_no_markup(sweep):
    text = (sweep / "sweep.html").read_text("utf-8")
    assert "<img" not in text and not re.search(r'(src|href)="(https?:)?//', text)
    assert "default-src &#39;none&#39;" in text and len(text) < 1_000_000
    assert '<a href="0/report.html">0</a>' in text


def test_many_jobs_are_not_shown_pair_by_pair(tmp_path):
    for number in range(MOST_JOBS_PAIRED + 1):
        one_job(tmp_path, number, "gsnr", number, (1, 2))
    write_sweep(tmp_path, Console(quiet=True))
    assert 'id="pairs"' not in (tmp_path / "sweep.html").read_text("utf-8")
    assert (tmp_path / "tables" / "pairs.csv").is_file()


CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgb = (css, under) => { canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = (c) => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const page = getComputedStyle(document.body).backgroundColor;
  return Math.min(...[...document.querySelectorAll('.heat td')].map(cell => {
    const style = getComputedStyle(cell);
    const back = light(rgb(style.backgroundColor, page)), text = light(rgb(style.color, page));
    return (Math.max(back, text) + .05) / (Math.min(back, text) + .05);
  }));
})()"""


in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_in_a_browser(sweep, tmp_path, theme, width):
    """No error, no request, no markup from names, every cell readable, no scrolling part out of a keyboard's reach."""

    async def script(tab):
        assert (await tab.evaluate("document.title")).startswith("Sweep of <img"), "the name became markup"
        assert await tab.evaluate("document.querySelectorAll('img').length") == 0
        assert await tab.evaluate("document.querySelectorAll('.grids td').length") == 5 * 48
        assert await tab.evaluate(CONTRAST) >= 4.5
        assert await tab.evaluate("document.getElementById('theme').hidden") is False, "the script did not run"
        unnamed = "[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex !== 0 || !e.ariaLabel).length"
        assert await tab.evaluate(unnamed) == 0, "a scrolling part cannot be reached by keyboard"

    page = sweep / "sweep.html"
    assert browse(tmp_path, page, script, width, theme) == ([], [page.as_uri()])


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_in_the_page(sweep, tmp_path, tmp_path_factory, theme, width):
    code = axe(tmp_path_factory.getbasetemp())

    async def script(tab):
        await tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        await assert_accessible(tab, code, f"{theme}, {width} px")

    browse(tmp_path, sweep / "sweep.html", script, width, theme)


@pytest.mark.slow
@in_a_browser
def test_no_column_is_cut_on_paper(sweep, tmp_path):
    """48 jobs side by side need a sheet on its side; heat maps, and files to copy from, are not split or shown shut."""

    async def script(tab):
        await put_on_paper(tab, "dark")
        assert await off_the_sheet(tab) == []
        inside = "[...document.querySelectorAll('.metric')].map((one) => getComputedStyle(one).breakInside)"
        assert await tab.evaluate(inside) == ["avoid"] * 5
        assert (
            await tab.evaluate("[...document.querySelectorAll('details:not([open])')].some(e => e.checkVisibility())")
            is False
        )
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

    browse(tmp_path, sweep / "sweep.html", script, theme="dark")


def test_the_page_opens_with_the_answer_and_ends_with_the_company(sweep):
    text = (sweep / "sweep.html").read_text("utf-8")
    places = [text.index(f'id="{name}"') for name in ("answer", "heat", "company", "jobs")]
    assert places == sorted(places)
    answer = text[places[0] : places[1]]
    assert "Jaccard" not in answer and "rank corr." not in answer
    assert "Most goes along with method: 9" in answer and "47 jobs took" in answer


def test_an_option_that_does_nothing_explains_nothing():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"method": list("ab") * 50, "M": ["3"] * 100, "snapshots": ["e1_e2", "e1_e2", "e1_e3", "e1_e3"] * 25}
    )
    table["loss"] = (table["method"] == "b") + rng.normal(0, 0.1, 100)

    class Job:
        overrides = ("scorer=a",)

    factors = rank_factors([Job()] * 100, table, "loss", lower_is_better=True)
    assert [factor.name for factor in factors] == ["method", "snapshots"], "what is the same in every job is no factor"
    assert factors[0].share > 0.9 and factors[0].best_level.startswith("a (") and factors[1].share < 0.05
    assert describe_factors(factors, "held-out loss").startswith("Most goes along with method: 9")
    assert describe_factors(factors[1:], "held-out loss").startswith("No option mattered")


def measured(verdict, loss, low, high):
    return {
        "verdict": verdict, "reasons": ["r"], "winning_score": None,
        "loss_difference": {"value": loss, "low": low, "high": high, "seeds": 3},
    }  # fmt: skip


def test_the_best_setting_has_the_best_verdict_and_names_its_equals():
    verdicts = {
        "a": measured("no difference shown", -0.3, -0.4, -0.2), "b": measured("use it", -0.2, -0.25, -0.15),
        "c": measured("use it", -0.1, -0.2, -0.05), "d": measured("do not use it", 0.2, 0.1, 0.3),
    }  # fmt: skip
    best = find_best_setting(verdicts)
    assert (best.setting, best.is_shown_best, best.verdict_class) == ("b", True, "good")
    assert best.measures == [("held-out loss minus that of random rows", "-0.200 [-0.250, -0.150], 3 seeds")]
    assert best.caution == ""
    del verdicts["b"], verdicts["c"]
    best = find_best_setting(verdicts | {"e": measured("no difference shown", -0.25, -0.3, -0.2)})
    assert best.setting == "a" and best.caution.startswith("1 of the 2 other settings lie within")
    assert find_best_setting({"a": {"verdict": "not tested", "reasons": []}}) is None


def test_a_loss_that_the_mean_over_tokens_contradicts_puts_no_setting_first():
    contradicted = measured("no difference shown", -0.3, -0.4, -0.2) | {"loss_is_contradicted": True}
    other = measured("no difference shown", -0.1, -0.2, 0.1) | {"loss_is_contradicted": False}
    assert find_best_setting({"a": contradicted, "b": other}).setting == "b"
    alone = find_best_setting({"a": contradicted})
    assert alone.setting == "a" and alone.caution.startswith("Its held-out loss does not count")


@pytest.mark.slow
def test_a_sweep_of_200_jobs_stays_small_and_keeps_other_maps_folded(tmp_path):
    for number, (lr, members, seed) in enumerate(product(range(10), MEMBERS, range(5))):
        one_job(tmp_path, number, "gsnr", members, (1, 2), asked=[f"ensemble.lr={lr}", f"seed={seed}"])
    write_sweep(tmp_path, Console(quiet=True))
    text = (tmp_path / "sweep.html").read_text("utf-8")
    assert "200 jobs took" in text and "<summary>2 more maps</summary>" in text and len(text) < 5_000_000
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', text.split('id="jobs"')[1])
    assert heads[:3] == ["job", "M", "other options"], "method and snapshots are the same in every job"
