"""Run folders written by hand, true to the contract: what a run leaves, without a run."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gradfiltering.judging.responses import Response, write_responses
from gradfiltering.judging.verdicts import Verdict, write_verdicts

EVIL = "<script>document.title = 'owned'</script></textarea> | `a` \"b\" 🙂 שלום"
PACKAGES = {"torch": "2.0", "peft": "0.18"}


def pws(value, wins=6, ties=1, losses=3):
    return {
        "value": value, "low": value - 0.1, "high": value + 0.1, "wins": wins, "ties": ties, "losses": losses,
        "unparsed": 0,
    }  # fmt: skip


def config_of(folder, scorer="gsnr", members=3, early=1, late=2, **parts):
    targets = {"gsnr": "GSNR", "raw_drop": "RawDrop", "normalized_drop": "NormalizedDrop",
               "variance_only": "VarianceOnly", "random": "RandomScorer", "ifd": "IFD"}  # fmt: skip
    config = {
        "seed": 0,
        "until": "report",
        "run_dir": str(folder),
        "scorer": {"_target_": f"gradfiltering.scorers.{scorer}.{targets.get(scorer, 'Other')}", "epsilon": 1e-8},
        "selector": {"_target_": "gradfiltering.selectors.top.TopSelector", "fraction": 0.1, "count": None},
        "epochs": {"_target_": "gradfiltering.ensembles.snapshots.SnapshotPair", "early": early, "late": late},
        "ensemble": {"m": members},
        "data": {"_target_": "gradfiltering.synthetic.task_source.TaskSource", "rows": 20, "template": "plain"},
        "proxy": {"backbone": {"_target_": "gradfiltering.synthetic.tiny_model.TinyModel"}},
        "target": {"model": None, "tuning": {"lr": 0.003, "epochs": 4, "lora": {"rank": 8}}},
        "judge": {"judge": {"_target_": "gradfiltering.judging.reference.ReferenceJudge"}, "against": ["full"]},
    }
    return {**config, **parts}


def write_run(folder, config=None, overrides=(), scores=None, chosen=None, **summary):
    """A run folder with a subset; keywords replace parts of the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or config_of(folder)
    scores = np.linspace(1, -1, 20) if scores is None else np.asarray(scores, dtype=float)
    chosen = [0, 1] if chosen is None else list(chosen)
    ids = np.arange(len(scores))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.lexsort((ids, -scores))] = np.arange(1, len(scores) + 1)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    about = {"seed": config["seed"], "packages": PACKAGES, "overrides": list(overrides), "git_commit": "abc"}
    (folder / "environment.json").write_text(json.dumps(about), "utf-8")
    table = {"example_id": ids, "score": scores, "rank": rank, "g_early": scores + 3, "g_late": 0 * scores + 2}
    pq.write_table(pa.table(table), folder / "scores.parquet")
    pq.write_table(pa.table({"example_id": ids[:0], "reason": pa.array([], pa.string())}), folder / "unscored.parquet")
    pq.write_table(pa.table({"example_id": chosen, "score": scores[chosen]}), folder / "subset.parquet")
    rows = [{"instruction": f"Question {i} {EVIL}", "input": "", "output": f"answer {i}"} for i in ids.tolist()]
    text = "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in chosen)
    (folder / "subset.jsonl").write_text(text, "utf-8")
    columns = {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}
    entry = {"file_name": "subset.jsonl", "formatting": "alpaca", **columns}
    (folder / "dataset_info.json").write_text(json.dumps({"subset": entry}), "utf-8")
    kept = {"example_id": ids, "prompt": [row["instruction"] for row in rows], "response": [r["output"] for r in rows]}
    found = pa.table({**kept, "source": pa.array(["plurals"] * len(rows))})
    made = {"fingerprint": "f" * 32, "origin": "the bundled tasks"}
    pq.write_table(found.replace_schema_metadata(made), folder / "rows.parquet")
    pq.write_table(pa.table({"example_id": ids, "kind": ["clean"] * len(ids)}), folder / "truth.parquet")
    whole = {
        "stages": [{"name": "proxy", "seconds": 2.0, "reused": False}],
        "cost": {"proxy": {"seconds": 2.0, "flops": 5, "peak_bytes": 1000}},
        "data": {"examples": len(ids), "unscored": 0},
        "proxy": {"members": config["ensemble"]["m"], "epochs": [1, 2], "seconds": 2.0, "tokens": 500},
        "selection": {"scorer": "gsnr", "selector": "top", "fraction": 0.1, "selected": len(chosen)},
        "diagnostics": {"warnings": ["the score follows length"], "positive_drop_share": 0.7, "easiness": 0.9},
    }
    (folder / "summary.json").write_text(json.dumps({**whole, **summary}), "utf-8")
    return folder


def add_targets(folder, reused=False):
    """A judged candidate and the model it was held against."""
    for name in ("candidate", "full"):
        adapter = folder / "target" / name / "adapter"
        adapter.mkdir(parents=True)
        about = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"],
                 "base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}  # fmt: skip
        (adapter / "adapter_config.json").write_text(json.dumps(about))
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        (adapter / "README.md").write_text("---\nlibrary_name: peft\n---\n# Model Card for Model ID\n")
        curve = "step,examples_seen,tokens_seen,seconds,train_loss,heldout_loss\n0,0,0,0.0,,3.5\n4,8,90,1.5,2.25,1.5\n"
        (folder / "target" / name / "curve.csv").write_text(curve)
        said = [Response("tasks", str(n), f"Ask {n} {EVIL}", f"{name} {n}", 5, 3, "eos", False) for n in (0, 1)]
        write_responses(folder / "responses" / f"{name}.jsonl", said)
    judged = ("8 7", (8, 7), "6 9", (6, 9), "win")
    verdicts = [Verdict("candidate", "full", "reference", 0, "tasks", str(n), *judged) for n in (0, 1)]
    write_verdicts(folder / "verdicts.jsonl", verdicts)
    result = {"steps": 4, "examples": 2, "tokens": 90, "seconds": 1.5, "final_loss": 2.25, "heldout_loss": 1.5,
              "flops": 9, "reused": reused}  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    summary |= {"target": {"candidate": result, "full": result}, "pws": {"full": {"tasks": pws(1.2), "all": pws(1.2)}}}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return summary
