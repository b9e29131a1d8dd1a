import datetime as dt
import gzip
import json
import re
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradfiltering.data.export import name_run
from gradfiltering.data.loading import load
from gradfiltering.data.schemas import Columns
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

ROWS = [
    {"instruction": "Sag „é“ 😀", "input": "", "output": "שלום\nعالم"},
    {"instruction": 'b, "c"', "input": "x", "output": "中文 \u2028 d"},
]
GOOD = '{"instruction": "a", "output": "b"}\n'
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_csv(separator):
    def cell(value):
        return '"' + value.replace('"', '""') + '"'

    lines = [separator.join(ROWS[0]), *(separator.join(map(cell, row.values())) for row in ROWS)]
    return "\r\n".join(lines).encode()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write_as(path, kind):
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes(BYTES[kind])


BYTES = {
    "json": json.dumps(ROWS).encode(), "jsonl": LINES, "ndjson": LINES, "csv": as_csv(","), "tsv": as_csv("\t"),
    "jsonl.gz": gzip.compress(LINES, mtime=0), "jsonl.zst": zstd(LINES),
    "csv.gz": gzip.compress(as_csv(","), mtime=0),
    "json.zst": zstd(json.dumps(ROWS).encode()),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*BYTES, "parquet", "feather", "arrow"])
def test_every_type_gives_the_same_rows_and_the_subset_in_the_same_type(kind, tmp_path, file_source):
    path = tmp_path / f"rows.{kind}"
    write_as(path, kind)
    records = file_source(path).load(0)
    assert records.rows.to_list() == ROWS and records.schema.name == "alpaca"
    out = tmp_path / "out"
    out.mkdir()
    write_subset(RunFolder(out), records, [1], None)
    form = records.form.kind
    reader = {"csv": "csv", "tsv": "csv", "parquet": "parquet", "arrow": "arrow"}.get(form, "json")
    name = "subset_rows.parquet" if reader == "parquet" else f"subset.{kind.replace('ndjson', 'jsonl')}"
    options = {"delimiter": "\t"} if form == "tsv" else {}
    options |= {"keep_default_na": False} if reader == "csv" else {}
    assert load(str(out / name)).rows.to_list() == ROWS[1:]
    if not kind.endswith("zst") or find_spec("zstandard"):  # without it `datasets` reads no such file
        cache = str(tmp_path / "hf")
        back = load_dataset(reader, data_files=str(out / name), split="train", cache_dir=cache, **options)
        assert back.to_list() == ROWS[1:]
    assert [json.loads(line) for line in (out / "subset.jsonl").read_text("utf-8").split("\n")[:-1]] == ROWS[1:]
    entry = json.loads((out / "dataset_info.json").read_text("utf-8"))[name_run(out)]
    assert entry == {
        "file_name": "subset.jsonl", "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }  # fmt: skip


TYPED_TABLE = pa.table(
    {
        "instruction": pa.array(["a", "b", "c"], pa.large_string()),
        "output": pa.array(["x", "y", "x"]).dictionary_encode(),
        "day": pa.array([dt.date(2024, 5, 1)] * 3),
        "at": pa.array([dt.datetime(2024, 5, 1, 12)] * 3, pa.timestamp("ms")),
        "price": pa.array([Decimal("12.50")] * 3, pa.decimal128(8, 2)),
        "weight": pa.array([0.5, float("nan"), None], pa.float32()),
        "parts": pa.array([[{"n": 1}], [], None], pa.list_(pa.struct([("n", pa.int8())]))),
    }
).replace_schema_metadata({"made by": "a user"})
AS_JSON = [
    {"instruction": "b", "output": "y", "day": "2024-05-01", "at": "2024-05-01T12:00:00", "price": "12.50",
     "weight": None, "parts": []},
    {"instruction": "c", "output": "x", "day": "2024-05-01", "at": "2024-05-01T12:00:00", "price": "12.50",
     "weight": None, "parts": None},
]  # fmt: skip


def write_table(path, table, layout):
    with pa.OSFile(str(path), "wb") as sink:
        if layout == "parquet":
            pq.write_table(table, sink)
        else:
            with (pa.ipc.new_stream if layout == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
                writer.write_table(table)


def read_table(path, kind):
    return pq.read_table(path) if kind == "parquet" else pa.ipc.open_file(path).read_all()


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_cells_with_line_ends_of_all_systems_are_given_back(suffix, separator, tmp_path, file_source):
    cells = ["a\rb", "\r", "c\r\nd", "e\nf", ' "g" ', "h,\ti", "=j", ""]
    lines = [f"instruction{separator}output"] + [
        separator.join('"' + cell.replace('"', '""') + '"' for cell in (text, text or "k")) for text in cells
    ]
    (tmp_path / f"in.{suffix}").write_bytes("\r\n".join(lines).encode())
    dataset = file_source(tmp_path / f"in.{suffix}").load(0)
    write_subset(RunFolder(tmp_path / "run"), dataset, range(len(cells)), None)
    rows = [{"instruction": text, "output": text or "k"} for text in cells]
    assert load(str(tmp_path / "run" / f"subset.{suffix}")).rows.to_list() == rows == dataset.rows.to_list()


@pytest.mark.parametrize(
    ("name", "layout", "read"),
    [
        ("rows.parquet", "parquet", pq.read_table),
        ("rows.arrow", "file", lambda path: pa.ipc.open_file(str(path)).read_all()),
        ("rows.arrow", "stream", lambda path: pa.ipc.open_stream(path.read_bytes()).read_all()),
        ("rows.feather", "file", feather.read_table),
    ],
)
def test_a_typed_subset_has_the_schema_and_layout_of_the_input(name, layout, read, tmp_path, file_source):
    write_table(tmp_path / name, TYPED_TABLE, layout)
    out = tmp_path / "out"
    write_subset(RunFolder(out), file_source(tmp_path / name).load(0), [1, 2], None)
    back = read(out / ("subset_rows.parquet" if layout == "parquet" else f"subset{Path(name).suffix}"))
    assert back.schema.equals(TYPED_TABLE.schema) and back.schema.metadata[b"made by"] == b"a user"
    assert str(back.to_pylist()) == str(TYPED_TABLE.slice(1).to_pylist())  # NaN equals itself as text
    assert [json.loads(line) for line in (out / "subset.jsonl").read_text("utf-8").splitlines()] == AS_JSON


def test_a_mixture_writes_typed_values_by_the_same_rule(tmp_path, mixture_source):
    write_table(tmp_path / "rows.parquet", TYPED_TABLE, "parquet")
    records = mixture_source({"a": {"path": str(tmp_path / "rows.parquet")}}).load(0)
    assert sorted(records.rows, key=lambda row: row["instruction"])[1:] == [{"source": "a", **row} for row in AS_JSON]


ODD_COLUMNS = {
    "bytes": (pa.array([b"x", None]), "blob (binary: not in subset.jsonl)", 1),
    "lists of bytes": (pa.array([[b"x"], [b"y"]]), "blob (binary: not in subset.jsonl)", 2),
    "durations": (pa.array([dt.timedelta(1), None]), "blob (duration[us]: not in subset.jsonl)", 1),
    "images": (pa.array([{"bytes": b"x", "path": "y"}] * 2), "blob (binary: not in subset.jsonl)", 2),
    "times": (pa.array([dt.datetime(2024, 5, 1, 12, 0, 0, 1)] * 2, pa.timestamp("ns")), "blob", 2),
    "decimals": (pa.array([Decimal("1.50"), None]), "blob", 1),
    "nested": (pa.array([{"a": [{"b": None}]}, None]), "blob", 1),
    "null": (pa.nulls(2), None, 0),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("case", ODD_COLUMNS)
def test_unused_columns_of_odd_types_are_named_and_given_back(case, kind, tmp_path, mixture_source, file_source):
    values, label, count = ODD_COLUMNS[case]
    path = tmp_path / f"rows.{kind}"
    table = pa.table({"instruction": ["a", "c"], "output": ["b", "d"], "blob": values})
    write_table(path, table, kind)
    records = file_source(path).load(0)
    assert records.contents.unused == ({label: count} if label else {})
    write_subset(RunFolder(tmp_path), records, [0, 1], None)
    back = tmp_path / ("subset_rows.parquet" if kind == "parquet" else "subset.arrow")
    assert read_table(back, kind)["blob"].to_pylist() == table["blob"].to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "subset.jsonl").read_text("utf-8").splitlines()]
    assert [line["output"] for line in lines] == ["b", "d"] and ("blob" in lines[0]) == (label in ("blob", None))
    mixed = mixture_source({"a": {"path": str(path)}}).load(0)
    assert sorted(row["output"] for row in mixed.rows) == ["b", "d"]
    assert label in ("blob", None) or "blob" in str(mixed.contents.unused)


def test_a_used_column_of_bytes_is_refused(tmp_path, file_source):
    pq.write_table(pa.table({"instruction": ["a"], "output": [b"b"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet: column 'output' holds binary, which is no text; cast it"):
        file_source(tmp_path / "rows.parquet").load(0)


def test_a_column_that_no_dataset_can_hold_is_named_as_left_out(tmp_path, file_source):
    months = pa.array([pa.MonthDayNano([1, 2, 3])], pa.month_day_nano_interval())
    write_table(tmp_path / "rows.arrow", pa.table({"instruction": ["a"], "output": ["b"], "span": months}), "arrow")
    records = file_source(tmp_path / "rows.arrow").load(0)
    assert records.contents.unused == {"span (month_day_nano_interval: cannot be read and is not given back)": 1}
    write_subset(RunFolder(tmp_path), records, [0], None)
    assert read_table(tmp_path / "subset.arrow", "arrow").column_names == ["instruction", "output"]


def test_shards_may_order_columns_otherwise_and_hold_nothing_but_nulls_in_one(tmp_path, file_source):
    shards = [
        {"instruction": ["a"], "input": pa.nulls(1), "output": ["b"]},
        {"output": ["d"], "instruction": ["c"], "input": ["x"]},
        {"input": pa.array(["y"], pa.large_string()), "output": ["f"], "instruction": ["e"]},
    ]
    for number, shard in enumerate(shards):
        pq.write_table(pa.table(shard), tmp_path / f"{number}.parquet")
    records = file_source(tmp_path).load(0)
    assert [(row["instruction"], row["input"], row["output"]) for row in records.rows] == [
        ("a", None, "b"), ("c", "x", "d"), ("e", "y", "f"),
    ]  # fmt: skip
    write_subset(RunFolder(tmp_path / "out"), records, [0, 1, 2], None)
    assert pq.read_table(tmp_path / "out" / "subset_rows.parquet").to_pylist() == records.rows.to_list()


def test_a_shard_of_another_type_or_column_is_refused(tmp_path, file_source):
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"instruction": ["a"], "output": [["b"]]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet differs in a column's type from .*0\.parquet.*cast it"):
        file_source(tmp_path).load(0)
    pq.write_table(pa.table({"instruction": ["a"], "answer": ["b"]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"give files of the same columns"):
        file_source(tmp_path).load(0)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["output", "note"])
def test_bytes_that_are_no_utf8_in_a_text_column_name_row_and_column(kind, column, tmp_path, file_source):
    bad = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    table = pa.table({"instruction": ["a", "b"], "output": ["c", "d"], "note": ["e", "f"]})
    write_table(tmp_path / f"rows.{kind}", table.set_column(table.column_names.index(column), column, bad), kind)
    with pytest.raises(UserError, match=rf"rows\.{kind}, row 1: column '{column}' holds no valid string: .*UTF-?8"):
        file_source(tmp_path / f"rows.{kind}").load(0)


def test_what_datasets_saved_is_read_in_its_order(tmp_path, file_source):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"instruction": f"{n}", "output": "b"} for n in range(20)])
    rows.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    assert [row["instruction"] for row in file_source(tmp_path / "saved").load(0).rows] == [f"{n}" for n in range(20)]
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match=r"several splits; name the files of one of them \(train: .*train; test"):
        file_source(tmp_path / "splits").load(0)
    assert len(load(str(tmp_path / "splits"), split="test").rows) == 1
    assert len(file_source(tmp_path / "splits" / "train").load(0)) == 20
    (tmp_path / "saved" / "state.json").write_text("[")
    with pytest.raises(UserError, match=r"state\.json cannot be read.*save the dataset again"):
        file_source(tmp_path / "saved").load(0)


@pytest.mark.parametrize("readme", ["none", "splits", "patterns"])
def test_a_copy_of_a_hub_repository_gives_its_splits(readme, tmp_path, file_source):
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(ROWS)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    listed = {
        "splits": "- split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*",
        "patterns": "- split: train\n    path: [data/train-*]",
    }.get(readme)
    header = f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  {listed}\n---\n" if listed else ""
    (tmp_path / "README.md").write_text(header + "# About\n")
    assert len(load(str(tmp_path), split="train").rows) == 4
    if readme == "patterns":
        assert len(file_source(tmp_path).load(0)) == 4
        return
    with pytest.raises(
        UserError,
        match=r"several splits; name the files of one of them .*(test-00000|train-\*)",
    ):
        file_source(tmp_path).load(0)
    with pytest.raises(UserError, match=r"holds no split dev"):
        load(str(tmp_path), split="dev")
    assert len(file_source(tmp_path / "data" / "train-*.parquet").load(0)) == 4


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.jsonl.gz"])
def test_a_limit_stops_reading(name, tmp_path, file_source):
    """What is wrong behind the limit and the held-out rows is never seen, and a change there makes no new rows."""
    start, bad = (b"instruction,output\na,b\nc,d\n", b"e\n") if "csv" in name else (GOOD.encode() * 2, b"{oops\n")
    path = tmp_path / name

    def write(data):
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)

    write(start + bad)
    records = file_source(path, limit=1, heldout=(None, 1, 0.0)).load(0)
    assert len(records) == 1 and len(records.heldout) == 1
    with pytest.raises(UserError, match="line"):
        file_source(path, limit=2, heldout=(None, 1, 0.0)).load(0)
    before = sorted((tmp_path / "cache").rglob("rows.arrow"))
    write(start)
    file_source(path, limit=1, heldout=(None, 1, 0.0)).load(0)
    assert sorted((tmp_path / "cache").rglob("rows.arrow")) == before, "the same first rows were stored again"
    write(start.replace(b",b\n", b",B\n").replace(b'"b"', b'"B"'))
    changed = file_source(path, limit=1, heldout=(None, 1, 0.0)).load(0)
    assert changed.rows[0]["output"] == "B", "a changed row was read from the cache of the old one"


def test_folders_and_globs_are_read_in_sorted_order(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"n": name}) + "\n")
    (tmp_path / "README.md").write_text("about")
    assert load(str(tmp_path)).rows["n"] == ["a", "b", "c"]
    assert load(str(tmp_path / "[ab].jsonl")).rows["n"] == ["a", "b"]
    assert load(str(tmp_path)).describe_row(2).endswith("c.jsonl, line 1, row 0")


def test_a_changed_file_is_read_anew_although_size_and_time_are_the_same(tmp_path):
    import os

    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n')
    before = path.stat()
    assert load(str(path)).rows["n"] == [1]
    path.write_text('{"n": 2}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(str(path)).rows["n"] == [2]


def test_a_broken_file_leaves_nothing_in_the_cache(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD * 3000 + "{oops}\n")
    for _ in range(2):
        with pytest.raises(UserError, match="line 3001"):
            load(str(path))
    assert not list((tmp_path / "cache").rglob("rows.arrow"))


def test_crlf_byte_order_mark_and_half_a_surrogate_pair_survive(tmp_path, file_source):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "a\\ud800", "output": "b", "n": 1}\r\n' + GOOD.encode())
    records = file_source(path).load(0)
    write_subset(RunFolder(tmp_path), records, [0, 1], None)
    back = [json.loads(line) for line in (tmp_path / "subset.jsonl").read_text("utf-8").splitlines()]
    assert back == [{"instruction": "a\ud800", "output": "b", "n": 1}, {"instruction": "a", "output": "b"}]


MESSAGES = '{"messages": [{"role": "user", "content": "a"}, %s]}\n'
# name: (content, options of the source, what the message must say beside the file's name)
BAD = {
    "missing/none.jsonl": (None, {}, "no such file.*name a file"),
    "empty.jsonl": ("", {}, "is empty; give"),
    "header.csv": ("instruction,output\n", {}, "is empty; give"),
    "empty.csv": ("", {}, "is empty; give"),
    "broken.jsonl": (GOOD + "{oops\n", {}, "line 2, is not valid JSON.*Mend"),
    "cut.json": ('[{"instruction": "a"', {}, "not valid JSON: .*Mend"),
    "deep.jsonl": (GOOD + "[" * 100000 + "\n", {}, "line 2, .*Mend"),
    "scalar.jsonl": (GOOD + "7\n", {}, "line 2, row 1: 7 is no row; give objects"),
    "list.json": ("[[1]]", {}, "row 0: .*no row; give objects"),
    "latin.jsonl": (GOOD.encode() + b'{"instruction": "\xe9"}\n', {}, "line 2, is not UTF-8.*iconv"),
    "latin.json": (b'["\xe9"]', {}, "is not UTF-8.*iconv"),
    "latin.csv": (b"instruction,output\na,\xe9\n", {}, "is not UTF-8.*iconv"),
    "wide.jsonl": (GOOD.encode("utf-16"), {}, "is UTF-16, not UTF-8.*iconv -f UTF-16 "),
    "wider.jsonl": (GOOD.encode("utf-32"), {}, "is UTF-32, not UTF-8.*iconv -f UTF-32 "),
    "big.csv": (b"\x00\x00\xfe\xff" + GOOD.encode("utf-32-be"), {}, "is UTF-32, not UTF-8.*iconv -f UTF-32 "),
    "short.csv": ("instruction,output\na,b\nc\n", {}, "line 3, has 1 cells and the header 2; mend"),
    "quote.csv": ('instruction,output\na,"b\n', {}, "line 2, is not valid csv.*mend its double quotes"),
    "twice.tsv": ("output\toutput\na\tb\n", {}, "line 1: the header.*repeated name; give"),
    "text.txt": ("a", {}, r"cannot read '\.txt' files; give one of \.json"),
    "bad.jsonl.gz": (b"not gzip", {}, "cannot be read.*unpack it by hand .gzip."),
    "cut.jsonl.gz": (gzip.compress(LINES, mtime=0)[:-9], {}, "cannot be read.*unpack it by hand .gzip."),
    "bad.jsonl.zst": (b"not zstd at all", {}, "cannot be read.*unpack it by hand .zstd."),
    "cut.jsonl.zst": (zstd(LINES)[:-9], {}, "cannot be read.*unpack it by hand .zstd."),
    "bad.parquet": (b"PAR1 nothing", {}, "no readable parquet file.*write it again"),
    "bad.arrow": (b"ARROW1 nothing", {}, "no readable arrow file.*write it again"),
    "bad.feather": (b"nothing", {}, "no readable arrow file.*write it again"),
    "packed.parquet.gz": (b"", {}, "compressed inside; unpack it"),
    "column.jsonl": ('{"a": 1}\n', {}, r"no column.*it has: a.*name the columns"),
    "named.jsonl": (GOOD, {"schema": "text"}, r"no column 'text' \(it has.*name the columns"),
    "schema.jsonl": (GOOD, {"schema": "chatml"}, "schema must be one of: auto, alpaca"),
    "type.jsonl": (GOOD + '{"instruction": "a", "output": 7}\n', {},
        "line 2, row 1: column 'output' holds 7, not text.*name another column"),
    "string.jsonl": ('{"messages": "hello"}\n', {}, "line 1, row 0: column 'messages' holds 'hello', not a list.*mend"),
    "role.jsonl": (MESSAGES % '{"role": "boss", "content": "b"}', {},
        "row 0: .*message 1: role 'boss' is unknown; the roles are"),
    "part.jsonl": (MESSAGES % '{"role": "user", "content": 3}', {}, "row 0: .*message 1: content 3 is not text; mend"),
    "image.jsonl": (MESSAGES % '{"role": "user", "content": [{"image": "x"}]}', {},
        "message 1: content .* no text; only text.*mend"),
    "limit.jsonl": (GOOD, {"limit": 0}, "limit must be a positive whole number"),
}  # fmt: skip


OPTIONS_REFUSED = {"limit", "schema"}  # before any file is looked at


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_file_place_and_remedy(name, tmp_path, file_source):
    content, options, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        file_source(tmp_path / name, **options).load(0)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert name in str(caught.value) or OPTIONS_REFUSED & options.keys(), str(caught.value)


def test_a_folder_of_several_types_or_of_none_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(UserError, match=r"no file of a known type; files of"):
        load(str(tmp_path))
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "b.csv").write_text("instruction,output\n")
    with pytest.raises(UserError, match=r"mixes file types \(jsonl: a\.jsonl, csv: b\.csv\).*glob"):
        load(str(tmp_path))


def test_a_named_column_that_is_not_there(tmp_path, file_source):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    columns = Columns("instruction", "input", "output", prompt="ask")
    with pytest.raises(UserError, match=r"a\.jsonl has no column 'ask'.*name the columns"):
        file_source(tmp_path / "a.jsonl", columns=columns).load(0)


NAMES = st.sampled_from(["instruction", "output", "messages", "role", "content", "from", "value", "text", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
lines = st.lists(anything.map(json.dumps), max_size=4).map(lambda found: "\n".join(found).encode())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60) | lines,
    kind=st.sampled_from(["json", "jsonl", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "json.zst"]),
)
def test_whatever_a_file_holds_the_loader_ends_in_rows_or_a_user_error(data, kind, tmp_path, file_source):
    path = tmp_path / f"fuzz.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    try:
        records = file_source(path).load(0)
    except UserError as error:
        assert str(error)
    else:
        assert len(records) > 0 and list(records.rows)
        write_subset(RunFolder(tmp_path), records, [0], None)
