"""Puts a run's subset, and its adapter where there is one, on the Hugging Face hub, with their cards.

    hf auth login
    python scripts/push_subset.py RUN_DIR --dataset OWNER/NAME [--model OWNER/NAME] [--dry-run] [--public]

Repositories are private unless --public. Until the licence in each card is filled in, nothing is published.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gradfiltering.errors import UserError, plain_words

PATTERNS = {
    "dataset": ("README.md", "subset.*", "subset_rows.parquet", "dataset_info.json"),
    "model": ("README.md", "adapter_config.json", "adapter_model.safetensors"),
}
CARDS = {"dataset": DatasetCard, "model": ModelCard}
UNFILLED = "FILL-IN"


@dataclass(frozen=True)
class Upload:
    """One repository and the files that go into it.

    Attributes:
        kind: `dataset` or `model`.
        name: `owner/name`.
        folder: where the files lie.
        files: names in the folder, and in the repository.
    """

    kind: str
    name: str
    folder: Path
    files: list[str]


def plan(run_dir: Path, dataset: str | None, model: str | None) -> list[Upload]:
    """What would be uploaded.

    Raises:
        UserError: a file that a repository needs is not there, or a name is none the hub takes.
    """
    wanted = {"dataset": (dataset, run_dir), "model": (model, run_dir / "target" / "candidate" / "adapter")}
    uploads = []
    for kind, (name, folder) in wanted.items():
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"--{kind} {name} is no name of a repository: {error}; give OWNER/NAME") from error
        files = sorted({path.name for one in PATTERNS[kind] for path in folder.glob(one) if path.is_file()})
        needed = "subset.jsonl" if kind == "dataset" else "adapter_model.safetensors"
        for file in (needed, "README.md"):
            if file not in files:
                raise UserError(f"{folder} has no {file}; give the folder of a finished run")
        uploads.append(Upload(kind, name, folder, files))
    if not uploads:
        raise UserError("nothing to upload; give --dataset OWNER/NAME, --model OWNER/NAME or both")
    return uploads


def unfilled(upload: Upload) -> bool:
    """Whether the card still lacks its licence; the card is read as the hub reads it."""
    card = CARDS[upload.kind].load(upload.folder / "README.md")
    return UNFILLED in str(card.data.to_dict())


def push(uploads: list[Upload], api: HfApi, public: bool) -> list[str]:
    """Uploads, one commit a repository.

    Returns:
        Addresses of the commits.

    Raises:
        UserError: a card lacks its licence; nothing was uploaded.
    """
    for one in uploads:
        if unfilled(one):
            raise UserError(f"{one.folder / 'README.md'} still says {UNFILLED}; fill in the licence, then push again")
    addresses = []
    for one in uploads:
        api.create_repo(one.name, repo_type=one.kind, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=one.name, repo_type=one.kind, folder_path=one.folder, allow_patterns=one.files,
            commit_message="Subset chosen by gradfiltering" if one.kind == "dataset" else "Adapter tuned on the subset",
        )  # fmt: skip
        addresses.append(str(done))
    return addresses


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--dataset", help="OWNER/NAME for the subset")
    parser.add_argument("--model", help="OWNER/NAME for the candidate's adapter")
    parser.add_argument("--public", action="store_true", help="a new repository is public")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and upload nothing")
    options = parser.parse_args()
    with plain_words():
        uploads = plan(options.run_dir, options.dataset, options.model)
        for one in uploads:
            print(f"{one.kind} {one.name} from {one.folder}")
            for file in one.files:
                print(f"  {file}  {(one.folder / file).stat().st_size}")
            if unfilled(one):
                print("  the licence in README.md is not filled in", file=sys.stderr)
        if not options.dry_run:
            print("\n".join(push(uploads, HfApi(), options.public)))


if __name__ == "__main__":
    main()
