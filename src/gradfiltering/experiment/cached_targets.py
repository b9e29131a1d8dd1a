"""Fine-tuned targets and their answers in the cache, looked up before a run for its plan."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gradfiltering.data.examples import Examples, Rows
from gradfiltering.evidence.base_model_losses import add_reference_nll, find_reference_nll
from gradfiltering.evidence.base_model_passes import BaseModelWork
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import start_evidence
from gradfiltering.experiment.model_loading import build_encoder
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.finetuning.fine_tune import FineTuningContext, find_tuned_model
from gradfiltering.finetuning.training_sets import TrainingSet
from gradfiltering.judging.answers import find_answers, share_answers_key
from gradfiltering.judging.generation import render_prompts
from gradfiltering.judging.prompts import Prompt
from gradfiltering.runs.run_folder import ADAPTER


def build_tuning_context(
    experiment: Experiment, run: OpenRun, target_work: BaseModelWork, target_rows: Rows
) -> FineTuningContext:
    """Put together everything that the models of a run are trained with, except their rows.

    Args:
        experiment: its parts.
        run: the open run.
        target_work: the target's base model.
        target_rows: as the target reads them; held-out preference rows with the base model's losses of their answers.
    """
    return FineTuningContext(
        base_model=target_work.base_model,
        examples=target_rows.examples,
        heldout=target_rows.heldout,
        settings=experiment.target.tuning,
        objective=experiment.proxy.objective,
        cache=experiment.cache,
        run_folder=run.folder,
        seed=experiment.seed,
        build_trainer=run.build_trainer,
        complete_rows=partial(add_reference_nll, target_work),
    )


def cut_heldout(rows: Rows, heldout_cut: Examples | None) -> Rows:
    """Return rows with those held-out ones that were drawn; None where all of them are measured."""
    if heldout_cut is None or rows.heldout is None:
        return rows
    return replace(rows, heldout=rows.heldout.select(heldout_cut.example_ids.tolist()))


class CachedTargets:
    """Targets in the cache whose base model is the proxy's, which is loaded already.

    Args:
        experiment: its parts.
        run: the open run.
        context: of the proxy, with all rows.
        prompts: of the judge.
    """

    def __init__(self, experiment: Experiment, run: OpenRun, context: MeasurementContext, prompts: Sequence[Prompt]):
        self.experiment = experiment
        self.run = run
        self.context = context
        self.prompts = prompts
        self._tuning_contexts: dict[tuple[int, ...] | None, FineTuningContext | None] = {}

    def select_rows(self, examples: Examples, total_rows: int) -> Sequence[int] | None:
        """Select the candidate's rows; None where rows must be measured before, or are selected while it trains.

        Args:
            examples: rows that can be selected.
            total_rows: all rows of the pool, for budgets.
        """
        method = self.experiment.method
        if method.requests or method.selects_while_training:
            return None
        evidence = start_evidence(replace(self.context, examples=examples))
        scores = None if method.scorer is None else method.scorer.score(evidence)
        selection = method.select_rows(evidence, total_rows, scores)
        return None if selection is None else selection.example_ids

    def find_adapter(self, training_set: TrainingSet, heldout: Examples | None) -> Path | None:
        """Find the adapter that was trained on a set of rows; None where the cache has none.

        Args:
            training_set: rows and updates.
            heldout: the proxy's held-out rows, perhaps drawn from more.
        """
        tuning_context = self._find_tuning_context(heldout)
        if tuning_context is None:
            return None
        examples = tuning_context.examples.select(training_set.example_ids)
        if examples.is_paired and find_reference_nll(self.context, examples) is None:
            return None
        tuned_model = find_tuned_model(training_set, tuning_context)
        return None if tuned_model is None else tuned_model.path / ADAPTER

    def has_answers(self, adapter_folder: Path) -> bool:
        """Return True where the cache has a model's answers to all prompts."""
        return find_answers(self._shared_answers_key, adapter_folder, self.experiment.cache) is not None

    def _find_tuning_context(self, heldout: Examples | None) -> FineTuningContext | None:
        """Return what targets were trained with; None where the base model's losses of held-out pairs are missing."""
        heldout_cut = heldout if heldout is not None and heldout.unscored else None
        rows_key = None if heldout_cut is None else tuple(heldout_cut.example_ids.tolist())
        if rows_key not in self._tuning_contexts:
            self._tuning_contexts[rows_key] = self._build_tuning_context(heldout_cut)
        return self._tuning_contexts[rows_key]

    def _build_tuning_context(self, heldout_cut: Examples | None) -> FineTuningContext | None:
        target_rows = cut_heldout(self._target_rows, heldout_cut)
        heldout = target_rows.heldout
        if heldout is not None and heldout.is_paired:
            if find_reference_nll(self.context, heldout) is None:
                return None
            heldout = add_reference_nll(self.context, heldout)
        return build_tuning_context(self.experiment, self.run, self.context, replace(target_rows, heldout=heldout))

    @cached_property
    def _target_rows(self) -> Rows:
        encoder = build_encoder(self.experiment.target, self.context.base_model, self.experiment, self.context.dataset)
        return encoder.encode_all(self.context.dataset)

    @cached_property
    def _shared_answers_key(self) -> dict[str, Any]:
        context = self.context
        tokenizer = context.base_model.tokenizer
        prompt_texts = render_prompts(self.prompts, context.dataset.template_for(tokenizer), tokenizer)
        settings = self.experiment.judging.generation
        return share_answers_key(context.base_model, context.model_hash, self.prompts, prompt_texts, settings)
