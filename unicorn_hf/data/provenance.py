"""Where vectors come from, according to the card of their dataset.

Under `unicorn` the card's metadata has one entry per column of vectors, for instance
`{"image_embeds": {"encoder": "sandbox", "embed_dim": 64, "transfer": "realign"}}`.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from unicorn_hf.data.data_files import find_data_files, is_hub_id, read_card
from unicorn_hf.errors import InputError


class Origin(NamedTuple):
    """Encoder, transfer and dimension of some vectors; None where the card does not say."""

    encoder: str | None = None
    transfer: str | None = None
    embed_dim: int | None = None

    @classmethod
    def of_column(cls, said: dict, column: str, embed_dim: int | None = None) -> "Origin":
        """The origin of a column, from what `read_provenance` gives."""
        facts = said.get(column) or {}
        return cls(facts.get("encoder"), facts.get("transfer"), embed_dim)

    def difference(self, other: "Origin") -> tuple[str, str] | None:
        """The difference between two origins, in words for `self` and for `other`; None if their vectors fit together.

        Vectors fit together unless both origins name an encoder, a transfer or a dimension, and the names differ.
        Vectors of real images name no transfer, so they fit vectors of any transfer.
        """
        for name, what in (("encoder", "the encoder"), ("transfer", "the transfer")):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours and theirs and ours != theirs:
                return f"{what} {ours!r}", repr(theirs)
        if self.embed_dim and other.embed_dim and self.embed_dim != other.embed_dim:
            return f"{self.embed_dim} dimensions", str(other.embed_dim)
        return None


def read_provenance(source) -> dict:
    """Where each column of vectors of a dataset folder or Hub dataset comes from; empty if the card does not say.

    Raises:
        InputError: the card cannot be read.
    """
    if not isinstance(source, str | Path):
        return {}
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "README.md").is_file():
            with contextlib.suppress(InputError):  # no dataset, or several: there is no card to read
                folder = find_data_files(folder).root
    elif is_hub_id(source):
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(str(source), "README.md", repo_type="dataset")).parent
        except OSError:  # no card, or no way to the Hub
            return {}
    said = read_card(folder).get("unicorn") or {}
    if not isinstance(said, dict) or not all(isinstance(value, dict | str) for value in said.values()):
        raise InputError(f"{folder / 'README.md'}: holds {said!r} under unicorn; expected what each column comes from")
    return said
