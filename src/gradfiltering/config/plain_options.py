"""Options that no class of this project is built from: switches of the run, and those of `lightning.Trainer`."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf

from gradfiltering.config.option_names import as_typed
from gradfiltering.errors import UserError
from gradfiltering.experiment.parts import Stage
from gradfiltering.options import NonNegativeInt, OptionsError, PositiveInt, model_validator, options

Built = TypeVar("Built")
# Of a trainer, without a say in where it computes.
OPTIONS_OF_NO_DEVICE = (
    "enable_checkpointing", "enable_model_summary", "use_distributed_sampler", "num_sanity_val_steps",
    "log_every_n_steps",
)  # fmt: skip
LAUNCHER_VARIABLES = (
    "WORLD_SIZE", "LOCAL_RANK", "RANK", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE", "KUBERNETES_PORT", "JSM_NAMESPACE_SIZE",
)  # fmt: skip


@options
class RunSwitches:
    """Options at the top of the configuration.

    Attributes:
        seed: of everything random.
        until: the last stage.
        run_dir: where the run writes.
        debug: True for errors with their stack trace on the screen.
        log_level: lowest level of the run's log.
        progress: True for progress bars.
    """

    seed: NonNegativeInt
    until: Stage
    run_dir: str
    debug: bool
    log_level: Literal["debug", "info", "warning", "error"]
    progress: bool

    @model_validator(mode="after")
    def _check_run_dir(self) -> "RunSwitches":
        if not self.run_dir.strip():
            raise UserError("a run needs a folder, and its name is empty; give one", None, ("run_dir",))
        return self


@options
class TrainerOptions:
    """Options of `lightning.Trainer` that change no result in silence; every other one is refused.

    Lightning itself checks names and combinations when a trainer is made of them.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Annotated[int, Ge(-1)] | str | Sequence[NonNegativeInt] = "auto"
    num_nodes: PositiveInt = 1
    precision: Literal[16, 32, 64] | str | None = None
    num_sanity_val_steps: Annotated[int, Ge(-1)] | None = None
    log_every_n_steps: NonNegativeInt | None = None
    enable_checkpointing: bool | None = None
    enable_model_summary: bool | None = None
    use_distributed_sampler: bool = True
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    detect_anomaly: bool = False
    profiler: str | None = None

    @model_validator(mode="after")
    def _check_devices(self) -> "TrainerOptions":
        if self.devices in (0, (), []):
            raise UserError("a trainer needs a device; give a positive number, -1 for all, or auto", None, ("devices",))
        return self


def build_from_options(
    part_class: type[Built], option_names: Mapping[str, str], cfg: DictConfig, **parts: Any
) -> Built:
    """Build an options class of which some arguments are options by themselves.

    Args:
        part_class: the class.
        option_names: argument -> the option that it is.
        cfg: the whole configuration.
        **parts: further arguments.

    Raises:
        UserError: a value is refused; names the option.
    """
    option_values = {argument: plain_value(cfg, option_name) for argument, option_name in option_names.items()}
    try:
        return part_class(**option_values, **parts)
    except OptionsError as refused:
        argument = refused.arguments[0] if refused.arguments else ""
        option_name = option_names.get(argument, argument)
        allowed_values = refused.allowed or str(refused)
        raise UserError(f"{option_name}={as_typed(option_values.get(argument))}: give {allowed_values}") from refused


def check_trainer_options(cfg: DictConfig) -> None:
    """Refuse options of `lightning.Trainer` that are out of range or would change the training in silence.

    Raises:
        UserError: names the option.
    """
    trainer_options = {name: name for name in map(str, cfg.trainer) if not name.startswith("_")}
    unknown_names = sorted(trainer_options.keys() - TrainerOptions.__dataclass_fields__.keys())
    if unknown_names:
        known_names = ", ".join(sorted(TrainerOptions.__dataclass_fields__))
        raise UserError(
            f"trainer.{unknown_names[0]} is no option: it would change the training behind the methods' back, or is "
            f"set by them; options of trainer: {known_names}"
        )
    build_from_options(TrainerOptions, {name: f"trainer.{name}" for name in trainer_options}, cfg)


def runs_on_one_cpu(cfg: DictConfig) -> bool:
    """Return True where it is plain, without Lightning, that the run is one process on the CPU.

    Lightning takes seconds to import, and stages that need no model begin without it. Where a launcher, an accelerator
    or an option makes it less plain, Lightning decides.
    """
    accelerator = cfg.trainer.get("accelerator")
    is_plain = (
        set(cfg.trainer) <= {"_target_", "_partial_", "accelerator", "devices", "precision", *OPTIONS_OF_NO_DEVICE}
        and accelerator in ("auto", "cpu")
        and (cfg.trainer.get("devices"), cfg.trainer.get("precision")) == (1, "32-true")
        and not any(map(os.environ.get, LAUNCHER_VARIABLES))
    )
    if not is_plain or accelerator == "cpu":
        return is_plain
    import torch

    return not torch.accelerator.is_available()


def refuse_non_finite(option_value: Any, option_name: str = "") -> None:
    """Refuse not-a-number and infinities wherever they stand, options of other packages and added ones included.

    Args:
        option_value: a plain value, list or mapping.
        option_name: its option; empty for the whole configuration.

    Raises:
        UserError: names the option.
    """
    if isinstance(option_value, float) and not math.isfinite(option_value):
        raise UserError(f"{option_name}={option_value}: give a finite number")
    if isinstance(option_value, Mapping):
        for entry_name, entry_value in option_value.items():
            refuse_non_finite(entry_value, f"{option_name}.{entry_name}".lstrip("."))
    if isinstance(option_value, list):
        for item_index, item_value in enumerate(option_value):
            refuse_non_finite(item_value, f"{option_name}[{item_index}]")


def plain_value(cfg: DictConfig, option_name: str) -> Any:
    """Return the value of an option, a mapping or list as a plain one."""
    option_value = OmegaConf.select(cfg, option_name)
    return OmegaConf.to_container(option_value, resolve=True) if OmegaConf.is_config(option_value) else option_value
