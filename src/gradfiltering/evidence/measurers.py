"""Measurers by the type of request they serve, and the measuring of all requests of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.errors import UserError
from gradfiltering.evidence.context import MeasurementContext, WorkReport
from gradfiltering.requests import Evidence, Request

ENTRY_POINT_GROUP = "gradfiltering.measurers"
BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE = "base_model_passes", "proxy", "influence"
STAGES = (BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE)  # in the order of measuring

RequestType = TypeVar("RequestType", bound=Request[Any])


class Measurer(ABC, Generic[RequestType]):
    """Measures requests of one type for all scorable rows.

    A new kind of evidence is a request (a frozen dataclass derived from `gradfiltering.requests.Request`) and a class
    derived from this one. Another package names the class as an entry point of the group `gradfiltering.measurers`.

    Attributes:
        request_type: type of the requests that it serves.
        stage_name: stage of the run in which it measures.
        related_requests: requests that are measured along, because they come from the same work or explain it.
    """

    request_type: ClassVar[type[Request[Any]]]
    stage_name: ClassVar[str] = BASE_MODEL_STAGE
    related_requests: ClassVar[tuple[Request[Any], ...]] = ()

    def check(self, request: RequestType, ensemble_settings: LoraEnsemble) -> None:
        """Refuse a request that cannot be served, before anything is loaded.

        Raises:
            UserError: says why, and what to do instead.
        """

    def check_dataset(self, request: RequestType, dataset: InstructionDataset) -> None:
        """Refuse a request that these rows cannot serve, before any model is loaded.

        Raises:
            UserError: says why, and what to do instead.
        """

    @abstractmethod
    def measure(self, request: RequestType, context: MeasurementContext) -> Any:
        """Measure a request; the result's rows are in the order of `context.examples`.

        Every process of the run calls it alike. Forward passes share rows out over the processes by `RowMeasurements`.
        """


@cache
def load_measurers() -> dict[type[Request[Any]], Measurer[Any]]:
    """Load the measurers of this project and of installed packages, by type of request.

    Raises:
        UserError: two measurers serve the same type.
    """
    from gradfiltering.evidence.base_model_losses import BaseModelLossMeasurer
    from gradfiltering.evidence.embeddings import EmbeddingMeasurer
    from gradfiltering.evidence.error_norms import ErrorNormMeasurer
    from gradfiltering.evidence.gradient_log import GradientLogMeasurer
    from gradfiltering.evidence.projections import ProjectionMeasurer
    from gradfiltering.evidence.response_losses import ResponseLossMeasurer
    from gradfiltering.evidence.row_scores import FileScoreMeasurer
    from gradfiltering.evidence.row_tokens import RowTokenMeasurer
    from gradfiltering.evidence.task_gradients import TaskGradientMeasurer

    measurer_types: list[type[Measurer[Any]]] = [
        RowTokenMeasurer,
        FileScoreMeasurer,
        BaseModelLossMeasurer,
        ErrorNormMeasurer,
        EmbeddingMeasurer,
        ResponseLossMeasurer,
        ProjectionMeasurer,  # before the gradient log, whose norms come from the same pass
        GradientLogMeasurer,
        TaskGradientMeasurer,
    ]
    measurer_types += [entry_point.load() for entry_point in entry_points(group=ENTRY_POINT_GROUP)]
    measurers: dict[type[Request[Any]], Measurer[Any]] = {}
    for measurer_type in measurer_types:
        earlier_measurer = measurers.get(measurer_type.request_type)
        if earlier_measurer is not None:
            raise UserError(
                f"{type(earlier_measurer).__name__} and {measurer_type.__name__} both measure "
                f"{measurer_type.request_type.__name__}; remove one of the packages"
            )
        measurers[measurer_type.request_type] = measurer_type()
    return measurers


def find_measurer(request: Request[Any]) -> Measurer[Any]:
    """Find the measurer of a request.

    Raises:
        UserError: no package has one.
    """
    measurer = load_measurers().get(type(request))
    if measurer is None:
        raise UserError(
            f"nothing measures {type(request).__name__}; a package that requests it must name its measurer as an entry "
            f"point of the group {ENTRY_POINT_GROUP}"
        )
    return measurer


def check_requests(requests: Iterable[Request[Any]], ensemble_settings: LoraEnsemble) -> None:
    """Refuse requests that cannot be served, before anything is loaded.

    Raises:
        UserError: says which, why, and what to do instead.
    """
    for request in sorted(requests, key=repr):
        find_measurer(request).check(request, ensemble_settings)


def check_requests_of_dataset(requests: Iterable[Request[Any]], dataset: InstructionDataset) -> None:
    """Refuse requests that these rows cannot serve, before any model is loaded.

    Raises:
        UserError: says which, why, and what to do instead.
    """
    for request in sorted(requests, key=repr):
        find_measurer(request).check_dataset(request, dataset)


def sort_requests(requests: Iterable[Request[Any]]) -> dict[str, list[Request[Any]]]:
    """Sort requests, and those related to them, by stage and into the order in which they are measured.

    Returns:
        Stage -> its requests; the same order on every rank.
    """
    all_requests = set(requests)
    unseen_requests = list(all_requests)
    while unseen_requests:
        related_requests = set(find_measurer(unseen_requests.pop()).related_requests) - all_requests
        all_requests |= related_requests
        unseen_requests += related_requests
    measuring_order = list(load_measurers())
    ordered_requests = sorted(all_requests, key=lambda request: (measuring_order.index(type(request)), repr(request)))
    stages: dict[str, list[Request[Any]]] = {stage_name: [] for stage_name in STAGES}
    for request in ordered_requests:
        stages.setdefault(find_measurer(request).stage_name, []).append(request)
    return {stage_name: stage_requests for stage_name, stage_requests in stages.items() if stage_requests}


@dataclass(frozen=True)
class StageMeasurements:
    """Results of the requests of one stage.

    Attributes:
        results: request -> result.
        reused: whether all of it was found in the cache, where that is known.
        flops: an estimate of the work done, where there is one.
    """

    results: dict[Request[Any], Any] = field(default_factory=dict)
    reused: bool = False
    flops: int | None = None


RunStage = Callable[..., Any]


def call_without_stage(stage_name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a stage that nobody announces or times."""
    return function(*args)


def start_evidence(context: MeasurementContext) -> Evidence:
    """Return what is known of the rows before anything is measured."""
    examples, sources = context.examples, context.dataset.sources
    return Evidence(
        example_ids=examples.example_ids,
        seed=context.seed,
        response_tokens=examples.response_tokens,
        token_counts=examples.lengths,
        sources=None if sources is None else np.asarray(sources)[examples.example_ids],
    )


def measure_evidence(
    requests: Iterable[Request[Any]],
    context: MeasurementContext,
    evidence: Evidence | None = None,
    run_stage: RunStage = call_without_stage,
) -> Evidence:
    """Measure each request once.

    Args:
        requests: of scorer and selector; requests related to them are measured along.
        context: models, rows and settings.
        evidence: results that exist already are not measured again; None to start anew.
        run_stage: runs a function as a named stage, such as `StageRunner.run`.
    """
    if evidence is None:
        evidence = start_evidence(context)
    for stage_name, stage_requests in sort_requests(requests).items():
        open_requests = [request for request in stage_requests if request not in evidence.results]
        if open_requests:
            measurements: StageMeasurements = run_stage(stage_name, measure_stage, stage_name, open_requests, context)
            evidence = evidence.add_results(measurements.results)
    return evidence


def measure_stage(stage_name: str, requests: Iterable[Request[Any]], context: MeasurementContext) -> StageMeasurements:
    """Measure the requests of one stage, in their order."""
    results = {request: find_measurer(request).measure(request, context) for request in requests}
    reports = {ENSEMBLE_STAGE: context.reports.ensemble, TASK_GRADIENT_STAGE: context.reports.task_gradients}
    report: WorkReport | None = reports.get(stage_name)
    return StageMeasurements(results, report.reused, report.flops) if report else StageMeasurements(results)
