"""Every format in every state of damage: right rows, or one line that names the file; nothing else."""

import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.data.encoder import Encoder
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

ROWS = [{"instruction": f"Say {n}, “é”", "input": "", "output": f"The number {n}"} for n in range(6)]
HUGE = "x" * 300_000


def as_json(rows):
    return json.dumps(rows).encode()


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_delimited(rows, separator):
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def as_typed(rows, kind):
    sink = pa.BufferOutputStream()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "json": as_json, "jsonl": as_jsonl, "csv": lambda rows: as_delimited(rows, ","),
    "tsv": lambda rows: as_delimited(rows, "\t"),
}  # fmt: skip
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
TEXT_KINDS = [f"{kind}{packing}" for kind in WRITERS for packing in PACKERS]
TYPED_KINDS = ["parquet", "arrow", "feather"]


def with_value(name, value):
    return [*ROWS[:3], {**ROWS[3], name: value}, *ROWS[4:]]


def without(name):
    return [{key: value for key, value in row.items() if key != name} for row in ROWS]


# What the file says, before it is packed: rows to write, or bytes from good bytes.
ROW_DAMAGES = {
    "whole": ROWS,
    "no row": [],
    "a missing column": without("output"),
    "another name of a column": [{**row, "answer": "b"} for row in without("output")],
    "a missing optional column": without("input"),
    "a null cell": with_value("output", None),
    "an empty cell": with_value("output", " "),
    "a number": with_value("output", 7),
    "a list": with_value("output", ["a"]),
    "an object": with_value("output", {"a": {"b": [None]}}),
    "not a number": with_value("score", float("nan")),
    "a null byte": with_value("output", "a\x00b"),
    "a huge cell": with_value("output", HUGE),
    "half a surrogate pair": with_value("output", "a\ud800"),
    "half a surrogate pair beside": with_value("note", "a\udfff"),
    "marks of other systems": with_value("output", "a\r\nb\u2028c\x85d\x1ae"),
}
BYTE_DAMAGES = {
    "empty": lambda good: b"",
    "blank": lambda good: b" \n\r\n",
    "cut in half": lambda good: good[: len(good) // 2],
    "cut at its end": lambda good: good[:-7],
    "noise at its end": lambda good: good + bytes(range(128, 200)),
    "latin-1": lambda good: good.decode("utf-8", "replace").encode("latin-1", "replace").replace(b"?", b"\xe9"),
    "utf-16": lambda good: good.decode("utf-8", "replace").encode("utf-16"),
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "line ends of windows": lambda good: good.replace(b"\n", b"\r\n"),
    "blank lines": lambda good: good.replace(b"\n", b"\n\n"),
    "null bytes": lambda good: good.replace(b"number", b"num\x00\x00"),
    "a page of html": lambda good: b"<!DOCTYPE html><html><body>404</body></html>\n",
    "a pointer of git-lfs": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "deep nesting": lambda good: b"[" * 100_000 + b"\n",
    "a changed byte": lambda good: good[: len(good) // 2] + b"\xff" + good[len(good) // 2 + 1 :],
    "header only": lambda good: good.split(b"\n")[0] + b"\n",
    "the header twice": lambda good: good.split(b"\n")[0] + b"\n" + good,
    "a repeated column": lambda good: good.replace(b"input", b"output"),
}
PACKING_DAMAGES = ("not packed", "packed and cut", "packed twice")
TYPED_DAMAGES = {
    "a repeated column": pa.table([["a"], ["b"], ["c"]], names=["instruction", "output", "output"]),
    "bytes for text": pa.table({"instruction": ["a"], "output": [b"b"]}),
    "numbers for text": pa.table({"instruction": ["a"], "output": [1.5]}),
    "nested text": pa.table({"instruction": ["a"], "output": [[["b"]]]}),
    "a dictionary column": pa.table({"instruction": ["a"], "output": pa.array(["b"]).dictionary_encode()}),
    "invalid utf-8": pa.table({"instruction": ["a"], "output": pa.array([b"\xff\xfe"]).view(pa.string())}),
    "nulls alone": pa.table({"instruction": pa.nulls(2), "output": pa.nulls(2)}),
    "no column": pa.table({}),
}


def build_cases():
    """Name of each case -> (suffix, bytes)."""
    cases = {}
    for kind in TEXT_KINDS:
        base, _, packing = kind.partition(".")
        pack = PACKERS[f".{packing}" if packing else ""]
        good = WRITERS[base](ROWS)
        for name, rows in ROW_DAMAGES.items():
            cases[f"{kind}: {name}"] = (kind, pack(WRITERS[base](rows)))
        for name, damage in BYTE_DAMAGES.items():
            cases[f"{kind}: {name}"] = (kind, pack(damage(good)))
        if packing:
            packed = {"not packed": good, "packed and cut": pack(good)[:-9], "packed twice": pack(pack(good))}
            cases.update({f"{kind}: {name}": (kind, packed[name]) for name in PACKING_DAMAGES})
    for kind in TYPED_KINDS:
        good = as_typed(ROWS, kind)
        for name, damage in BYTE_DAMAGES.items():
            cases[f"{kind}: {name}"] = (kind, damage(good))
        for name, table in TYPED_DAMAGES.items():
            cases[f"{kind}: {name} (typed)"] = (kind, as_typed(table, kind))
        cases[f"{kind}: whole"] = (kind, good)
        for position in range(0, len(good), max(1, len(good) // 40)):
            changed = good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :]
            cases[f"{kind}: byte {position} changed"] = (kind, changed)
    return cases


CASES = build_cases()
SAMPLE = sorted(random.Random(4).sample(sorted(CASES), 25))
REST = sorted(set(CASES) - set(SAMPLE))


@pytest.mark.parametrize("case", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_a_damaged_file_gives_right_rows_or_one_line(case, tmp_path, file_source, cache, tokenizer):
    suffix, content = CASES[case]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    try:
        dataset = file_source(path).load(0)
        examples = Encoder(tokenizer, 512, cache).encode(dataset)
    except UserError as error:
        kind, _, damage = case.partition(": ")
        assert damage not in ("whole", "a missing optional column", "a huge cell")
        assert kind in TYPED_KINDS or damage not in ("blank lines", "line ends of windows", "a byte order mark")
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return
    assert len(examples) + len(examples.unscored) == len(dataset) and all(reason for _, reason in examples.unscored)
    write_subset(RunFolder(tmp_path / "out"), dataset, list(range(len(dataset))), None)
    lines = (tmp_path / "out" / "subset.jsonl").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == len(dataset)
    if case.endswith((": whole", "blank lines", "line ends of windows", "a byte order mark")) and len(dataset) == 6:
        assert [json.loads(line) for line in lines] == ROWS
    if case.endswith("half a surrogate pair"):
        assert json.loads(lines[3])["output"] == "a\ud800"


def test_the_table_is_large():
    assert len(CASES) >= 300 and len(SAMPLE) == 25
