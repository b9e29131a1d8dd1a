"""The check of a judge before it judges: how far does it agree with known preferences?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge
from gradfiltering.judging.labelled_pairs import LabelledPair, LabelledSet, read_labelled_pairs
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdict_summary import answer_lengths, summarize_bias
from gradfiltering.options import Correlation, OpenShare, PositiveInt, options
from gradfiltering.runs.logs import announce
from gradfiltering.statistics.agreement import measure_agreements

FIRST, SECOND = "first", "second"  # names of the two answers, instead of models'
OUTCOME_OF_PREFERENCE = {"first": "win", "second": "loss", "tie": "tie"}


@dataclass(frozen=True)
class JudgeAgreement:
    """Agreement of a judge with labelled pairs, each judged in both orders.

    Attributes:
        judge: the judge's name.
        source: the labelled pairs: `bundled`, or a file.
        labelled_by: where their labels come from.
        pairs: number of pairs.
        share: share of pairs whose verdict is the label.
        kappa: Cohen's. A pair without readable scores in both orders counts as a verdict that no label equals, so
            that a judge which can be read now and then is not taken for one that is right.
        kappa_low: lower end of its bootstrap interval over pairs.
        kappa_high: upper end.
        contradiction_rate: share of the readable pairs whose two orders name different winners; None without any.
        first_slot_share: share of single orders with a winner in which that was the answer shown first.
        longer_wins_share: share of the decided pairs that the longer answer won.
        unreadable_share: share of the pairs in which at least one of the two orders has no readable scores.
        least_kappa: kappa below which the judge's verdicts are unusable.
        usable: whether kappa reaches it.
    """

    judge: str
    source: str
    labelled_by: str
    pairs: int
    share: float
    kappa: float
    kappa_low: float
    kappa_high: float
    contradiction_rate: float | None
    first_slot_share: float | None
    longer_wins_share: float | None
    unreadable_share: float
    least_kappa: float
    usable: bool

    def warnings(self) -> list[str]:
        """Warn of a judge whose verdicts are unusable, and say what may be the reason."""
        if self.usable:
            return []
        reasons = [f"on {self.unreadable_share:.0%} of the pairs at least one of its two replies holds no two scores"]
        if self.contradiction_rate is not None:
            reasons.append(f"its two orders contradict each other in {self.contradiction_rate:.0%} of the others")
        return [
            f"the verdicts of the judge {self.judge} are unusable: on {self.pairs} pairs with known preferences "
            f"({self.source}) it agrees by kappa = {self.kappa:.2f} [{self.kappa_low:.2f}, {self.kappa_high:.2f}], "
            f"below {self.least_kappa:g}, where 0 is chance ({', '.join(reasons)}); take a larger model that follows "
            "instructions, or another judge"
        ]


@options
class JudgeCheck:
    """Holds a judge against labelled pairs before it judges anything else.

    Attributes:
        labelled_pairs: `bundled`, or a file as `read_labelled_pairs` takes it; None leaves the check out.
        limit: only so many of the pairs, at even distance; None takes all.
        least_kappa: agreement below which verdicts are unusable.
        resamples: bootstrap resamples.
        confidence: of the interval.
    """

    labelled_pairs: str | None
    limit: PositiveInt | None
    least_kappa: Correlation
    resamples: PositiveInt
    confidence: OpenShare

    def measure(self, judge: Judge, seed: int) -> JudgeAgreement:
        """Let the judge compare the pairs in both orders; only where the check is not left out.

        Args:
            judge: the judge. Its replies are stored and taken again as those of a run are.
            seed: of the bootstrap.

        Raises:
            UserError: the file cannot be read, its labels are all alike, or the judge refuses.
        """
        assert self.labelled_pairs is not None
        labelled_set = read_labelled_pairs(self.labelled_pairs)
        all_pairs = labelled_set.pairs
        pair_count = min(self.limit or len(all_pairs), len(all_pairs))
        pairs = [all_pairs[number * len(all_pairs) // pair_count] for number in range(pair_count)]
        if len({pair.preference for pair in pairs}) < 2:
            raise UserError(
                f"{self.labelled_pairs}: all {len(pairs):,} labels are {pairs[0].preference}, which leaves nothing "
                "to agree on beyond chance; give pairs with labels of several kinds",
                owner=self,
                arguments=("labelled_pairs",),
            )
        # No answer has more tokens than bytes.
        longest_answer = max(len(answer.encode()) for pair in pairs for answer in (pair.first, pair.second))
        judge.check_feasible([pair.prompt for pair in pairs], 2, longest_answer)
        announce(
            f"the judge {judge.name} is tried first on {len(pairs):,} pairs with known preferences "
            f"({self.labelled_pairs})"
        )
        agreement = self._compare(judge, pairs, labelled_set, seed)
        announce(
            f"the judge agrees with them by kappa = {agreement.kappa:.2f} [{agreement.kappa_low:.2f}, "
            f"{agreement.kappa_high:.2f}]; {agreement.unreadable_share:.0%} without readable scores"
        )
        for warning_text in agreement.warnings():
            announce(f"warning: {warning_text}")
        return agreement

    def _compare(
        self, judge: Judge, pairs: Sequence[LabelledPair], labelled_set: LabelledSet, seed: int
    ) -> JudgeAgreement:
        responses = {
            FIRST: [_make_response(pair, pair.first) for pair in pairs],
            SECOND: [_make_response(pair, pair.second) for pair in pairs],
        }
        verdicts = judge_pairs(judge, [pair.prompt for pair in pairs], responses, candidate=FIRST, repeats=1)
        labels: dict[Hashable, str] = {pair.prompt.prompt_id: OUTCOME_OF_PREFERENCE[pair.preference] for pair in pairs}
        outcomes: dict[Hashable, str] = {verdict.prompt_id: verdict.verdict for verdict in verdicts}
        (agreement,) = measure_agreements(
            {judge.name: outcomes, "labels": labels}, self.resamples, self.confidence, seed
        )
        bias = summarize_bias(verdicts, answer_lengths(verdicts, responses), 1, self.confidence, seed)
        assert agreement.kappa is not None, "labels of one kind alone are refused"
        assert agreement.kappa_low is not None and agreement.kappa_high is not None
        return JudgeAgreement(
            judge=judge.name,
            source=str(self.labelled_pairs),
            labelled_by=labelled_set.labelled_by,
            pairs=len(pairs),
            share=agreement.share,
            kappa=agreement.kappa,
            kappa_low=agreement.kappa_low,
            kappa_high=agreement.kappa_high,
            contradiction_rate=bias.contradiction_rate,
            first_slot_share=bias.first_slot_share,
            longer_wins_share=bias.longer_wins_share,
            unreadable_share=1 - bias.judged / len(pairs),
            least_kappa=self.least_kappa,
            usable=agreement.kappa >= self.least_kappa,
        )


def _make_response(pair: LabelledPair, answer: str) -> Response:
    return Response(
        prompt_set=pair.prompt.prompt_set,
        prompt_id=pair.prompt.prompt_id,
        prompt=pair.prompt.question,
        response=answer,
        prompt_tokens=0,
        response_tokens=0,
        stop_reason="eos",
        prompt_truncated=False,
    )
