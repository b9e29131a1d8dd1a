"""Everything that a run is made of: built from its options and checked, with nothing loaded yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gradfiltering.options import OpenShare, PositiveInt, options

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger

    from gradfiltering.data.sources import DatasetSource
    from gradfiltering.data.tokenising import TokenisingSettings
    from gradfiltering.data.training_formats import ExportSettings
    from gradfiltering.diagnostics.limits import DiagnosticLimits
    from gradfiltering.ensembles.batch_settings import BatchSettings
    from gradfiltering.ensembles.heldout_member import HeldoutMember
    from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
    from gradfiltering.ensembles.trained_ensemble import BuildEngine
    from gradfiltering.evidence.adaptive_size import AdaptiveSize, Snapshots
    from gradfiltering.evidence.context import EmbeddingSettings
    from gradfiltering.finetuning.settings import FineTuningSettings
    from gradfiltering.gradients.projection import Projection
    from gradfiltering.judging.base import Judge
    from gradfiltering.judging.generation import GenerationSettings
    from gradfiltering.judging.judge_check import JudgeCheck
    from gradfiltering.judging.prompts import PromptLoader
    from gradfiltering.methods.base import Method
    from gradfiltering.models.language_model import ModelSource
    from gradfiltering.models.objectives import Objective
    from gradfiltering.planning.plan_settings import PlanSettings
    from gradfiltering.reports.page.settings import PageSettings
    from gradfiltering.runs.cache import Cache

Stage = Literal["proxy", "score", "select", "target", "judge", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@options
class ModelParts:
    """A language model that is fine-tuned or scored with.

    Attributes:
        base_model: loads the frozen model.
        max_tokens: longest example; `auto` takes the model's context or the data's 99th percentile, the shorter.
    """

    base_model: "ModelSource"
    max_tokens: PositiveInt | Literal["auto"]


@options
class ProxyParts(ModelParts):
    """The proxy ensemble.

    Attributes:
        objective: one loss per example, the target's as well.
        ensemble: its members and their training.
        size: the search for the number of members, where it is `auto`.
        build_engine: builds the gradient engine.
        snapshots: the pair of snapshots that are compared, or the search for it.
        heldout_member: one more member, for the held-out loss.
        projection: of the gradients.
        embeddings: vectors that say which rows are alike.
        batches: division of work.
    """

    objective: "Objective"
    ensemble: "LoraEnsemble"
    size: "AdaptiveSize"
    build_engine: "BuildEngine"
    snapshots: "Snapshots"
    heldout_member: "HeldoutMember"
    projection: "Projection"
    embeddings: "EmbeddingSettings"
    batches: "BatchSettings"


@options
class TargetParts(ModelParts):
    """The model that is fine-tuned on the subset.

    Attributes:
        tuning: its training.
        baselines: names of the models that the candidate is compared with.
    """

    tuning: "FineTuningSettings"
    baselines: Sequence[str]


@options
class JudgingParts:
    """Prompts, answers and verdicts.

    Attributes:
        prompts: loaders of prompt sets by name.
        generation: of the targets' answers.
        judge: gives the verdicts.
        check: holds the judge against labelled pairs first.
        other_judges: stored judgements of the same answers by name, to measure agreement.
        repeats: times that each pair is judged.
        resamples: of the bootstrap.
        confidence: of the intervals.
    """

    prompts: "Mapping[str, PromptLoader]"
    generation: "GenerationSettings"
    judge: "Judge"
    check: "JudgeCheck"
    other_judges: "Mapping[str, Judge]"
    repeats: PositiveInt
    resamples: PositiveInt
    confidence: OpenShare


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of.

    Attributes:
        until: the last stage.
        seed: of everything random.
        run_folder: where the run writes.
        cache: finished results of this run and others.
        config: the resolved configuration, for the run folder and the loggers.
        overrides: the options that the user gave, NAME=VALUE each.
        choices: option group -> the name that was chosen.
        build_trainer: builds a `lightning.Trainer` from further keyword arguments.
        runs_on_one_cpu: True where no trainer is needed to know that.
        build_loggers: builds the experiment loggers by name.
        source: of the rows.
        tokenising: number of processes that tokenise them.
        proxy: the ensemble that rows are scored with.
        method: selects the subset.
        target: the model that is fine-tuned on it.
        judging: of the fine-tuned models.
        limits: beyond which a diagnostic is a warning.
        page: contents of the report.
        export: layouts that the subset is written in.
        planning: use of the plan.
    """

    until: Stage
    seed: int
    run_folder: Path
    cache: "Cache"
    config: Mapping[str, Any]
    overrides: Sequence[str]
    choices: Mapping[str, str]
    build_trainer: "Callable[..., L.Trainer]"
    runs_on_one_cpu: bool
    build_loggers: "Callable[[], Mapping[str, Logger]]"
    source: "DatasetSource"
    tokenising: "TokenisingSettings"
    proxy: ProxyParts
    method: "Method"
    target: TargetParts
    judging: JudgingParts
    limits: "DiagnosticLimits"
    page: "PageSettings"
    export: "ExportSettings"
    planning: "PlanSettings"

    def reaches(self, stage: Stage) -> bool:
        """Return True if the run gets as far as `stage`."""
        return STAGES.index(stage) <= STAGES.index(self.until)
