"""Pushes to the Hub that can be repeated, of any folder this package writes: a dataset, a model, a transfer."""

import json
import logging
import time
from pathlib import Path

from unicorn_hf.errors import InputError

logger = logging.getLogger(__name__)

PUSH_ATTEMPTS = 5


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a dataset, model or transfer folder to the Hub; the repository is created where it does not exist.

    The upload can be repeated: what has arrived is not sent again, and shards of an earlier version are removed. A
    server's errors and dropped connections are waited out for a while.

    Args:
        folder: what `publish`, `save_pretrained` of a model and its processor, or of a transfer, have written.
        private: whether a new repository is private; the namespace's default where it is None.
        revision: a branch, created where it does not exist, or `refs/pr/N`.
        create_pr: open a pull request instead of writing to the branch.
        token: the saved one, or `HF_TOKEN`, where it is None.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        InputError: `folder` is none of the three, or lacks a file that others would need; the card's metadata are not
            valid; the Hub refuses.
    """
    from huggingface_hub import HfApi

    from unicorn_hf.dataset_scripts.sources import CONFIGS

    folder = Path(folder)
    kind, repo_type = _check_folder(folder)
    api = HfApi(token=token, library_name="unicorn-hf")
    delete = None
    if repo_type == "dataset":
        # Shards of another number would be read together with ours.
        delete = sorted({f"{path.parent.name}/*" for path in _shards(folder)} | {f"{c}/*" for c in CONFIGS})

    def push():
        repo = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(
            repo_id=repo,
            repo_type=repo_type,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {kind}",
            ignore_patterns=["rejected.jsonl", "summary.json", ".*"],
            delete_patterns=delete,
        )

    # A pull request whose answer was lost would be opened twice, so that is left to the user.
    info = _with_patience(push, repo_id, attempts=1 if create_pr else PUSH_ATTEMPTS)
    return info.pr_url if create_pr else info.commit_url


def _check_folder(folder: Path) -> tuple[str, str]:
    """What kind of thing a folder holds, and its type of repository.

    Raises:
        InputError: it is none of ours, or is not complete.
    """
    from huggingface_hub import DatasetCard, ModelCard

    if (folder / "transfer_config.json").is_file():
        kind, card_class, needed = "transfer", ModelCard, ["transfer.safetensors"]
    elif (folder / "config.json").is_file():
        kind, card_class, needed = "model", ModelCard, ["processor_config.json", "tokenizer_config.json"]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        needed += sorted({f"{reference.split('.')[0].split('--')[-1]}.py" for reference in _auto_classes(config)})
    elif _shards(folder):
        kind, card_class, needed = "dataset", DatasetCard, []
    else:
        raise InputError(
            f"{folder}: holds no dataset, model or transfer; expected a folder that this package has written"
        )
    for name in ["README.md", *needed]:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: is a {kind} without {name}; save it again, the processor included, then push it"
            )
    try:
        card_class.load(folder / "README.md")
    except Exception as error:  # the YAML parser and the metadata's classes raise what they like
        raise InputError(f"{folder / 'README.md'}: its metadata cannot be read ({_reason(error)})") from error
    return kind, "dataset" if kind == "dataset" else "model"


def _shards(folder: Path) -> list[Path]:
    return [*folder.glob("*/*.parquet"), *folder.glob("*/*.arrow")]


def _auto_classes(config: dict) -> list[str]:
    references = []
    for value in config.get("auto_map", {}).values():
        references += [item for item in (value if isinstance(value, list) else [value]) if item]
    return references


def _with_patience(push, repo_id: str, *, attempts: int):
    """`push()`, again after a server's error or a lost connection; what the Hub refuses is an `InputError`."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    for attempt in range(1, attempts + 1):
        try:
            return push()
        except Exception as raised:  # beside these two, what the HTTP library raises where a connection is lost
            # What befalls the upload of a file comes wrapped in a RuntimeError.
            error = raised.__cause__ if isinstance(raised, RuntimeError) and raised.__cause__ else raised
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if isinstance(error, ValueError | LocalTokenNotFoundError) or (status < 500 and status != 429):
            raise InputError(f"{repo_id}: the push was refused ({_reason(error)})") from error
        if attempt == attempts:
            raise InputError(
                f"{repo_id}: the push did not go through ({_reason(error)}); run it again, what has arrived is kept"
            ) from error
        wait = min(2**attempt, 30)
        logger.warning("%s: %s; trying again in %d s", repo_id, _reason(error), wait)
        time.sleep(wait)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
