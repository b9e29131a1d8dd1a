"""The papers behind what a run used, as BibTeX: the one home of references for page, cards and tables."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PACKAGE = "gradfiltering."
# The field of each kind of entry that says where it appeared.
VENUE = {"inproceedings": "booktitle", "misc": "howpublished", "techreport": "institution", "book": "publisher"}


@dataclass(frozen=True)
class Reference:
    """A publication.

    Attributes:
        key: BibTeX key.
        authors: as BibTeX wants them, joined by "and".
        title: without trailing full stop.
        venue: where it appeared, or "".
        year: of publication.
        arxiv: number in the arXiv, or "".
        url: where it is found when it is not in the arXiv, or "".
        kind: of BibTeX entry, one of `VENUE`.
    """

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str = ""
    url: str = ""
    kind: str = "inproceedings"

    @property
    def link(self) -> str:
        """Where it can be read, or ""."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    def bibtex(self) -> str:
        """The entry, one field a line."""
        fields = {"title": f"{{{self.title}}}", "author": self.authors, VENUE[self.kind]: self.venue}
        fields["year"] = str(self.year)
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        elif self.url:
            fields["url"] = self.url
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@{self.kind}{{{self.key},\n{lines}\n}}"


REFERENCES = {
    one.key: one
    for one in (
        Reference(
            "yuan2026gradfiltering", "Yuan, Zhihang and Yue, Chengyu and Huang, Long and Ou, Litu and Shi, Lei",
            "Uncertainty-Aware Gradient Signal-to-Noise Data Selection for Instruction Tuning", "arXiv preprint", 2026,
            "2601.13697", kind="misc",
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
            "mindermann2022rho",
            "Mindermann, Sören and Brauner, Jan and Razzak, Muhammed and Sharma, Mrinank and Kirsch, Andreas and Xu, "
            "Winnie and Höltgen, Benedikt and Gomez, Aidan N. and Morisot, Adrien and Farquhar, Sebastian and Gal, "
            "Yarin",
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
            "2309.04564", kind="misc",
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
            kind="misc",
        ),
        Reference(
            "broder1997resemblance", "Broder, Andrei Z.", "On the Resemblance and Containment of Documents",
            "Compression and Complexity of Sequences", 1997,
        ),
        Reference(
            "zheng2023judging",
            "Zheng, Lianmin and Chiang, Wei-Lin and Sheng, Ying and Zhuang, Siyuan and Wu, Zhanghao and Zhuang, "
            "Yonghao and Lin, Zi and Li, Zhuohan and Li, Dacheng and Xing, Eric P. and Zhang, Hao and Gonzalez, Joseph "
            "E. and Stoica, Ion",
            "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena",
            "Advances in Neural Information Processing Systems, Datasets and Benchmarks Track", 2023, "2306.05685",
        ),
        Reference(
            "efron1993bootstrap", "Efron, Bradley and Tibshirani, Robert J.", "An Introduction to the Bootstrap",
            "Chapman \\& Hall", 1993, kind="book",
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
        Reference(
            "radford2019gpt2",
            "Radford, Alec and Wu, Jeffrey and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya",
            "Language Models are Unsupervised Multitask Learners", "OpenAI", 2019, kind="techreport",
        ),
        Reference(
            "touvron2023llama2", "Touvron, Hugo and others", "Llama 2: Open Foundation and Fine-Tuned Chat Models",
            "arXiv preprint", 2023, "2307.09288", kind="misc",
        ),
        Reference(
            "taori2023alpaca",
            "Taori, Rohan and Gulrajani, Ishaan and Zhang, Tianyi and Dubois, Yann and Li, Xuechen and Guestrin, "
            "Carlos and Liang, Percy and Hashimoto, Tatsunori B.",
            "Stanford Alpaca: An Instruction-following LLaMA Model", "", 2023,
            url="https://github.com/tatsu-lab/stanford_alpaca", kind="misc",
        ),
        Reference(
            "peng2023alpacagpt4",
            "Peng, Baolin and Li, Chunyuan and He, Pengcheng and Galley, Michel and Gao, Jianfeng",
            "Instruction Tuning with GPT-4", "arXiv preprint", 2023, "2304.03277", kind="misc",
        ),
    )
}  # fmt: skip

METHOD = ("yuan2026gradfiltering",)
LORA = "hu2022lora"
ENSEMBLE = (*METHOD, LORA)
JUDGED_BY_MODEL = ("zheng2023judging",)
IFD = "scorers.ifd.IFD"
LOSS_RATIO = ("li2024quantity",)  # of IFD with ratio=loss, which Superfiltering does not use
# What a part's class goes back to; a part of our own goes back to nothing.
CITED: dict[str, tuple[str, ...]] = {
    "scorers.gsnr.GSNR": METHOD,
    "scorers.raw_drop.RawDrop": METHOD,
    "scorers.normalized_drop.NormalizedDrop": METHOD,
    "scorers.variance_only.VarianceOnly": METHOD,
    "scorers.inverse_variance.InverseVariance": (),
    "scorers.gsnr_rank.RankGSNR": METHOD,
    "scorers.length_controlled.LengthControlled": (),
    "scorers.direction_gsnr.DirectionGSNR": METHOD,
    "scorers.grad_norm.GradNorm": ("paul2021diet",),
    "scorers.el2n.EL2N": ("paul2021diet",),
    "scorers.learnability.Learnability": ("mindermann2022rho",),
    IFD: ("li2024superfiltering", "li2024quantity"),
    "scorers.loss.LossScorer": ("marion2023less",),
    "scorers.perplexity_middle.PerplexityMiddle": ("marion2023less",),
    "scorers.length.LengthScorer": ("zhao2024long",),
    "scorers.less.LESS": ("xia2024less",),
    "scorers.rank_fusion.RankFusion": (),
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
    "ensembles.lora_ensemble.LoraEnsemble": ENSEMBLE,
    "ensembles.bootstrap_ensemble.BootstrapEnsemble": ENSEMBLE,
    "ensembles.dropout_ensemble.DropoutEnsemble": (*ENSEMBLE, "gal2016dropout"),
    "ensembles.snapshot_ensemble.SnapshotEnsemble": (*ENSEMBLE, "huang2017snapshot"),
    "judging.openai_judge.OpenAIJudge": JUDGED_BY_MODEL,
    "judging.local_judge.LocalJudge": JUDGED_BY_MODEL,
    "judging.replay.ReplayJudge": JUDGED_BY_MODEL,  # of older runs
    "judging.replay_judge.ReplayJudge": JUDGED_BY_MODEL,
}

# Words in the name or path of a base model, and of a dataset.
MODELS = {"gpt2": "radford2019gpt2", "llama-?2": "touvron2023llama2"}
DATASETS = {"alpaca[-_]gpt4": "peng2023alpacagpt4", "alpaca(?![-_]gpt4)": "taori2023alpaca"}


def references(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Reference]:
    """The publications behind what a run really used: methods as they followed each other, models, data, judging.

    Args:
        config: content of `config.yaml`.
        summary: content of `summary.json`; what it does not mention was configured and not used.
    """
    target, selection = config.get("target") or {}, summary.get("selection", {})
    keys: list[str] = []
    if "proxy" in summary:
        keys += _cited(config.get("ensemble"))
    if "proxy" in summary or "influence" in summary:
        keys.append(LORA)
    if target.get("data") == "lead":  # the target takes the place of proxy, scorer and selector
        keys += ["lin2025lead", *_cited(target.get("lead"))]
        models = [target]
    else:
        if selection.get("scorer") or any(stage["name"] == "score" for stage in summary.get("stages", [])):
            keys += _cited(config.get("scorer"))
        if selection:
            keys += _cited(config.get("selector"))
        models = [config.get("proxy"), target if "target" in summary else None]
    if "target" in summary:
        keys.append(LORA)
    keys += _recognised(MODELS, _texts(models, {"model"}))
    keys += _recognised(DATASETS, _texts(config.get("data"), {"name", "path"}))
    if summary.get("pws"):
        keys += [*_cited(config.get("judge")), "efron1993bootstrap"]
    return [REFERENCES[key] for key in dict.fromkeys(keys)]


def bibtex(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The references of a run as one BibTeX file."""
    return "\n\n".join(one.bibtex() for one in references(config, summary))


def _cited(part: Any) -> Iterator[str]:
    """Keys of a part and of the parts in it."""
    if isinstance(part, Mapping):
        target = str(part.get("_target_", "")).removeprefix(PACKAGE)
        yield from LOSS_RATIO if target == IFD and part.get("ratio") == "loss" else CITED.get(target, ())
    for value in _inside(part):
        yield from _cited(value)


def _recognised(words: Mapping[str, str], texts: Iterator[str]) -> list[str]:
    """Keys of the words that occur in any of the texts."""
    found = "\n".join(texts).lower()
    return [key for word, key in words.items() if re.search(word, found)]


def _texts(part: Any, names: set[str]) -> Iterator[str]:
    """Values of these names in a part and in the parts in it."""
    if isinstance(part, Mapping):
        yield from (value for name, value in part.items() if name in names and isinstance(value, str))
    for value in _inside(part):
        yield from _texts(value, names)


def _inside(part: Any) -> Iterator[Any]:
    if isinstance(part, Mapping):
        yield from part.values()
    elif isinstance(part, list):
        yield from part
