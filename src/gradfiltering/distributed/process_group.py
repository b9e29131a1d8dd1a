"""The processes of a run: one for each device, started by Lightning, `torchrun` or SLURM.

Every process runs the whole experiment. Work that takes long is shared out by `share` and brought together by `total`
and `gather`, so every process knows every result and goes the same way. Each writes to a run folder of its own: that of
the first process is the user's, that of any other a temporary one. With one process all of this does nothing.
"""

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gradfiltering.errors import UserError

if TYPE_CHECKING:
    import lightning as L
    import numpy as np
    import torch

    from gradfiltering.data.batches import Share

Result = TypeVar("Result")

PATIENCE = timedelta(days=7)  # the others wait as long for what the first process does alone, such as judging
LAST_WORD = timedelta(seconds=30)  # for the first process to meet the error of another
GRACE_SECONDS = 2  # for the others to leave Lightning's fit, which answers a signal with a stack trace
TOLD = "gradfiltering: the first process tells the error"


def start(main: Callable[[], None]) -> None:
    """Runs Hydra's `main`; every process but the first gets a temporary run folder before Hydra reads the command line.

    Lightning starts the processes of a sweep once, with the same command line, and they go through its jobs together.
    """
    if not is_first():
        folder = tempfile.mkdtemp(prefix="gradfiltering-rank-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        sys.argv += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "run_dir=${hydra:runtime.output_dir}"]
    main()


def is_first() -> bool:
    """Whether this is the first process, by the variables of Lightning, torchrun and SLURM."""
    number = [int(os.environ.get(name, 0)) for name in ("RANK", "NODE_RANK", "LOCAL_RANK")]
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        number.append(int(os.environ.get("SLURM_PROCID", 0)))
    return not any(number)


@contextmanager
def connected(trainer: "Callable[..., L.Trainer]") -> Iterator[None]:
    """Starts the other processes if nobody has, and connects all of them; an error ends them all.

    An error that all processes meet is left to the first one to tell.

    Args:
        trainer: builds a `lightning.Trainer`; its devices, nodes and strategy decide.

    Raises:
        UserError: the trainer does not fit the processes there are.
    """
    children = _connect(trainer)
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) and world_size() > 1:
            _leave_to_first(error)
        for child in children:
            _end(child)
        raise


def _leave_to_first(error: UserError) -> None:
    """Lets the first process go on to tell `error` and any other go silently, once it knows that the first has met it.

    Raises:
        UserError: the first did not meet it, so this process must tell.
    """
    from torch import distributed

    store = distributed.distributed_c10d._get_default_store()
    if rank() == 0:
        store.set(TOLD, "")
        return
    try:
        store.wait([TOLD], LAST_WORD)
    except distributed.DistStoreError:
        raise error from None
    except distributed.DistNetworkError:  # the first has ended already
        pass
    sys.exit(0)  # any other status would make the launcher end the first before it has spoken


def _end(child: Any) -> None:
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)


def _connect(trainer: "Callable[..., L.Trainer]") -> list[Any]:
    from lightning.pytorch.strategies import DDPStrategy
    from torch import distributed

    if distributed.is_initialized():  # an earlier job of this sweep
        return []
    for name in ("lightning.pytorch", "lightning.fabric"):  # what devices it found, and advice
        logging.getLogger(name).setLevel(logging.WARNING)
    asked = trainer(logger=False)
    if asked.strategy.launcher is None:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1:
            raise UserError(f"{processes} processes were started, but this trainer uses one; add trainer=ddp")
        return []
    if not isinstance(asked.strategy, DDPStrategy):
        raise UserError(f"trainer.strategy={type(asked.strategy).__name__} is not supported; choose trainer=ddp")
    strategy: Any = trainer(logger=False, strategy=DDPStrategy(timeout=PATIENCE)).strategy
    try:
        strategy.launcher.launch(strategy.setup_environment)
    except ValueError as error:  # Lightning's words about devices, nodes and the processes there are
        raise UserError(f"trainer.devices or trainer.num_nodes does not fit the launch: {error}") from error
    atexit.register(distributed.destroy_process_group)
    return getattr(strategy.launcher, "procs", [])


def rank() -> int:
    """This process's number over all nodes, 0 for the first."""
    return _distributed().get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes over all nodes."""
    distributed = _distributed()
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _distributed() -> Any:
    from torch import distributed

    return distributed


def share() -> "Share":
    """Which part of the work is this process's; nothing is dealt out twice."""
    from gradfiltering.data.batches import Share

    return Share(rank(), world_size())


def total(values: "np.ndarray") -> "np.ndarray":
    """Element-wise sum over all processes, known to all of them.

    Args:
        values: an array of the same shape and type in every process.
    """
    if world_size() == 1:
        return values
    import torch

    there = torch.from_numpy(values.copy()).to(_wire())
    _distributed().all_reduce(there)
    return there.cpu().numpy()


def sum_gradients(parameters: "Sequence[torch.nn.Parameter]") -> None:
    """Sums gradients over all processes in one exchange; where this process has none, it adds zero."""
    if world_size() == 1:
        return
    import torch

    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _distributed().all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for value, part in zip(parameters, parts, strict=True):
        value.grad = part.view_as(value).clone()


def gather(value: Result) -> list[Result]:
    """What every process has, in the order of the processes, known to all of them."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    _distributed().all_gather_object(gathered, value)
    return gathered


def first_then_all(work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs `work` in the first process, then in the others, which find what it left in a cache or in the store.

    Raises:
        UserError: the first process failed; all of them raise its error.
    """
    result = _first(work, arguments)
    return work(*arguments) if rank() > 0 else result  # type: ignore[return-value]


def once(work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs `work` in the first process only; every process gets its result.

    Raises:
        UserError: the first process failed; all of them raise its error.
    """
    result = _first(work, arguments)
    shared = [result]
    if world_size() > 1:
        _distributed().broadcast_object_list(shared, src=0)
    return shared[0]  # type: ignore[return-value]


def _first(work: Callable[..., Result], arguments: Sequence[Any]) -> Result | None:
    result, failure = None, [None]
    if rank() == 0:
        try:
            result = work(*arguments)
        except UserError as error:
            if world_size() == 1:
                raise
            failure = [str(error)]  # type: ignore[list-item]
    if world_size() > 1:
        _distributed().broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise UserError(failure[0])
    return result


def alone(trainer: "Callable[..., L.Trainer]") -> "Callable[..., L.Trainer]":
    """A trainer that uses this process only, for work that the first process does by itself."""
    return trainer if world_size() == 1 else partial(trainer, devices=1, num_nodes=1, strategy="auto")


def _wire() -> Any:
    """Where a tensor must lie to be sent."""
    import torch

    return torch.device("cuda" if _distributed().get_backend() == "nccl" else "cpu")
