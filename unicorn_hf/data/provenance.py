"""Where vectors come from, as the card of their dataset says it.

The card's metadata has under `unicorn` one entry for each column of vectors, for instance
`{"image_embeds": {"encoder": "sandbox", "embed_dim": 64, "transfer": "realign"}}`.
"""

import contextlib
from pathlib import Path

from unicorn_hf.data.data_files import find_data_files, is_hub_id, read_card
from unicorn_hf.errors import InputError


def read_provenance(source) -> dict:
    """Where each column of vectors of a dataset folder or Hub dataset comes from; empty where the card does not say.

    Raises:
        InputError: there is a card, and it cannot be read.
    """
    if not isinstance(source, str | Path):
        return {}
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "README.md").is_file():
            with contextlib.suppress(InputError):  # no dataset, or several: nothing is said about it
                folder = find_data_files(folder).root
    elif is_hub_id(source):
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(source, "README.md", repo_type="dataset")).parent
        except OSError:  # no card, or no way to the Hub
            return {}
    said = read_card(folder).get("unicorn") or {}
    if not isinstance(said, dict) or not all(isinstance(value, dict | str) for value in said.values()):
        raise InputError(f"{folder / 'README.md'}: holds {said!r} under unicorn; expected what each column comes from")
    return said
