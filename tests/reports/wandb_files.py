"""Reading an offline W&B run back from its own file (`run-ID.wandb`), a log of protocol buffers in LevelDB's format."""

import json
import struct
import time
from dataclasses import dataclass, field

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, RECORD_HEADER = 7, 32768, 7
FULL, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What an offline run holds.

    Attributes:
        id, group, name, project: of the run.
        config: its options.
        history: logged values, one mapping a step.
        artifacts: records by type.
        exit_code: None where the run did not end.
    """

    id: str = ""
    group: str = ""
    name: str = ""
    project: str = ""
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    artifacts: dict = field(default_factory=dict)
    exit_code: int | None = None

    def values(self, name):
        return [row[name] for row in self.history if name in row]

    def table(self, folder, name):
        """The table of that name: columns and rows."""
        about = self.values(name)[-1]
        assert about["_type"] == "table-file"
        found = json.loads((folder / "files" / about["path"]).read_text("utf-8"))
        return found["columns"], found["data"]


def read_ended_run(folder):
    """As `read_offline_run`; W&B's own process writes the last words a moment after the run was told to end."""
    for _ in range(200):
        run = read_offline_run(folder)
        if run.exit_code is not None:
            break
        time.sleep(0.05)
    return run


def read_offline_run(folder):
    """The run in an `offline-run-…` folder."""
    (path,) = folder.glob("run-*.wandb")
    run = OfflineRun()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.group, run.project = record.run.run_id, record.run.run_group, record.run.project
            run.name = record.run.display_name
            _update(run.config, record.run.config)
        elif kind == "config":
            _update(run.config, record.config)
        elif kind == "history":
            run.history.append(_nested(record.history.item))
        elif kind == "artifact":
            run.artifacts.setdefault(record.artifact.type, []).append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifact = record.request.log_artifact.artifact
            run.artifacts.setdefault(artifact.type, []).append(artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _update(config, record):
    config.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.update})


def _nested(items):
    """Logged values of one step; a picture or a table is a mapping."""
    row: dict = {}
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = row
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return row


def _records(content):
    """Whole records; one that a killed process did not finish is left out."""
    assert content[:4] == b":W&B", "not a W&B file"
    place, parts = HEADER, b""
    while place + RECORD_HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + RECORD_HEADER])
        part = content[place + RECORD_HEADER : place + RECORD_HEADER + length]
        place += RECORD_HEADER + length
        if kind == 0 or len(part) < length:
            return
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts
