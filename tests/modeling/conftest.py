import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tiny_models import EMBED_DIM, FAMILIES, new_tokenizer
from transformers import PreTrainedTokenizerFast
from unicorn_hf.modeling import UnicornProcessor


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer()


@pytest.fixture
def processor(tokenizer) -> UnicornProcessor:
    return UnicornProcessor(tokenizer, num_image_tokens=2, embed_dim=EMBED_DIM, image_encoder="tiny-clip")
