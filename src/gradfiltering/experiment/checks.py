"""Refusals and warnings that need no model, so that they come before anything is loaded or trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.preference_schema import Preference
from gradfiltering.distributed.process_group import world_size
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.errors import UserError, attributed_to
from gradfiltering.evidence.measurers import check_requests, check_requests_of_dataset
from gradfiltering.experiment.parts import Experiment
from gradfiltering.finetuning.training_sets import check_baselines
from gradfiltering.judging.prompts import Prompt, is_heldout_set
from gradfiltering.judging.vllm_answers import check_vllm
from gradfiltering.models.language_model import ModelSource, is_emulated
from gradfiltering.models.objectives import reads_pairs
from gradfiltering.requests import TaskGradients

if TYPE_CHECKING:
    import torch


def check_experiment(experiment: Experiment) -> None:
    """Refuse an experiment that could not end well.

    Raises:
        UserError: says why, and what to change.
    """
    method, proxy, target = experiment.method, experiment.proxy, experiment.target
    if method.selects_while_training and not experiment.reaches("target"):
        raise UserError(
            f"the run ends with the stage {experiment.until}, before the target is trained, and its method "
            "selects rows while the target trains; let the run go on to the target, or select beforehand"
        )
    score_requests = method.scorer.requests if method.scorer is not None else frozenset()
    fewest_members = proxy.size.fewest_members(proxy.ensemble, proxy.snapshots, score_requests)
    if method.scorer is not None and experiment.reaches("score"):
        with attributed_to(proxy.ensemble, "m"):
            method.scorer.check_members(fewest_members)
    check_requests(method.requests, proxy.ensemble)
    proxy.ensemble.check_unit(proxy.snapshots.unit)
    if method.scoring_model == "proxy":
        refuse_quantized_proxy(proxy.base_model)
    proxy.base_model.check()
    if experiment.reaches("target"):
        check_baselines(target.baselines)
        target.base_model.check()
        if target.tuning.shard_weights:
            with attributed_to(target.tuning, "shard_weights"):
                refuse_sharded_weights(experiment)
    if experiment.reaches("judge"):
        generation = experiment.judging.generation
        generation.prompt_room(target.base_model.context_length)
        if generation.engine == "vllm":
            with attributed_to(generation, "engine"):
                check_vllm()
                refuse_quantized_answers(target.base_model)
    refuse_tuning_rows(experiment)


def check_dataset(experiment: Experiment, dataset: InstructionDataset) -> None:
    """Refuse rows that the experiment cannot use.

    Raises:
        UserError: says why, and what to change.
    """
    method = experiment.method
    file_options = [name for name in ("validation", "task", "path", "column") if hasattr(method.scorer, name)]
    with attributed_to(method.scorer, *file_options):
        check_requests_of_dataset(method.requests, dataset)
    check_objective(experiment, dataset)
    if experiment.reaches("select"):
        experiment.export.check(dataset.schema)
    method.budget_rows(dataset.counted_rows)  # refuses a budget that the dataset does not have


def check_objective(experiment: Experiment, dataset: InstructionDataset) -> None:
    """Refuse rows that the objective does not learn from.

    Raises:
        UserError: preference rows under an objective of responses, or the other way round.
    """
    objective = experiment.proxy.objective
    is_paired = isinstance(dataset.schema, Preference)
    if reads_pairs(objective) and not is_paired:
        raise UserError(
            f"{type(objective).__name__} learns from a chosen and a rejected answer, and the rows of {dataset.origin} "
            f"are read as {dataset.schema.name}; read them by the schema preference, which the objective dpo brings"
        )
    if is_paired and not reads_pairs(objective):
        raise UserError(
            f"{type(objective).__name__} learns one response, and the rows of {dataset.origin} are preferences; choose "
            "an objective that learns preferences, such as dpo, or read the rows by another schema"
        )
    if is_paired and experiment.method.selects_while_training:
        raise UserError(
            "LEAD clusters and ranks rows by losses of their responses, and these rows are preferences; choose a "
            "method that scores rows by gradients, such as gradfiltering, grand or less"
        )


def refuse_tuning_rows(experiment: Experiment) -> None:
    """Refuse the seeds and rows of a tuning whose settings the run is to report on."""
    folders = experiment.page.tuning
    if folders:
        from gradfiltering.reports.tuning_record import refuse_tuning_runs

        with attributed_to(experiment.page, "tuning"):
            refuse_tuning_runs(folders, experiment.seed, experiment.config["data"])


def refuse_sharded_weights(experiment: Experiment) -> None:
    """Refuse to spread a target's weights over processes where what the run does with them needs them whole.

    Raises:
        UserError: there is one process, the run goes on to answers, or the weights would have 8 bits, or learn pairs.
    """
    if world_size() == 1:
        raise UserError("weights are spread over processes, and there is only one; start several, or keep them whole")
    if experiment.reaches("judge"):
        raise UserError(
            "the first process generates the answers alone, for which it needs all weights; end the run with the stage "
            "target and answer with another program, or keep the weights whole"
        )
    if getattr(experiment.target.base_model, "quantization", None) == "8bit":
        raise UserError(
            "weights in 8 bits change their own constants as they compute, and have not been shown to be the same when "
            "they are spread over processes; take 4bit or weights that are not quantised, or keep them whole"
        )
    if reads_pairs(experiment.proxy.objective):
        raise UserError(
            "losses of pairs are measured against the base model with all weights at hand; learn from responses, or "
            "keep the weights whole"
        )


def refuse_quantized_answers(base_model: ModelSource) -> None:
    """Refuse to let vLLM answer for adapters that were trained on quantised weights, which it loads as they were.

    Raises:
        UserError: the weights would be quantised.
    """
    if getattr(base_model, "quantization", None) is not None:
        raise UserError("vLLM would load the target without its quantisation; let transformers generate the answers")


def refuse_quantized_proxy(base_model: ModelSource) -> None:
    """Refuse a proxy whose weights would be quantised.

    Raises:
        UserError: they would be.
    """
    quantization = getattr(base_model, "quantization", None)
    if quantization is not None:
        raise UserError(
            f"the proxy's weights would be quantised ({quantization}), and per-example gradients of members on such "
            "weights have not been shown to be right; leave its quantization out (only a target can have one), and "
            "take a smaller proxy where memory is short",
            owner=base_model,
            arguments=("quantization",),
        )


def warn_of_judging_on_validation(experiment: Experiment, prompts: Sequence[Prompt]) -> list[str]:
    """Warn where the rows that the scores were fitted to are among the prompts, too."""
    fitted_to_heldout = any(
        isinstance(request, TaskGradients) and request.validation is None for request in experiment.method.requests
    )
    if not fitted_to_heldout or not any(is_heldout_set(prompt.prompt_set) for prompt in prompts):
        return []
    return [
        "the scorer selects rows that help on the held-out rows, and the same rows are among the prompts of the judge, "
        "which favours the candidate; name a file of validation rows, or choose other prompts"
    ]


def warn_of_emulated_precision(experiment: Experiment, device: "torch.device") -> list[str]:
    """Warn where a model is to compute in a type that the device does not multiply, which no plan foresees."""
    models = {"proxy": experiment.proxy.base_model}
    if experiment.reaches("target"):
        models["target"] = experiment.target.base_model
    return [
        f"the {role} computes in bf16, which this device does not multiply natively: it takes some fifty times as long "
        f"as fp32, whatever the plan says; take {role}.base_model.precision=fp32 where the memory suffices"
        for role, base_model in models.items()
        if is_emulated(getattr(base_model, "precision", ""), device)
    ]


def check_training_rows(ensemble: LoraEnsemble, scorable_rows: int) -> None:
    """Refuse to train the ensemble on more rows than there are.

    Raises:
        UserError: there are fewer.
    """
    if ensemble.train_rows is not None and ensemble.train_rows > scorable_rows:
        raise UserError(
            f"the ensemble cannot be trained on {ensemble.train_rows:,} of {scorable_rows:,} rows; give fewer, or "
            "leave the number out to train on all",
            owner=type(ensemble),
            arguments=("train_rows",),
        )
