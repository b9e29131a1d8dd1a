"""Answers of the fine-tuned models, and the judge who compares them."""

from collections.abc import Sequence
from dataclasses import asdict

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.distributed.process_group import run_on_rank_zero
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment
from gradfiltering.experiment.stages.target import TunedTarget
from gradfiltering.finetuning.training_sets import CANDIDATE
from gradfiltering.judging.answers import generate_answers
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.reference_metrics import measure_all_responses
from gradfiltering.judging.responses import write_responses
from gradfiltering.judging.verdict_summary import summarize_verdicts, warn_of_unreadable_verdicts
from gradfiltering.judging.verdicts import write_verdicts


def check_judge(experiment: Experiment, run: OpenRun) -> None:
    """Hold the judge against labelled pairs before anything is trained, where it is to be checked."""
    judging = experiment.judging
    if judging.check.labelled_pairs is None:
        return
    agreement = run.stages.run("judge_check", run_on_rank_zero, judging.check.measure, judging.judge, experiment.seed)
    run.stages.add_to_summary(judge_agreement=asdict(agreement))
    run.stages.add_warnings(agreement.warnings())


def judge_models(
    experiment: Experiment,
    run: OpenRun,
    dataset: InstructionDataset,
    target: TunedTarget,
    prompts: Sequence[Prompt],
) -> None:
    """Let all models answer the prompts, and a judge compare the candidate with its baselines."""
    judging = experiment.judging
    run.stages.add_warnings(judging.judge.list_warnings(prompts))
    answers = generate_answers(
        adapter_folders={name: model.adapter_folder for name, model in target.models.items()},
        language_model=target.base_model,
        prompts=prompts,
        template_name=dataset.template_for(target.base_model.tokenizer),
        settings=judging.generation,
        cache=experiment.cache,
        device=run.device,
    )
    for model_name, responses in answers.responses.items():
        run_on_rank_zero(write_responses, run.folder.responses_file(model_name), responses)
    # A judge may cost money: rank 0 asks it, once.
    verdicts = run_on_rank_zero(judge_pairs, judging.judge, prompts, answers.responses, CANDIDATE, judging.repeats)
    run_on_rank_zero(write_verdicts, run.folder.verdicts_file, verdicts)
    verdict_summary = summarize_verdicts(
        verdicts,
        prompts,
        answers.responses,
        judging.other_judges,
        judging.resamples,
        judging.confidence,
        experiment.seed,
    )
    run.stages.add_warnings(warn_of_unreadable_verdicts(verdict_summary["pws"]))
    run.stages.add_to_summary(
        metrics=measure_all_responses(prompts, answers.responses),
        answers={"reused_seconds": answers.reused_seconds},
        **verdict_summary,
    )
