"""Puts a run's subset, and its adapter where there is one, on the Hugging Face hub, with their cards.

    hf auth login
    python scripts/push_subset.py RUN_DIR --dataset OWNER/NAME [--model OWNER/NAME] [--dry-run] [--public]

Repositories are private unless --public. Until the licence in each card is filled in, nothing is published.
"""

import argparse
import sys
from collections.abc import Sequence
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
COMMIT_MESSAGES = {"dataset": "Subset selected by gradfiltering", "model": "Adapter tuned on the subset"}
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


def plan_uploads(run_dir: Path, dataset: str | None, model: str | None) -> list[Upload]:
    """List the uploads.

    Raises:
        UserError: a file that a repository needs is not there, the hub takes no such name, or nothing was named.
    """
    repositories = {"dataset": (dataset, run_dir), "model": (model, run_dir / "target" / "candidate" / "adapter")}
    uploads = []
    for kind, (name, folder) in repositories.items():
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"--{kind} {name} is no name of a repository: {error}; give OWNER/NAME") from error
        files = sorted({path.name for pattern in PATTERNS[kind] for path in folder.glob(pattern) if path.is_file()})
        needed_file = "subset.jsonl" if kind == "dataset" else "adapter_model.safetensors"
        for file in (needed_file, "README.md"):
            if file not in files:
                raise UserError(f"{folder} has no {file}; give the folder of a finished run")
        uploads.append(Upload(kind, name, folder, files))
    if not uploads:
        raise UserError("nothing to upload; give --dataset OWNER/NAME, --model OWNER/NAME or both")
    return uploads


def lacks_licence(upload: Upload) -> bool:
    """Check whether the card still lacks its licence; the card is read as the hub reads it."""
    card = CARDS[upload.kind].load(upload.folder / "README.md")
    return UNFILLED in str(card.data.to_dict())


def push_uploads(uploads: list[Upload], api: HfApi, public: bool) -> list[str]:
    """Upload in one commit for each repository.

    Returns:
        Addresses of the commits.

    Raises:
        UserError: a card lacks its licence; nothing was uploaded.
    """
    for upload in uploads:
        if lacks_licence(upload):
            raise UserError(
                f"{upload.folder / 'README.md'} still says {UNFILLED}; fill in the licence, then push again"
            )
    addresses = []
    for upload in uploads:
        api.create_repo(upload.name, repo_type=upload.kind, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=upload.name, repo_type=upload.kind, folder_path=upload.folder, allow_patterns=upload.files,
            commit_message=COMMIT_MESSAGES[upload.kind],
        )  # fmt: skip
        addresses.append(str(commit))
    return addresses


def main(command_line: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--dataset", help="OWNER/NAME for the subset")
    parser.add_argument("--model", help="OWNER/NAME for the candidate's adapter")
    parser.add_argument("--public", action="store_true", help="a new repository is public")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and upload nothing")
    arguments = parser.parse_args(command_line)
    with plain_words():
        uploads = plan_uploads(arguments.run_dir, arguments.dataset, arguments.model)
        for upload in uploads:
            print(f"{upload.kind} {upload.name} from {upload.folder}")
            for file in upload.files:
                print(f"  {file}  {(upload.folder / file).stat().st_size}")
            if lacks_licence(upload):
                print("  the licence in README.md is not filled in", file=sys.stderr)
        if not arguments.dry_run:
            print("\n".join(push_uploads(uploads, HfApi(), arguments.public)))


if __name__ == "__main__":
    main()
