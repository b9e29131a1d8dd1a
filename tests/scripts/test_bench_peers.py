"""The benchmark against other libraries: right norms, shapes, and peers that cannot run."""

import json
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scripts import bench_peers

PEER_LIBRARIES = {"bergson": "bergson.collector.gradient_collectors", "opacus": "opacus"}
VOCABULARY = 48


@pytest.fixture(params=["gpt2", "llama"])
def model_folder(request, tmp_path):
    """A random model of four layers, with the dropout that GPT-2 has by default."""
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=4, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def run_benchmark(*arguments) -> dict:
    common = ["--device=cpu", "--precision=fp32", "--rows=3", "--batch-size=2", "--rounds=1", "--tokens=64"]
    return bench_peers.run_benchmark(bench_peers.parse_options([*common, *map(str, arguments)]))


@pytest.mark.parametrize("model_folder", ["llama"], indirect=True)
def test_each_shape_has_figures_of_its_own(model_folder, tmp_path):
    json_file = tmp_path / "peers.json"
    names = ["loop", "loop_prefix_layers", "tutorial_vmap", "fused", "fused_prefix"]
    arguments = ["--proxy", model_folder, "--shapes", "1x6", "2x9", "--json", json_file, "--only", *names]
    figures = run_benchmark(*arguments)
    assert json.loads(json_file.read_text()) == figures and list(figures["shapes"]) == ["1x6", "2x9"]
    for shape, (members, tokens) in {"1x6": (1, 6), "2x9": (2, 9)}.items():
        shape_figures = figures["shapes"][shape]
        assert (shape_figures["members"], shape_figures["longest_row"], shape_figures["rows"]) == (members, tokens, 3)
        assert shape_figures["prefix_layers"] == 1 and shape_figures["left_out"] == {}
        methods = shape_figures["methods"]
        assert list(methods) == names
        assert all(method["max_relative_difference"] < 1e-4 for method in methods.values())
        all_layers = {name: methods[name]["seconds"] for name in ["loop", "tutorial_vmap"]}
        faster = {name for name, seconds in all_layers.items() if seconds < methods["fused"]["seconds"]}
        assert faster <= set(shape_figures["faster_than_fused"]) <= set(all_layers)


@pytest.mark.parametrize("peer", PEER_LIBRARIES)
def test_norms_of_a_peer_equal_those_of_the_loop(model_folder, peer):
    pytest.importorskip(PEER_LIBRARIES[peer], reason="see scripts/bench_peers.py for the peers' folder")
    figures = run_benchmark("--proxy", model_folder, "--shapes", "3x9", "--only", "loop", peer)
    shape_figures = figures["shapes"]["3x9"]
    assert shape_figures["left_out"] == {}
    assert shape_figures["methods"][peer]["max_relative_difference"] < 1e-4


@pytest.mark.parametrize("model_folder", ["llama"], indirect=True)
def test_peers_that_cannot_run_are_named_with_reason(model_folder, monkeypatch, capsys):
    def fail_while_measuring(*arguments):
        raise RuntimeError("no activations\ndetected")

    monkeypatch.setitem(sys.modules, "bergson.collector.collector", None)
    monkeypatch.setitem(sys.modules, "bergson", None)
    monkeypatch.setattr(bench_peers, "opacus_norms", lambda model: fail_while_measuring)
    names = ["loop", "bergson", "opacus", "fused"]
    figures = run_benchmark("--proxy", model_folder, "--shapes", "1x6", "--only", *names)
    shape_figures = figures["shapes"]["1x6"]
    assert list(shape_figures["methods"]) == ["loop", "fused"]
    assert "bergson" in shape_figures["left_out"].pop("bergson")
    assert shape_figures["left_out"] == {"opacus": "RuntimeError: no activations detected"}
    assert "left out: opacus: RuntimeError: no activations detected" in capsys.readouterr().out


@pytest.mark.parametrize("model_folder", ["llama"], indirect=True)
def test_a_failure_of_this_engine_ends_the_benchmark(model_folder, monkeypatch):
    def fail(self, layers, record_statistics):
        raise RuntimeError("this engine failed")

    monkeypatch.setattr(bench_peers.PeerBench, "_fused_engine", fail)
    with pytest.raises(RuntimeError, match="this engine failed"):
        run_benchmark("--proxy", model_folder, "--shapes", "1x6", "--only", "fused")


def test_table_of_nine_shapes_needs_no_rows(capsys):
    expected_shapes = {(members, tokens) for members in (1, 3, 10) for tokens in (32, 128, 512)}
    assert set(bench_peers.parse_options(["--shapes"]).shapes) == expected_shapes
    for arguments in (
        [],
        ["--data=rows.jsonl", "--shapes"],
        ["--shapes", "--members=3"],
        ["--shapes", "0x32"],
        ["--shapes", "1x1"],
    ):
        with pytest.raises(SystemExit):
            bench_peers.parse_options(arguments)
    assert "give either --data or --shapes" in capsys.readouterr().err
