"""Fine-tuning of the target on the subset and on its baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradfiltering.data.examples import Examples, Rows
from gradfiltering.evidence.base_model_losses import add_reference_nll
from gradfiltering.evidence.base_model_passes import TargetWork
from gradfiltering.experiment.cached_targets import build_tuning_context, cut_heldout
from gradfiltering.experiment.model_loading import build_encoder, load_language_model, report_model
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stages.measurement import MeasuredRows
from gradfiltering.experiment.stages.selection import write_selection
from gradfiltering.finetuning.fine_tune import (
    TrainedModel,
    average_losses_by_source,
    average_losses_by_token,
    fine_tune_all,
)
from gradfiltering.finetuning.training_sets import CANDIDATE, build_baseline_sets
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.selectors.base import Selection


@dataclass(frozen=True)
class TunedTarget:
    """The fine-tuned models of a run.

    Attributes:
        base_model: the frozen target and its tokenizer.
        models: the candidate and its baselines, by name.
        heldout: the rows that their held-out losses are of; None where nothing is held out.
    """

    base_model: LanguageModel
    models: Mapping[str, TrainedModel]
    heldout: Examples | None

    @property
    def flops(self) -> int:
        """An estimate of the work done in this run."""
        return sum(model.result.flops for model in self.models.values() if not model.result.reused)

    def describe_results(self, heldout_sources: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Describe each model's training for `summary.json`.

        Args:
            heldout_sources: source of each held-out row; None where rows have none.
        """
        return {
            name: {
                **asdict(model.result),
                "heldout_token_loss": average_losses_by_token(model, self.heldout),
                "heldout_by_source": average_losses_by_source(model, heldout_sources),
            }
            for name, model in self.models.items()
        }


def train_models(
    experiment: Experiment, run: OpenRun, rows: MeasuredRows, selection: Selection | None, proxy: LanguageModel
) -> TunedTarget:
    """Fine-tune the target on the subset and on the rows of its baselines."""
    method = experiment.method
    target = load_target(experiment, run, proxy)
    target_rows = encode_target_rows(experiment, run, rows, target)
    target_work = TargetWork(target, experiment.proxy.batches, experiment.cache, run.device)
    if target_rows.heldout is not None:
        target_rows = replace(target_rows, heldout=add_reference_nll(target_work, target_rows.heldout))
    context = build_tuning_context(experiment, run, target_work, target_rows)
    selection, candidate = method.train_candidate(selection, rows.evidence, rows.total_rows, rows.scores, context)
    if method.selects_while_training:
        write_selection(experiment, run, rows, selection, scores=None)
    baseline_sets = build_baseline_sets(
        experiment.target.baselines,
        selection.example_ids,
        candidate.result.steps,
        rows.examples.example_ids,
        rows.total_rows,
        experiment.seed,
    )
    models = {CANDIDATE: candidate, **fine_tune_all(baseline_sets, context)}
    return TunedTarget(target, models, context.heldout)


def load_target(experiment: Experiment, run: OpenRun, proxy: LanguageModel) -> LanguageModel:
    """Load the target, or take the proxy where it is the same model: adapters leave it as it was."""
    source = experiment.target.base_model
    if source == experiment.proxy.base_model:
        return proxy
    return load_language_model(source, experiment.cache, experiment.seed, run.build_trainer)


def encode_target_rows(experiment: Experiment, run: OpenRun, rows: MeasuredRows, target: LanguageModel) -> Rows:
    """Tokenise the rows as the target reads them, those alone that the run takes."""
    target_rows = build_encoder(experiment.target, target, experiment, rows.dataset).encode_all(rows.dataset)
    if rows.is_cut:
        drawn_ids = rows.examples.example_ids.tolist()
        target_rows = replace(target_rows, examples=target_rows.examples.select(drawn_ids))
    target_rows = cut_heldout(target_rows, rows.heldout)
    measured_with_target = experiment.method.scoring_model == "target"
    if target_rows.examples.truncated and not measured_with_target:
        run.stages.add_warnings([warn_of_cut_target_rows(target_rows.examples)])
    target.check_examples(target_rows.examples)
    if not measured_with_target:
        report_model(run, rows.dataset, "target", target)
    return target_rows


def warn_of_cut_target_rows(examples: Examples) -> str:
    """Warn that the target does not read all of its rows."""
    return (
        f"the target was trained on rows cut to {examples.max_tokens:,} tokens: {examples.truncated:,} of "
        f"{len(examples):,} lost {examples.lost_tokens:,} tokens; allow longer examples, or take another target"
    )
