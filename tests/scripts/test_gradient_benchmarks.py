"""Benchmarks of gradients on the smallest size: counts equal what was asked for, and engines agree."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest

from scripts import architecture_table, bench_memory, bench_peers, compare_precision
from tests.scripts.conftest import WIDTH

SMALLEST = ["--rows=3", "--batch-size=2", "--members=2", "--rank=2", "--device=cpu", "--pool=20"]


def test_rows_of_a_file_are_measured_alike_by_all_methods(proxy_folder, rows_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_peers, "GEMM_WIDTH", 32)
    names = ["loop", "loop_prefix_layers", "tutorial_vmap", "fused", "fused_no_record", "fused_prefix"]
    json_file = tmp_path / "peers.json"
    bench_peers.main(
        [
            f"--proxy={proxy_folder}", f"--data={rows_file}", *SMALLEST, "--precision=fp32", "--rounds=2",
            "--tokens=256", "--peak", f"--json={json_file}", "--only", *names,
        ]
    )  # fmt: skip
    figures = json.loads(json_file.read_text())
    assert (figures["rows"], figures["members"], figures["precision"]) == (3, 2, "fp32")
    assert (figures["layers"], figures["prefix_layers"], figures["left_out"]) == (2, 1, {})
    assert list(figures["methods"]) == names
    for name, method in figures["methods"].items():
        assert method["seconds"] > 0 and method["peak_mb"] > 0
        assert method["rows_per_s"] == pytest.approx(6 / method["seconds"], rel=0.5)
        if name == "fused_no_record":
            assert method["max_relative_difference"] is None
        else:
            assert method["max_relative_difference"] < 1e-4
    assert figures["gemm_peak_tflops"] >= 0 and figures["fused_share_of_peak"] > 0
    assert capsys.readouterr().out.count("round 2: ") == len(names)


def test_arithmetic_that_must_be_done_is_counted_by_hand(proxy_folder, rows_file):
    options = bench_peers.parse_options(
        [f"--proxy={proxy_folder}", f"--data={rows_file}", *SMALLEST, "--precision=fp32", "--tokens=256"]
    )
    bench = bench_peers.PeerBench(options)
    block_weights = WIDTH * 3 * WIDTH + WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH
    examples = bench.proxy.examples
    head_weights = WIDTH * bench.proxy.plain_model.config.vocab_size
    expected = 2 * block_weights * examples.lengths.sum() + head_weights * examples.response_tokens.sum()
    assert bench._count_operations() == 2 * 4 * expected  # two members; 2 operations forward and as many backward


def test_more_rows_than_the_pool_has_are_refused(proxy_folder, rows_file):
    common = [f"--proxy={proxy_folder}", f"--data={rows_file}", "--precision=fp32", "--device=cpu", "--pool=4"]
    with pytest.raises(SystemExit, match="3 batches of 2 rows are more than the 4 rows of the pool"):
        bench_peers.main([*common, "--rows=5", "--batch-size=2"])


def test_the_random_proxy_asks_for_a_tokenizer(rows_file, monkeypatch):
    monkeypatch.setattr("measured_proxy.load_model", lambda name: bench_peers.torch.nn.Linear(1, 1))
    with pytest.raises(SystemExit, match="gpt2-random has no tokenizer of its own"):
        bench_peers.main([f"--data={rows_file}", "--precision=fp32", "--device=cpu"])


def test_precisions_differ_by_their_own_rounding(proxy_folder, rows_file, capsys):
    compare_precision.main([f"--proxy={proxy_folder}", f"--data={rows_file}", *SMALLEST, "--rows=6", "--loop-rows=2"])
    printed = capsys.readouterr().out
    figures = json.loads(printed[printed.index("{") :])
    assert (figures["rows"], figures["members"]) == (6, 2)
    assert figures["fp32_fused_against_fp64_loop_max_relative"] < 1e-4
    assert 1e-5 < figures["bf16_against_fp32_median_relative"] <= figures["bf16_against_fp32_max_relative"] < 0.05
    assert len(figures["bf16_against_fp32_spearman"]) == 2 and min(figures["bf16_against_fp32_spearman"]) > 0.9
    assert "fp64: 2 of 2 rows" in printed and "bf16: 6 of 6 rows" in printed


def test_memory_has_a_line_for_each_cell(replace_subprocesses, capsys):
    def run_in_this_process(command):
        with redirect_stdout(StringIO()) as printed:
            bench_memory.main(command[2:])
        return printed.getvalue()

    replace_subprocesses(bench_memory, run_in_this_process)
    bench_memory.main(["--members", "1", "2", "--rows", "40", "--steps", "2", "--batch-size", "8", "--tokens", "512"])
    header, *cells = capsys.readouterr().out.splitlines()
    assert header == "tokens at once | rows | members | MiB before | MiB of growth"
    cells = [line.split(" | ") for line in cells]
    assert [cell[:3] for cell in cells] == [["512", "40", "1"], ["512", "40", "2"]]
    assert all(float(before) > 100 and 0 <= float(growth) < 1000 for *_, before, growth in cells)


def test_architectures_agree_with_the_loop(capsys):
    table = architecture_table.ROOT / "docs" / "architectures.md"
    before = table.read_text("utf-8")
    architecture_table.main(["a machine", "--only", "gpt2", "llama"])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["gpt2", "llama"] and all(line[1] == "fused" for line in lines)
    assert all(float(difference) < 1e-10 for line in lines for difference in line[2:])
    assert table.read_text("utf-8") == before
    assert all(f"| {' | '.join(line[:2])} |" in before for line in lines), "the table says the same"
