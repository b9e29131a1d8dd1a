"""The process group of a run: one process for each device, started by Lightning, `torchrun` or SLURM.

Every process runs the whole experiment. Domain code meets the others in three places only: in the training step
(`sum_over_ranks`), when rows are measured (`RowMeasurements`, `MeasurementShards`), and in the cache. With one process,
and inside work that rank zero does alone, all of this does nothing.
"""

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gradfiltering.errors import UserError
from gradfiltering.interruption import was_stopped

if TYPE_CHECKING:
    import lightning as L
    import torch
    from numpy.typing import NDArray

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
TrainerBuilder = Callable[..., "L.Trainer"]

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(days=7)  # ranks wait as long for what rank zero does alone, such as judging
ERROR_REPORT_TIMEOUT = timedelta(seconds=30)  # for rank zero to meet the error that another rank met
CHILD_GRACE_SECONDS = 2  # for child processes to leave Lightning's fit, which answers a signal with a stack trace
ERROR_REPORTED = "gradfiltering: rank zero reports the error"

WATCH_SECONDS = 0.5  # between two looks at the other processes
DEATH_GRACE_SECONDS = 5  # for this process to meet the same error, or the broken connection, by itself

_child_processes: list[Any] = []  # that this process started, over all jobs of a sweep
_exit_calls: list[Callable[[], None]] = []  # of this process, before it ends without unwinding
_working_alone = False  # rank zero is doing something that the other ranks wait for


def rank() -> int:
    """Return this process's number over all nodes; 0 for a process that works alone."""
    return int(_torch_distributed().get_rank()) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes over all nodes that take part in the present work."""
    return 1 if _working_alone or not _is_connected() else int(_torch_distributed().get_world_size())


def sum_over_ranks(values: "NDArray[Any]") -> "NDArray[Any]":
    """Sum an array element-wise over all ranks; every rank gets the sum.

    Args:
        values: array of the same shape and type on every rank.
    """
    if world_size() == 1:
        return values
    import torch

    sent_tensor = torch.from_numpy(values.copy()).to(_communication_device())
    _torch_distributed().all_reduce(sent_tensor)
    summed_values: NDArray[Any] = sent_tensor.cpu().numpy()
    return summed_values


def sum_gradients_over_ranks(parameters: "Sequence[torch.nn.Parameter]") -> None:
    """Sum the gradients of parameters over all ranks in one exchange; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    import torch

    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat_gradients = torch.cat([gradient.flatten() for gradient in gradients])
    _torch_distributed().all_reduce(flat_gradients)
    gradient_pieces = torch.split(flat_gradients, [gradient.numel() for gradient in gradients])
    for parameter, gradient_piece in zip(parameters, gradient_pieces, strict=True):
        parameter.grad = gradient_piece.view_as(parameter).clone()


def gather_from_ranks(value: Result) -> list[Result]:
    """Gather one value from each rank, in the order of ranks; every rank gets the list."""
    if world_size() == 1:
        return [value]
    gathered_values: list[Any] = [None] * world_size()
    _torch_distributed().all_gather_object(gathered_values, value)
    return gathered_values


def run_on_rank_zero(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Run a function on rank zero while the others wait; every rank gets its (picklable) result.

    Inside the function rank zero counts as the only process, so that it may use the cache as usual.

    Raises:
        UserError: the function raised one on rank zero; every rank raises it.
    """
    if world_size() == 1:
        return function(*args, **kwargs)
    function_outcome: list[Any] = [None, None]  # result, error
    if rank() == 0:
        try:
            with _counting_as_one_process():
                function_outcome[0] = function(*args, **kwargs)
        except UserError as rank_error:
            function_outcome[1] = rank_error
    _torch_distributed().broadcast_object_list(function_outcome, src=0)
    if function_outcome[1] is not None:
        raise function_outcome[1]
    result: Result = function_outcome[0]
    return result


@contextmanager
def _counting_as_one_process() -> Iterator[None]:
    global _working_alone
    _working_alone = True
    try:
        yield
    finally:
        _working_alone = False


def silence_lightning() -> None:
    """Keep Lightning from printing devices and advice; errors and warnings stay.

    It is imported first, as it sets the level of its loggers then.
    """
    import lightning.fabric
    import lightning.pytorch

    for library in (lightning.pytorch, lightning.fabric):
        logging.getLogger(library.__name__).setLevel(logging.WARNING)


def try_trainer(build_trainer: TrainerBuilder) -> "L.Trainer":
    """Build a trainer without a logger, to see its device and strategy; Lightning prints less from then on.

    Raises:
        UserError: Lightning refuses the options, or there is no such device.
    """
    import lightning

    silence_lightning()
    try:
        return build_trainer(logger=False)
    except (ValueError, TypeError, RuntimeError, ImportError) as trainer_error:  # Lightning's own errors are of these
        first_line = str(trainer_error).strip().partition("\n")[0]
        raise UserError(
            f"no such trainer can be made on this machine: {first_line} Choose other options",
            lightning.Trainer,
            ("accelerator", "devices", "strategy", "precision"),
        ) from trainer_error


def find_device(build_trainer: TrainerBuilder) -> "torch.device":
    """Find the device of the trainers that a builder builds.

    Raises:
        UserError: Lightning refuses the options, or there is no such device.
    """
    return try_trainer(build_trainer).strategy.root_device


def single_process_trainer(build_trainer: TrainerBuilder) -> TrainerBuilder:
    """Return a builder of trainers that use this process only, for training that rank zero does alone."""
    return partial(build_trainer, devices=1, num_nodes=1, strategy="auto") if _is_connected() else build_trainer


def is_rank_zero_at_launch() -> bool:
    """Say whether this is rank zero, by the variables of Lightning, torchrun and SLURM, before ranks are connected."""
    rank_numbers = [int(os.environ.get(variable_name, 0)) for variable_name in ("RANK", "NODE_RANK", "LOCAL_RANK")]
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        rank_numbers.append(int(os.environ.get("SLURM_PROCID", 0)))
    return not any(rank_numbers)


def start_main(main: Callable[[], None]) -> None:
    """Run Hydra's `main`; Hydra writes into a temporary folder on every rank but zero.

    Lightning starts the processes of a sweep once, with the same command line, and they go through its jobs together.
    """
    if not is_rank_zero_at_launch():
        hydra_folder = tempfile.mkdtemp(prefix="gradfiltering-rank-")
        atexit.register(shutil.rmtree, hydra_folder, ignore_errors=True)
        sys.argv += [f"hydra.run.dir={hydra_folder}", f"hydra.sweep.dir={hydra_folder}"]
    main()


@contextmanager
def connected_processes(build_trainer: TrainerBuilder) -> Iterator[None]:
    """Start the other processes where no launcher did, and connect all of them; an error ends them all.

    An error that all ranks meet is reported by rank zero.

    Args:
        build_trainer: builds a `lightning.Trainer`; its devices, nodes and strategy decide.

    Raises:
        UserError: the trainer does not fit the processes that were started.
    """
    _child_processes.extend(_connect(build_trainer))
    child_processes = _child_processes
    work_ended = threading.Event()
    if world_size() > 1:
        threading.Thread(target=_watch_other_ranks, args=(work_ended, os.getppid()), daemon=True).start()
    try:
        yield
    except BaseException as rank_error:
        work_ended.set()
        death_notice = "" if isinstance(rank_error, UserError) or was_stopped() else _describe_dead_child(wait=True)
        if death_notice:
            for child_process in child_processes:
                child_process.kill()
            raise UserError(death_notice) from rank_error
        if isinstance(rank_error, UserError) and world_size() > 1:
            _leave_report_to_rank_zero(rank_error)
        for child_process in child_processes:
            _stop_child(child_process)
        raise
    finally:
        work_ended.set()


@contextmanager
def call_before_hard_exit(function: Callable[[], None]) -> Iterator[None]:
    """Call a function, such as one that mends the terminal, if this process must end at once while the block runs."""
    _exit_calls.append(function)
    try:
        yield
    finally:
        _exit_calls.remove(function)


@contextmanager
def _without_lightning_observer() -> Iterator[None]:
    """Keep Lightning from killing all processes without a word when one dies; `_watch_other_ranks` says which."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    launch_observer = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = lambda child_processes: None
    try:
        yield
    finally:
        subprocess_script._launch_process_observer = launch_observer


def _watch_other_ranks(work_ended: threading.Event, parent_process: int) -> None:
    """End this process when another rank has died: a collective that waits for it may wait for days.

    Rank zero watches the processes it started, the others watch who started them.
    """
    while not work_ended.wait(WATCH_SECONDS):
        if rank() > 0 and os.getppid() != parent_process:
            os._exit(1)
        death_notice = _describe_dead_child()
        if death_notice and not work_ended.wait(DEATH_GRACE_SECONDS) and not was_stopped():
            for mend_terminal in list(_exit_calls):
                mend_terminal()
            print(f"error  {death_notice}", file=sys.stderr, flush=True)
            for child_process in _child_processes:
                child_process.kill()
            os._exit(1)


def _describe_dead_child(wait: bool = False) -> str:
    """Say which of the processes that this one started has died; empty where none has.

    Args:
        wait: give a process whose connection is gone already a moment to end.
    """
    for child_rank, child_process in enumerate(_child_processes, 1):
        if wait:
            with suppress(subprocess.TimeoutExpired):
                child_process.wait(WATCH_SECONDS)
        if child_process.poll():
            return (
                f"the process of rank {child_rank} died (exit status {child_process.returncode}), so the others are "
                "ended, too; what is finished is saved in the cache, and the same command goes on from there"
            )
    return ""


def _leave_report_to_rank_zero(rank_error: UserError) -> None:
    """Let rank zero go on to report an error; end any other rank silently once rank zero has met the error, too.

    Raises:
        UserError: rank zero did not meet the error, so this rank must report it.
    """
    distributed = _torch_distributed()
    message_store = distributed.distributed_c10d._get_default_store()
    if rank() == 0:
        message_store.set(ERROR_REPORTED, "")
        return
    try:
        message_store.wait([ERROR_REPORTED], ERROR_REPORT_TIMEOUT)
    except distributed.DistStoreError:
        raise rank_error from None
    except distributed.DistNetworkError:
        logger.info("rank zero has ended already")
    sys.exit(0)  # any other status would make the launcher end rank zero before it has reported


def _stop_child(child_process: Any) -> None:
    try:
        child_process.wait(CHILD_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child_process.send_signal(signal.SIGTERM)


def _connect(build_trainer: TrainerBuilder) -> list[Any]:
    from lightning.pytorch.strategies import DDPStrategy

    distributed = _torch_distributed()
    if distributed.is_initialized():  # by an earlier job of this sweep
        return []
    device_trainer = try_trainer(build_trainer)
    if device_trainer.strategy.launcher is None:
        process_count = int(os.environ.get("WORLD_SIZE", 1))
        if process_count > 1:
            raise UserError(f"{process_count} processes were started, but this trainer uses one; add trainer=ddp")
        return []
    if not isinstance(device_trainer.strategy, DDPStrategy):
        raise UserError(
            f"trainer.strategy={type(device_trainer.strategy).__name__} is not supported; choose trainer=ddp"
        )
    ddp_strategy: Any = build_trainer(logger=False, strategy=DDPStrategy(timeout=COLLECTIVE_TIMEOUT)).strategy
    try:
        with _without_lightning_observer():
            ddp_strategy.launcher.launch(ddp_strategy.setup_environment)
    except ValueError as launch_error:  # Lightning's words about devices, nodes and processes
        raise UserError(
            f"trainer.devices or trainer.num_nodes does not fit the launch: {launch_error}"
        ) from launch_error
    atexit.register(distributed.destroy_process_group)
    return list(getattr(ddp_strategy.launcher, "procs", []))


def _is_connected() -> bool:
    if "torch.distributed" not in sys.modules:  # asked before anything large is imported, too
        return False
    distributed = _torch_distributed()
    return bool(distributed.is_available() and distributed.is_initialized())


def _torch_distributed() -> Any:
    from torch import distributed

    return distributed


def _communication_device() -> "torch.device":
    """Return the device on which a tensor must lie to be sent."""
    import torch

    return torch.device("cuda" if _torch_distributed().get_backend() == "nccl" else "cpu")
