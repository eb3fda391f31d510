"""Small models of the real architectures, with random weights, saved as their libraries save them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

CAPTIONS = [
    "a red circle",
    "a small blue square to the left of a large green triangle, on a grey background",
    "two dogs",
    "A Cat sleeping on a window sill; the sun is low, and the curtains are half drawn",
    "x",
]
# More tokens than any of the small models takes.
LONG_CAPTION = "a very long caption about nothing in particular " * 12

CONTEXT_LENGTH = 77
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def check_same(folder: Path, expected: Path) -> None:
    """The same files with the same content to the byte, but for the last bit of a vector, and hashes made of it.

    A vector's last bit depends on how many threads share a sum, in which libraries follow the machine's load.
    """
    files, expected_files = (
        {str(path.relative_to(each)): path for path in sorted(each.rglob("*")) if path.is_file()}
        for each in (folder, expected)
    )
    assert files.keys() == expected_files.keys()
    for name, path in files.items():
        if path.suffix == ".arrow":
            _check_same_rows(_table(path), _table(expected_files[name]))
        else:
            content, other = (
                re.sub(rb"[0-9a-f]{16,}", b"", each.read_bytes()) for each in (path, expected_files[name])
            )
            assert content == other, name


def _table(path: Path) -> pa.Table:
    with path.open("rb") as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def _check_same_rows(table: pa.Table, expected: pa.Table) -> None:
    assert table.schema.equals(expected.schema, check_metadata=True)
    for name in table.column_names:
        if name.endswith("_embeds"):
            vectors, others = (np.stack(each[name].to_numpy()).astype(np.float32) for each in (table, expected))
            np.testing.assert_allclose(vectors, others, rtol=2e-3, atol=1e-5)
        else:
            assert table[name].equals(expected[name])


def save_open_clip(
    folder: Path, vision: dict, text: dict | None = None, preprocess: dict | None = None, **model
) -> Path:
    import open_clip

    text = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, **(text or {})}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **model}
    torch.manual_seed(0)
    kwargs = json.loads(json.dumps(config))
    model_class = open_clip.CustomTextCLIP if kwargs.pop("custom_text", False) else open_clip.CLIP
    folder.mkdir(parents=True)
    save_file(model_class(**kwargs).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.3], **(preprocess or {})}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def open_clip_resnet(models) -> Path:
    return save_open_clip(models / "resnet", {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8})


@pytest.fixture(scope="session")
def open_clip_vit(models) -> Path:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    return save_open_clip(models / "vit", vision, custom_text=True)


@pytest.fixture(scope="session")
def open_clip_siglip(models) -> Path:
    """Text attends to all positions and pools the last one, so padding counts."""
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    return save_open_clip(models / "siglip", vision, {"no_causal_mask": True, "pool_type": "last"}, custom_text=True)


@pytest.fixture(scope="session")
def transformers_clip(models) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = clip_tokenizer()
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT_LENGTH}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 32, "patch_size": 8}, projection_dim=24)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save_transformers(models / "clip", CLIPModel(config), tokenizer, processor)


@pytest.fixture(scope="session")
def transformers_siglip(models) -> Path:
    """As the fixed-resolution repositories of SigLIP and SigLIP 2 are."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = gemma_tokenizer()
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = SiglipConfig(text_config=text, vision_config={**TINY, "image_size": 32, "patch_size": 8})
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    return save_transformers(models / "siglip1", SiglipModel(config), tokenizer, processor)


@pytest.fixture(scope="session")
def fixed_resolution_siglip2(transformers_siglip, models) -> Path:
    """The same with Gemma's own tokenizer, which the repositories name, and which leaves case as it is."""
    from tokenizers.normalizers import Replace
    from transformers import GemmaTokenizer

    folder = shutil.copytree(transformers_siglip, models / "fixed_siglip2")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    siglip2 = gemma_tokenizer()
    siglip2._tokenizer.normalizer = Replace(" ", "▁")
    GemmaTokenizer(
        tokenizer_object=siglip2._tokenizer,
        model_max_length=64,
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def transformers_siglip2(models) -> Path:
    """As the repositories of SigLIP 2 NaFlex are: each picture at its own aspect, in up to 16 patches."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    tokenizer = gemma_tokenizer()
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = Siglip2Config(text_config=text, vision_config={**TINY, "num_patches": 16, "patch_size": 8})
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return save_transformers(models / "siglip2", Siglip2Model(config), tokenizer, processor)


@pytest.fixture(scope="session")
def llm2clip(models) -> tuple[Path, Path]:
    """A CLIP with a text adapter, and the language model beside it, laid out as the released repositories are."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

    from unicorn_hf.embedding.llm2clip_towers import ResidualBlock

    clip, llm = models / "llm2clip", models / "llama"
    torch.manual_seed(0)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY, image_size=32, patch_size=8, projection_dim=24))
    vision.save_pretrained(clip)
    width = TINY["hidden_size"]
    adapter = torch.nn.Sequential(
        ResidualBlock(width, 64), ResidualBlock(width, 64), torch.nn.LayerNorm(width), torch.nn.Linear(width, 24)
    )
    weights = {f"text_adapter.adaptor.{key}": tensor for key, tensor in adapter.state_dict().items()}
    save_file({**vision.state_dict(), **weights}, clip / "model.safetensors")

    tokenizer = llama_tokenizer()
    tokenizer.save_pretrained(llm)
    LlamaModel(LlamaConfig(**TINY, vocab_size=len(tokenizer), max_position_embeddings=512)).save_pretrained(llm)
    return clip, llm


@pytest.fixture(scope="session")
def sentence_transformers_clip(models, transformers_clip) -> Path:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models / "sentence_transformers"
    sentence_transformers.SentenceTransformer(str(transformers_clip), device="cpu").save(str(folder))
    return folder


def save_transformers(folder: Path, model, tokenizer, processor) -> Path:
    torch.manual_seed(0)
    model.init_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip_tokenizer():
    """CLIP's tokenizer over single characters."""
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(f"{each}</w>" for each in characters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CONTEXT_LENGTH)


def gemma_tokenizer():
    """SigLIP 2's tokenizer over single characters, with the end of text that its repositories add."""
    from tokenizers import processors
    from transformers import Siglip2Tokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(33, 127))]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=[], model_max_length=64, padding_side="right")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def llama_tokenizer():
    """Llama 3's special tokens over single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    bos = (specials[0], backend.token_to_id(specials[0]))
    backend.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=specials[0], eos_token=specials[4])
