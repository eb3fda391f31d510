"""Push any folder that this package writes to the Hub: a dataset, a model or a transfer. A push can be repeated."""

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
    """Upload a dataset, model or transfer folder to the Hub, and create the repository if needed.

    The upload can be repeated: files that have arrived are not sent again, and an earlier version's shards are removed.
    Server errors and lost connections are retried for a while.

    Args:
        folder: written by `publish`, or by `save_pretrained` of a model and its processor, or of a transfer.
        private: whether a new repository is private; None means the namespace's default.
        revision: a branch (created if needed), or `refs/pr/N`.
        create_pr: open a pull request instead of writing to the branch.
        token: None means the saved one, or `HF_TOKEN`.

    Returns:
        the address of the commit or of the pull request.

    Raises:
        InputError: `folder` is none of the three or lacks a file, the card's metadata is not valid, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    from unicorn_hf.dataset_scripts.sources import CONFIGS

    folder = Path(folder)
    kind, repo_type = _check_folder(folder)
    api = HfApi(token=token, library_name="unicorn-hf")
    delete = None
    if repo_type == "dataset":
        # Old shards with other names would be read together with the new ones.
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

    # Never retry a pull request: if only the response was lost, a retry would open a second one.
    info = _with_patience(push, repo_id, attempts=1 if create_pr else PUSH_ATTEMPTS)
    return info.pr_url if create_pr else info.commit_url


def _check_folder(folder: Path) -> tuple[str, str]:
    """The kind of a folder (dataset, model or transfer), and its type of repository.

    Raises:
        InputError: the folder is none of these, or is incomplete.
    """
    from huggingface_hub import DatasetCard, ModelCard

    if (folder / "transfer_config.json").is_file():
        kind, needed = "transfer", ["transfer.safetensors"]
    elif (folder / "config.json").is_file():
        kind, needed = "model", ["processor_config.json", "tokenizer_config.json"]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        needed += sorted({f"{reference.split('.')[0].split('--')[-1]}.py" for reference in _auto_classes(config)})
    elif _shards(folder):
        kind, needed = "dataset", []
    else:
        raise InputError(f"{folder}: holds no dataset, model or transfer; expected a folder written by this package")
    for name in ["README.md", *needed]:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: is a {kind} without {name}; save it again (for a model, with its processor), then push it"
            )
    try:
        (DatasetCard if kind == "dataset" else ModelCard).load(folder / "README.md")
    except Exception as error:  # the YAML parser and the metadata's classes raise many types
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
    """Call `push()`, and retry it after server errors and lost connections; a refusal of the Hub is an `InputError`."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    for attempt in range(1, attempts + 1):
        try:
            return push()
        except Exception as raised:  # the two types above, and the HTTP library's types for lost connections
            # An error during the upload of a file is wrapped in a RuntimeError.
            error = raised.__cause__ if isinstance(raised, RuntimeError) and raised.__cause__ else raised
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
        if isinstance(error, ValueError | LocalTokenNotFoundError) or (status < 500 and status != 429):
            raise InputError(f"{repo_id}: the push was refused ({_reason(error)})") from error
        if attempt == attempts:
            raise InputError(
                f"{repo_id}: the push failed ({_reason(error)}); run it again: files that have arrived are kept"
            ) from error
        wait = min(2**attempt, 30)
        logger.warning("%s: %s; trying again in %d s", repo_id, _reason(error), wait)
        time.sleep(wait)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
