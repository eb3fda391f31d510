"""A transfer pushed to the Hub and loaded from it, and Hub datasets as sources of vectors."""

import json

import numpy as np
import pytest

from unicorn_hf import InputError, ModalityTransfer


def test_a_transfer_goes_to_the_hub_and_comes_back(hub, text, image, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    transfer = ModalityTransfer.fit(text, image)
    transfer.push_to_hub("org/transfer", private=True)
    files = hub.repo("org/transfer", "model").files()
    assert {"transfer.safetensors", "transfer_config.json", "README.md"} <= set(files)
    loaded = ModalityTransfer.from_pretrained("org/transfer")
    np.testing.assert_array_equal(loaded.apply(text), transfer.apply(text))
    with pytest.raises(InputError, match="neither a folder nor a repository"):
        ModalityTransfer.from_pretrained("org/nothing")


def test_a_dataset_on_the_hub_is_fitted_by_its_name(hub, text, image, make_folder):
    from huggingface_hub import HfApi

    for name, folder in (("texts", make_folder(text)), ("images", make_folder(image, "image_embeds"))):
        HfApi().create_repo(f"org/{name}", repo_type="dataset")
        HfApi().upload_folder(repo_id=f"org/{name}", folder_path=folder, repo_type="dataset")
    printed = hub.run(
        """
import json
from unicorn_hf import ModalityTransfer
transfer = ModalityTransfer.fit("org/texts", "org/images")
print(json.dumps([transfer.config["text_count"], transfer.apply("org/texts")[:]["image_embeds"][7]]))
""",
        with_package=True,
    )
    count, row = json.loads(printed.splitlines()[-1])
    assert count == len(text)
    np.testing.assert_allclose(row, ModalityTransfer.fit(text, image).apply(text)[7], atol=3e-4)
