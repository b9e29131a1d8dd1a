"""What the training of a target goes on from when it was interrupted."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file, save_file

from gradfiltering.distributed.process_group import rank
from gradfiltering.runs.cache import Unfinished

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
TENSORS, PROGRESS = "state.safetensors", "progress.json"


@dataclass
class Progress:
    """How far the training of an adapter has come. The order of rows follows from the seed and is not part of it.

    Attributes:
        steps: updates taken.
        examples_seen, tokens_seen: in them.
        seconds: they took.
        losses: of each update since the curve's last point.
        curve: the convergence curve so far.
    """

    steps: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, float | int | None]] = field(default_factory=list)


@dataclass
class Checkpoint:
    """Progress, with the state it was made in.

    Attributes:
        progress: how far training has come.
        adapter: name -> value of each trained parameter.
        moments: of AdamW -> name -> value.
    """

    progress: Progress
    adapter: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]

    @classmethod
    def of(cls, progress: Progress, trained: dict[str, torch.nn.Parameter], optimizer: Any) -> "Checkpoint":
        """The state after an update."""
        adapter = {name: value.detach() for name, value in trained.items()}
        moments = {kind: {name: optimizer.state[value][kind] for name, value in trained.items()} for kind in MOMENTS}
        return cls(progress, adapter, moments)

    def write(self, folder: Path) -> None:
        """Writes it into an existing folder."""
        tensors = {f"adapter/{name}": value for name, value in self.adapter.items()}
        for kind, of in self.moments.items():
            tensors.update({f"{kind}/{name}": value for name, value in of.items()})
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / TENSORS)
        (folder / PROGRESS).write_text(json.dumps(asdict(self.progress)), "utf-8")

    @classmethod
    def read(cls, left: Unfinished) -> "Checkpoint | None":
        """Reads what `write` wrote, None where nothing is."""
        folder = left.find()
        if folder is None:
            return None
        kinds: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in ("adapter", *MOMENTS)}
        for place, value in load_file(folder / TENSORS).items():
            kind, _, name = place.partition("/")
            kinds[kind][name] = value
        progress = Progress(**json.loads((folder / PROGRESS).read_text("utf-8")))
        return cls(progress, kinds.pop("adapter"), kinds)

    def restore(self, trained: dict[str, torch.nn.Parameter], optimizer: Any) -> None:
        """Puts parameters and moments where training left them."""
        for name, value in trained.items():
            value.data.copy_(self.adapter[name])
            optimizer.state[value] = {kind: of[name].to(value) for kind, of in self.moments.items()}
            optimizer.state[value]["step"] = torch.tensor(float(self.progress.steps))


class TuningKeeper(L.Callback):
    """Keeps a checkpoint now and then; in several processes all have the same state, and the first writes it.

    Args:
        unfinished: where to.
        minutes: how often.
    """

    def __init__(self, unfinished: Unfinished, minutes: float):
        self.unfinished = unfinished
        self.minutes = minutes
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Writes one when it is time to."""
        if rank() == 0 and time.monotonic() - self._saved >= 60 * self.minutes:
            checkpoint = Checkpoint.of(module.so_far(), module.trained, trainer.optimizers[0])
            self.unfinished.write(checkpoint.write)
            self._saved = time.monotonic()
