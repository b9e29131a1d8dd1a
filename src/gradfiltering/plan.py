"""Which stages a run has, and what can be refused before any of them starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradfiltering.errors import UserError

DATA = ("subset", "lead")
STAGES = ("proxy", "score", "select", "target", "judge", "report")


@dataclass(frozen=True)
class Plan:
    """The stages up to `until`; of what the proxy stage measures, only what somebody needs.

    Attributes:
        until: the last stage.
        scorer: how rows are scored.
        selector: how rows are chosen; only its budget counts where the target chooses.
        data: what the target trains on: `subset`, what the selector chose, or `lead`, what it chooses as it trains.
    """

    until: str
    scorer: Any
    selector: Any
    data: str = "subset"

    def __post_init__(self) -> None:
        if self.until not in STAGES:
            raise UserError(f"until={self.until} is no stage; choose one of: {', '.join(STAGES)}")
        if self.data not in DATA:
            raise UserError(f"target.data={self.data} is unknown; choose one of: {', '.join(DATA)}")
        if self.leads and not self.reached("target"):
            raise UserError(
                f"until={self.until} ends before the target is trained, and with target.data=lead it chooses its rows "
                "as it trains; give until=target or a later stage, or target.data=subset"
            )

    def reached(self, stage: str) -> bool:
        """Whether the run gets as far as `stage`."""
        return STAGES.index(stage) <= STAGES.index(self.until)

    @property
    def leads(self) -> bool:
        """Whether the target chooses its rows as it trains."""
        return self.data == "lead"

    @property
    def scored(self) -> bool:
        """Whether anybody looks at the scores."""
        return self.leads or "scores" in self.selector.needs or not self.reached("select")

    @property
    def needs(self) -> frozenset[Any]:
        """What the scorer and the selector look at, as far as the run gets."""
        scorer = self.scorer.needs if self.scored else frozenset()
        if self.leads:
            return scorer | {"losses"}
        selector = self.selector.needs if self.reached("select") else frozenset()
        return scorer | selector - {"scores"}

    def check(self, members: int, proxy: Any, target: Any, against: Sequence[str]) -> None:
        """Refuses what cannot end well, before anything is loaded or trained.

        Args:
            members: of the ensemble.
            proxy: the proxy's backbone.
            target: the target's.
            against: what the candidate is held against.

        Raises:
            UserError: names the option and what to give instead.
        """
        from gradfiltering.target.stage import check_opponents

        if self.scored and self.reached("score"):
            self.scorer.check(members)
        proxy.check()
        if self.reached("target"):
            check_opponents(against)
            target.check()
