"""The papers behind what a run used, as BibTeX: the one home of references for page, cards and tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PACKAGE = "gradfiltering."


@dataclass(frozen=True)
class Reference:
    """A publication.

    Attributes:
        key: BibTeX key.
        authors: as BibTeX wants them, joined by "and".
        title: without trailing full stop.
        venue: where it appeared.
        year: of publication.
        arxiv: number in the arXiv, or "".
        url: where it is found when it is not in the arXiv, or "".
        booktitle: whether the venue is a conference's proceedings.
    """

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str = ""
    url: str = ""
    booktitle: bool = True

    @property
    def link(self) -> str:
        """Where it can be read, or ""."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    def bibtex(self) -> str:
        """The entry, one field a line."""
        kind = "inproceedings" if self.booktitle else "misc"
        fields = {"title": f"{{{self.title}}}", "author": self.authors}
        fields["booktitle" if self.booktitle else "howpublished"] = self.venue
        fields["year"] = str(self.year)
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        elif self.url:
            fields["url"] = self.url
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@{kind}{{{self.key},\n{lines}\n}}"


REFERENCES = {
    one.key: one
    for one in (
        Reference(
            "yuan2026gradfiltering", "Yuan, Zhihang and Yue, Chengyu and Huang, Long and Ou, Litu and Shi, Lei",
            "Uncertainty-Aware Gradient Signal-to-Noise Data Selection for Instruction Tuning", "arXiv preprint", 2026,
            "2601.13697", booktitle=False,
        ),
        Reference(
            "hu2022lora",
            "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
            "and Wang, Lu and Chen, Weizhu",
            "LoRA: Low-Rank Adaptation of Large Language Models",
            "International Conference on Learning Representations", 2022, "2106.09685",
        ),
        Reference(
            "paul2021diet", "Paul, Mansheej and Ganguli, Surya and Dziugaite, Gintare Karolina",
            "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
            "Advances in Neural Information Processing Systems", 2021, "2107.07075",
        ),
        Reference(
            "mindermann2022rho", "Mindermann, Sören and Brauner, Jan and Razzak, Muhammed and others",
            "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt",
            "International Conference on Machine Learning", 2022, "2206.07137",
        ),
        Reference(
            "li2024superfiltering",
            "Li, Ming and Zhang, Yong and He, Shwai and Li, Zhitao and Zhao, Hongyu and Wang, Jianzong and Cheng, Ning "
            "and Zhou, Tianyi",
            "Superfiltering: Weak-to-Strong Data Filtering for Fast Instruction-Tuning",
            "Annual Meeting of the Association for Computational Linguistics", 2024, "2402.00530",
        ),
        Reference(
            "li2024quantity",
            "Li, Ming and Zhang, Yong and Li, Zhitao and Chen, Jiuhai and Chen, Lichang and Cheng, Ning and Wang, "
            "Jianzong and Zhou, Tianyi and Xiao, Jing",
            "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning",
            "Conference of the North American Chapter of the Association for Computational Linguistics", 2024,
            "2308.12032",
        ),
        Reference(
            "marion2023less",
            "Marion, Max and Üstün, Ahmet and Pozzobon, Luiza and Wang, Alex and Fadaee, Marzieh and Hooker, Sara",
            "When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale", "arXiv preprint", 2023,
            "2309.04564", booktitle=False,
        ),
        Reference(
            "zhao2024long",
            "Zhao, Hao and Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas",
            "Long Is More for Alignment: A Simple but Tough-to-Beat Baseline for Instruction Fine-Tuning",
            "International Conference on Machine Learning", 2024, "2402.04833",
        ),
        Reference(
            "sener2018coreset", "Sener, Ozan and Savarese, Silvio",
            "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
            "International Conference on Learning Representations", 2018, "1708.00489",
        ),
        Reference(
            "chang2026spice",
            "Chang, Powei and Zhang, Jinpeng and Chen, Bowen and Wang, Chenyu and Guo, Chenlu and Zhang, Yixing and "
            "Gao, Yukang and Xiang, JianXiang and Gao, Yue and Sun, Chaoqun and Chen, Yiyi and Kong, Dongying",
            "SPICE: Submodular Penalized Information-Conflict Selection for Efficient Large Language Model Training",
            "International Conference on Learning Representations", 2026, "2601.23155",
        ),
        Reference(
            "xia2024less",
            "Xia, Mengzhou and Malladi, Sadhika and Gururangan, Suchin and Arora, Sanjeev and Chen, Danqi",
            "LESS: Selecting Influential Data for Targeted Instruction Tuning",
            "International Conference on Machine Learning", 2024, "2402.04333",
        ),
        Reference(
            "lin2025lead",
            "Lin, Xiaotian and Qi, Yanlin and Zhu, Yizhang and Palpanas, Themis and Chai, Chengliang and Tang, Nan and "
            "Luo, Yuyu",
            "LEAD: Iterative Data Selection for Efficient LLM Instruction Tuning", "arXiv preprint", 2025, "2505.07437",
            booktitle=False,
        ),
        Reference(
            "broder1997resemblance", "Broder, Andrei Z.", "On the Resemblance and Containment of Documents",
            "Compression and Complexity of Sequences", 1997,
        ),
        Reference(
            "zheng2023judging",
            "Zheng, Lianmin and Chiang, Wei-Lin and Sheng, Ying and Zhuang, Siyuan and others",
            "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena",
            "Advances in Neural Information Processing Systems", 2023, "2306.05685",
        ),
        Reference(
            "gal2016dropout", "Gal, Yarin and Ghahramani, Zoubin",
            "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
            "International Conference on Machine Learning", 2016, "1506.02142",
        ),
        Reference(
            "huang2017snapshot",
            "Huang, Gao and Li, Yixuan and Pleiss, Geoff and Liu, Zhuang and Hopcroft, John E. and Weinberger, "
            "Kilian Q.",
            "Snapshot Ensembles: Train 1, Get M for Free", "International Conference on Learning Representations", 2017,
            "1704.00109",
        ),
    )
}  # fmt: skip

METHOD = ("yuan2026gradfiltering",)
ENSEMBLE = (*METHOD, "hu2022lora")
JUDGED_BY_MODEL = ("zheng2023judging",)
# What a part's class goes back to; a part of our own goes back to nothing.
CITED: dict[str, tuple[str, ...]] = {
    "scorers.gsnr.GSNR": METHOD,
    "scorers.raw_drop.RawDrop": METHOD,
    "scorers.normalized_drop.NormalizedDrop": METHOD,
    "scorers.variance_only.VarianceOnly": METHOD,
    "scorers.inverse_variance.InverseVariance": (),
    "scorers.gsnr_relative.RelativeGSNR": METHOD,
    "scorers.gsnr_rank.RankGSNR": METHOD,
    "scorers.length_controlled.LengthControlled": (),
    "scorers.direction_gsnr.DirectionGSNR": METHOD,
    "scorers.grad_norm.GradNorm": ("paul2021diet",),
    "scorers.el2n.EL2N": ("paul2021diet",),
    "scorers.learnability.Learnability": ("mindermann2022rho",),
    "scorers.ifd.IFD": ("li2024superfiltering", "li2024quantity"),
    "scorers.loss.LossScorer": ("marion2023less",),
    "scorers.perplexity_middle.PerplexityMiddle": ("marion2023less",),
    "scorers.length.LengthScorer": ("zhao2024long",),
    "scorers.less.LESS": ("xia2024less",),
    "scorers.fused_rank.FusedRank": (),
    "scorers.random.RandomScorer": (),
    "selectors.top.TopSelector": (),
    "selectors.random.RandomSelector": (),
    "selectors.full.FullSelector": (),
    "selectors.facility_location.FacilityLocationSelector": ("li2024superfiltering",),
    "selectors.k_center.KCenterSelector": ("sener2018coreset",),
    "selectors.spice.SpiceSelector": ("chang2026spice",),
    "selectors.stratified.StratifiedSelector": (),
    "selectors.two_stage.TwoStageSelector": (),
    "selectors.deduplicated.DeduplicatedSelector": ("broder1997resemblance",),
    "proxy.ensemble.EnsembleSettings": ENSEMBLE,
    "proxy.ensemble_bootstrap.BootstrapEnsemble": ENSEMBLE,
    "proxy.ensemble_dropout.DropoutEnsemble": (*ENSEMBLE, "gal2016dropout"),
    "proxy.ensemble_snapshots.SnapshotEnsemble": (*ENSEMBLE, "huang2017snapshot"),
    "judge.openai_judge.OpenAIJudge": JUDGED_BY_MODEL,
    "judge.local_judge.LocalJudge": JUDGED_BY_MODEL,
    "judge.replay.ReplayJudge": JUDGED_BY_MODEL,
}


def references(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Reference]:
    """The publications behind the parts that a run really used, in the order in which it used them.

    Args:
        config: content of `config.yaml`.
        summary: content of `summary.json`; what it does not mention was configured and not used.
    """
    keys: list[str] = []
    if "proxy" in summary:
        keys += _cited(config.get("ensemble"))
    selection = summary.get("selection", {})
    if config.get("target", {}).get("data") == "lead":
        keys += ["lin2025lead", *_cited(config["target"]["lead"])]
        selection = {"scorer": None}
    elif selection.get("scorer") or not selection:
        keys += _cited(config.get("scorer"))
    if selection:
        keys += _cited(config.get("selector"))
    if "target" in summary:
        keys.append("hu2022lora")
    if "pws" in summary:
        keys += _cited(config.get("judge"))
    return [REFERENCES[key] for key in dict.fromkeys(keys)]


def bibtex(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The references of a run as one BibTeX file."""
    return "\n\n".join(one.bibtex() for one in references(config, summary))


def _cited(part: Any) -> Iterator[str]:
    """Keys of a part and of the parts in it."""
    if isinstance(part, Mapping):
        yield from CITED.get(str(part.get("_target_", "")).removeprefix(PACKAGE), ())
        for value in part.values():
            yield from _cited(value)
    elif isinstance(part, list):
        for value in part:
            yield from _cited(value)
