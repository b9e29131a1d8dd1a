"""Which stages a run has, and what can be refused before any of them starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradfiltering.errors import UserError
from gradfiltering.requests import TaskGradients
from gradfiltering.scorers.base import Scorer
from gradfiltering.selectors.base import Selector

if TYPE_CHECKING:
    from gradfiltering.data.dataset import InstructionDataset
    from gradfiltering.methods.base import Method
    from gradfiltering.methods.lead.curriculum import LeadSettings

DATA = ("subset", "lead")
BUDGET = ("selector.fraction", "selector.count")
STAGES = ("proxy", "score", "select", "target", "judge", "report")


def choose_method(
    target_data: str, until: str, scorer: Scorer, selector: Selector, lead_settings: "LeadSettings"
) -> "Method":
    """Return the method of a run.

    Args:
        target_data: rows the target is trained on: `subset`, selected before, or `lead`, selected as it trains.
        until: the last stage; a run that ends before the selection only scores rows.
        scorer, selector: of score-and-select; the selector's budget counts for LEAD, too.
        lead_settings: of LEAD.

    Raises:
        UserError: an unknown kind of training data.
    """
    from gradfiltering.methods.lead.lead_method import Lead
    from gradfiltering.methods.score_and_select import ScoreAndSelect

    if target_data not in DATA:
        raise UserError(f"target.data={target_data} is unknown; choose one of: {', '.join(DATA)}")
    if target_data == "lead":
        return Lead(lead_settings, selector)
    return ScoreAndSelect(scorer, selector, selects=until not in STAGES[: STAGES.index("select")])


@dataclass(frozen=True)
class Plan:
    """The stages up to `until`.

    Attributes:
        until: the last stage.
        method: selects rows.
    """

    until: str
    method: "Method"

    def __post_init__(self) -> None:
        if self.until not in STAGES:
            raise UserError(f"until={self.until} is no stage; choose one of: {', '.join(STAGES)}")
        if self.method.selects_while_training and not self.reached("target"):
            raise UserError(
                f"until={self.until} ends before the target is trained, and with target.data=lead it chooses its rows "
                "as it trains; give until=target or a later stage, or target.data=subset"
            )

    def reached(self, stage: str) -> bool:
        """Tell whether the run gets as far as `stage`."""
        return STAGES.index(stage) <= STAGES.index(self.until)

    @property
    def influences(self) -> list[TaskGradients]:
        """Requests of gradients at checkpoints, in the same order in every process."""
        return sorted((request for request in self.method.requests if isinstance(request, TaskGradients)), key=repr)

    def check_dataset(self, dataset: "InstructionDataset") -> None:
        """Refuse requests that these rows cannot serve.

        Raises:
            UserError: says why, and which options of the scorer are to blame.
        """
        from gradfiltering.evidence.measurers import check_requests_of_dataset

        try:
            check_requests_of_dataset(self.method.requests, dataset)
        except UserError as error:
            raise error if error.owner else UserError(str(error), self.method.scorer, ("validation", "task")) from error

    def judged_on_validation(self, prompts: Sequence[Any]) -> list[str]:
        """A warning where the rows that a score was fitted to are asked of the targets too."""
        fitted = any(need.validation is None for need in self.influences)
        if not fitted or all(prompt.prompt_set != "heldout" for prompt in prompts):
            return []
        return [
            "the scorer chose rows that help on the held-out rows, and eval=heldout judges by the same rows, which "
            "favours the candidate; give scorer.validation=FILE or choose another eval"
        ]

    def check_asked(self, overrides: Sequence[str]) -> None:
        """Refuses a way of choosing that was asked for beside a target that chooses its rows itself.

        Args:
            overrides: of the command line.

        Raises:
            UserError: names the override and what to give instead.
        """
        if not self.method.selects_while_training:
            return
        for override in overrides:
            option, _, value = override.lstrip("+~").partition("=")
            place = option.rpartition("@")[2]  # of `scorer@target.lead.difficulty` what comes last
            chooses = place.partition(".")[0] in ("scorer", "selector") and place not in BUDGET
            if chooses or (place == "method" and value not in ("lead", "null")):
                raise UserError(
                    f"{override} has no effect with target.data=lead: the target chooses its rows itself as it trains; "
                    "leave it out (selector.fraction= or selector.count= says how many rows, "
                    "scorer@target.lead.difficulty= by what they are clustered), or give target.data=subset"
                )

    def check(
        self, members: int, ensemble: Any, proxy: Any, target: Any, against: Sequence[str], generation: Any
    ) -> None:
        """Refuses what cannot end well, before anything is loaded or trained.

        Args:
            members: of the ensemble, the fewest that the run can end up with.
            ensemble: its settings.
            proxy: the proxy's backbone.
            target: the target's.
            against: what the candidate is held against.
            generation: how the target answers.

        Raises:
            UserError: names the option and what to give instead.
        """
        from gradfiltering.evidence.measurers import check_requests
        from gradfiltering.finetuning.training_sets import check_baselines

        if self.method.scorer is not None and self.reached("score"):
            try:
                self.method.scorer.check_members(members)
            except UserError as error:
                raise error if error.owner else UserError(str(error), ensemble, ("m",)) from error
        check_requests(self.method.requests, ensemble)
        proxy.check()
        if self.reached("target"):
            check_baselines(against)
            target.check()
        if self.reached("judge"):
            generation.prompt_room(target.context_length)
