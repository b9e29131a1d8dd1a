"""Files of stores, hubs and web servers are read as they come, and read again where their content changed."""

import gzip
import http.server
import json
import threading
from functools import partial

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.api import _write_rows
from gradfiltering.config.build import build
from gradfiltering.config.composition import composed
from gradfiltering.data.loading import load
from gradfiltering.data.remote_files import explained_access, is_address, public_address
from gradfiltering.errors import UserError
from gradfiltering.masking import mask_override

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}", "n": n} for n in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def to_bytes(write) -> bytes:
    sink = pa.BufferOutputStream()
    write(sink)
    return sink.getvalue().to_pybytes()


def compress_lines(sink) -> None:
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(LINES)


def arrow_bytes(new_writer) -> bytes:
    def write(sink):
        with new_writer(sink, table().schema) as writer:
            writer.write_table(table())

    return to_bytes(write)


CONTENTS = {
    "rows.jsonl": LINES,
    "rows.jsonl.gz": gzip.compress(LINES, mtime=0),
    "rows.jsonl.zst": to_bytes(compress_lines),
    "rows.json": json.dumps(ROWS).encode(),
    "rows.csv": b"instruction,output\n" + b"".join(f"Say {n}.,{n}\n".encode() for n in range(30)),
    "rows.parquet": to_bytes(lambda sink: pq.write_table(table(), sink)),
    "rows.arrow": arrow_bytes(pa.ipc.new_file),
    "stream.arrow": arrow_bytes(pa.ipc.new_stream),
}


@pytest.fixture
def store():
    """Writes files into fsspec's store in memory, which the test alone uses."""
    memory = fsspec.filesystem("memory")

    def write(name: str, content: bytes) -> str:
        memory.pipe(f"/bucket/{name}", content)
        return f"memory://bucket/{name}"

    yield write
    memory.store.clear()


@pytest.mark.parametrize("name", CONTENTS)
def test_each_format_is_read_from_a_store_as_from_a_file(name, store, tmp_path):
    (tmp_path / name).write_bytes(CONTENTS[name])
    remote, local = load(store(name, CONTENTS[name])), load(str(tmp_path / name))
    assert list(remote.rows) == list(local.rows) and len(remote.rows) == 30
    assert remote.form == local.form
    if name.startswith("rows.j") and not name.endswith(".json"):
        assert remote.describe_row(7) == f"memory://bucket/{name}, line 8, row 7"


def test_a_glob_and_a_folder_give_their_files_in_order(store):
    for number in (2, 0, 1):
        store(f"part-{number}.jsonl", json.dumps({"text": f"of {number}"}).encode())
    store("README.md", b"nothing")
    for address in ("memory://bucket/part-*.jsonl", "memory://bucket"):
        assert [row["text"] for row in load(address).rows] == ["of 0", "of 1", "of 2"]


def test_a_folder_of_splits_gives_the_split_named(store):
    for split in ("train", "test"):
        store(f"{split}-00000-of-00001.jsonl", json.dumps({"text": split}).encode())
    assert [row["text"] for row in load("memory://bucket", split="test").rows] == ["test"]
    with pytest.raises(UserError, match="holds no file of the split dev"):
        load("memory://bucket", split="dev")
    with pytest.raises(UserError, match=r"memory://bucket holds several splits \(test, train\); name the files of one"):
        load("memory://bucket")


def test_a_changed_file_of_the_same_size_is_read_again(store):
    address = store("rows.jsonl", LINES)
    assert load(address).rows[0]["output"] == "0"
    store("rows.jsonl", LINES.replace(b'"output": "0"', b'"output": "7"'))
    assert load(address).rows[0]["output"] == "7"


def test_files_of_two_kinds_are_refused(store):
    store("a.jsonl", LINES)
    store("b.parquet", CONTENTS["rows.parquet"])
    with pytest.raises(UserError, match=r"mixes file types .*'memory://bucket/\*\.jsonl'"):
        load("memory://bucket")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", b'{"text": \n', r"memory://bucket/broken\.jsonl, line 1, is not valid JSON"),
        ("broken.jsonl.gz", gzip.compress(LINES, mtime=0)[:40], r"memory://bucket/broken\.jsonl\.gz cannot be read"),
        ("broken.parquet", b"PAR1 nothing", r"memory://bucket/broken\.parquet is no readable parquet file"),
        ("broken.arrow", b"ARROW1 nothing", r"memory://bucket/broken\.arrow is no readable arrow file"),
        ("rows.txt", b"text", r"memory://bucket/rows\.txt: cannot read '\.txt' files"),
        ("empty.jsonl", b"", r"memory://bucket/empty\.jsonl is empty"),
    ],
    ids=["jsonl", "jsonl.gz", "parquet", "arrow", "txt", "nothing"],  # the content of an archive is no name
)
def test_broken_files_are_named_by_their_address(name, content, message, store):
    with pytest.raises(UserError, match=message):
        load(store(name, content))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none.jsonl", "no such file: memory://bucket/none.jsonl; check the address"),
        ("memory://bucket/*.jsonl", "no such file: memory://bucket/"),
        ("sorcery://bucket/rows.jsonl", "Protocol not known: sorcery"),
        ("hf://datasets/someone/something/rows.jsonl", "check the address, the connection and your credentials"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        load(address)
    assert message in str(refused.value) and address[:20] in str(refused.value)


def test_a_missing_package_is_named_with_its_install_command(monkeypatch):
    def refuse(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(UserError, match=r"Install s3fs to access S3; .*pip install s3fs"):
        load("s3://bucket/rows.jsonl")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/a.jsonl", True), ("hf://datasets/a/b/c.parquet", True), ("https://x.org/a.jsonl?b=c", True),
        ("zip://a.jsonl::https://x.org/a.zip", True), ("a.jsonl", False), ("/a/b.jsonl", False), ("file:///a/b", False),
        ("C:\\a.jsonl", False), ("C://a.jsonl", False), ("~/a:b.jsonl", False),
    ],
)  # fmt: skip
def test_addresses_are_told_from_paths(path, expected):
    assert is_address(path) is expected


def test_the_address_of_a_local_file_is_its_path(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    loaded = load(f"file://{tmp_path}/rows.jsonl")
    assert len(loaded.rows) == 30 and loaded.describe_row(0).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["rows.jsonl", "part-*.jsonl"])
def test_the_option_takes_an_address(name, store):
    store("rows.jsonl", LINES)
    store("part-1.jsonl", LINES)
    with composed(["data=file", f"data.path=memory://bucket/{name}", "data.limit=20"]) as cfg:
        dataset = build(cfg.data).load(0)
    assert len(dataset) == 20 and len(dataset.heldout) == 10 and dataset.schema.name == "alpaca"


def test_the_python_function_takes_an_address_as_it_is(tmp_path):
    assert _write_rows("memory://bucket/rows.jsonl", tmp_path) == "memory://bucket/rows.jsonl"
    assert _write_rows("rows.jsonl", tmp_path).is_absolute()


class Handler(http.server.BaseHTTPRequestHandler):
    """A web server of one folder: with or without ETags and reads of parts; notes what is asked of it."""

    def __init__(self, server_state, *arguments):
        self.state = server_state
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def answer(self, with_body: bool):
        content = self.state["files"].get(self.path.partition("?")[0])
        if content is None or self.state.get("refuses"):
            self.send_error(404 if content is None else 403)
            return
        start, stop, status = 0, len(content), 200
        if self.state["parts"] and (wanted := self.headers.get("Range")):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop, status = int(first), min(int(last) + 1, len(content)), 206
        body = content[start:stop]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes" if self.state["parts"] else "none")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.state["tags"]:
            self.send_header("ETag", f'"{hash(content):x}"')
        self.end_headers()
        if with_body:
            self.state["sent"] += len(body)  # before it is written, as the reader goes on once it has it
            self.wfile.write(body)

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)


@pytest.fixture
def web():
    """A running web server: state to change, and its address."""
    state = {
        "files": {f"/{name}": content for name, content in CONTENTS.items()},
        "parts": True,
        "tags": True,
        "sent": 0,
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.arrow"])
def test_each_format_is_read_from_a_web_server(name, web, tmp_path):
    (tmp_path / name).write_bytes(CONTENTS[name])
    loaded = load(f"{web[1]}/{name}?download=true")
    assert list(loaded.rows) == list(load(str(tmp_path / name)).rows)


def test_a_file_with_a_version_is_fetched_once(web):
    state, address = web
    load(f"{address}/rows.jsonl")
    sent = state["sent"]
    assert len(LINES) <= sent < 1.5 * len(LINES), "the file was fetched twice for one reading"
    load(f"{address}/rows.jsonl")
    assert state["sent"] == sent, "the file was fetched again"
    state["files"]["/rows.jsonl"] = LINES.replace(b'"output": "0"', b'"output": "7"')
    assert load(f"{address}/rows.jsonl").rows[0]["output"] == "7"


def test_without_a_version_the_content_itself_tells_of_changes(web):
    state, address = web
    state["tags"] = False
    assert load(f"{address}/rows.jsonl").rows[0]["output"] == "0"
    state["files"]["/rows.jsonl"] = LINES.replace(b'"output": "0"', b'"output": "7"')
    assert load(f"{address}/rows.jsonl").rows[0]["output"] == "7"


def test_a_server_without_reads_of_parts_gives_text_and_no_parquet(web):
    state, address = web
    state["parts"] = False
    assert len(load(f"{address}/rows.jsonl.gz").rows) == 30
    with pytest.raises(UserError, match=r"rows\.parquet can be read from start to end alone.*fetch it"):
        load(f"{address}/rows.parquet")


def test_first_rows_are_fetched_without_the_rest(web):
    state, address = web
    long_lines = LINES * 20_000  # 40 MB
    state["files"]["/many.jsonl"] = long_lines
    assert len(load(f"{address}/many.jsonl", first_rows=10).rows) == 10
    assert state["sent"] < len(long_lines) / 2


def test_keys_in_an_address_are_in_no_message_and_no_file(web, tmp_path, capsys):
    state, address = web
    signed = address.replace("http://", "http://me:pass-word@") + "/rows.jsonl?X-Amz-Signature=abc-def"
    loaded = load(signed)
    assert loaded.origin == f"{address}/rows.jsonl" == loaded.describe_row(0).partition(",")[0]
    state["refuses"] = True
    with pytest.raises(UserError) as refused:
        load(signed)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode("utf-8", "replace")
    for secret in ("pass-word", "abc-def"):
        assert secret not in written and secret not in str(refused.value) + capsys.readouterr().out
    assert (
        mask_override(f"data.path={signed}")
        == f"data.path={address.replace('://', '://***@')}/rows.jsonl?X-Amz-Signature=***"
    )


@pytest.mark.parametrize("password", ["pass-word", "pa@ss-word", "pa:ss@wo@rd"])
def test_no_part_of_a_password_is_in_the_name_of_an_address_or_in_an_error(password):
    address = f"https://me:{password}@host.example/data/rows.jsonl"
    assert public_address(address) == "https://host.example/data/rows.jsonl"
    assert public_address(f"zip://rows.jsonl::{address}") == "zip://rows.jsonl::https://host.example/data/rows.jsonl"
    with pytest.raises(UserError) as refused, explained_access(public_address(address)):
        raise OSError(f"cannot reach '{address}?key=abc': 403, while https://other.example/a@b was there")
    assert "'https://host.example/data/rows.jsonl': 403" in str(refused.value)
    assert "https://other.example/a@b" in str(refused.value)


def test_a_refused_file_is_named_with_the_servers_words(web):
    state, address = web
    state["refuses"] = True
    with pytest.raises(UserError, match=r"rows\.jsonl.*403.*credentials"):
        load(f"{address}/rows.jsonl")
