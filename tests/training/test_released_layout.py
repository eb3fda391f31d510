"""The released layout from its own YAML, at a tiny size: 576 copies, vectors as they are, the released prompt."""

from pathlib import Path

import pytest
import torch
import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from unicorn_hf.data.sources import read_dataset
from unicorn_hf.evaluation.images import answer, load_model
from unicorn_hf.training import tokenize_conversations

RELEASED = Path(__file__).parents[2] / "recipes" / "released"
CONFIGURATION = "unicorn-471k-instruction"
CARD = f"---\nconfigs:\n- config_name: {CONFIGURATION}\n  data_files: rows.parquet\n---\n"


@pytest.fixture(scope="module")
def sources(tiny, tmp_path_factory):
    """The tiny language model with Llama's end token, and one question and its answer a row."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = AutoTokenizer.from_pretrained(tiny.language_model)
    tokenizer.add_tokens("<|end_of_text|>", special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(tiny.language_model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for each in (tokenizer, model):
        each.save_pretrained(folder / "language_model")
    rows = read_dataset(tiny.conversations)
    rows = rows.map(lambda row: {"messages": row["messages"][:2]})
    (folder / "data").mkdir()
    rows.to_parquet(folder / "data" / "rows.parquet")
    (folder / "data" / "README.md").write_text(CARD)
    return folder


def test_the_released_settings_train_what_they_save_in_both_stages(sources, recipe, tmp_path):
    shared = {"dataset": sources / "data", "dataset_config": CONFIGURATION, "dtype": "float32", "max_steps": 2}
    shared |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    pretrain = {"model_name_or_path": sources / "language_model", "learn": "answer", **shared}
    first = recipe("pretrain", tmp_path / "1", arguments={"config": RELEASED / "pretrain.yaml", **pretrain})
    assert first.status == [0], first.log[-3000:]
    finetune = {"model_name_or_path": tmp_path / "1", "lora_r": 4, **shared}
    second = recipe("finetune", tmp_path / "2", arguments={"config": RELEASED / "finetune-lora.yaml", **finetune})
    assert second.status == [0], second.log[-3000:]

    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "1").config
    layout = (config.num_image_tokens, config.projector_expand, config.normalize_image_embeds)
    assert layout == (576, "copy", False)
    chat = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "a cat"}]
    texts = [
        AutoProcessor.from_pretrained(tmp_path / stage).apply_chat_template(chat, tokenize=False) for stage in "12"
    ]
    assert texts[0] == texts[1]
    assert texts[0].endswith("questions. USER: <image>\nWhat is it? ASSISTANT: a cat<|end_of_text|>")

    model, processor = load_model(str(tmp_path / "2"), device="cpu")
    assert processor.tokenizer.eos_token_id in model.generation_config.eos_token_id
    rows = read_dataset(sources / "data", name=CONFIGURATION).select(range(2))
    tokens = tokenize_conversations(rows, processor)[0]["input_ids"]
    assert tokens.count(processor.image_token_id) == 576
    vectors = torch.tensor(rows[:1]["image_embeds"])
    assert isinstance(answer(model, processor, "What is it?", vectors, max_new_tokens=4), str)
