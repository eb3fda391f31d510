import copy
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils

from unicorn_hf import InputError, UnicornProcessor
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import set_released_prompt, tokenize_captions, tokenize_conversations

IGNORED = -100
MESSAGES = [
    {"role": "user", "content": "<image>\nWhat color is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "What shape?"},
    {"role": "assistant", "content": "a circle"},
]

# What many models outside TRL's list have: ChatML without marks of the assistant's tokens.
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_DATE = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
)
QWEN_SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
# Family -> chat template, special tokens, and MESSAGES by hand in pieces, the learnt ones as every second.
FAMILIES = {
    "llama3": (
        chat_template_utils.llama3_chat_template,
        LLAMA_TOKENS,
        [
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat color is it?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "red<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\nWhat shape?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "a circle<|eot_id|>",
            "",
        ],
    ),
    "qwen2.5": (
        chat_template_utils.qwen2_5_chat_template,
        CHATML_TOKENS,
        [
            f"{QWEN_SYSTEM}<|im_start|>user\n<image>\nWhat color is it?<|im_end|>\n<|im_start|>assistant\n",
            "red<|im_end|>",
            "\n<|im_start|>user\nWhat shape?<|im_end|>\n<|im_start|>assistant\n",
            "a circle<|im_end|>",
            "\n",
        ],
    ),
    "qwen3": (  # whose empty thought before each answer is the prompt's
        chat_template_utils.qwen3_chat_template,
        [*CHATML_TOKENS, "<think>", "</think>"],
        [
            "<|im_start|>user\n<image>\nWhat color is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "red<|im_end|>",
            "\n<|im_start|>user\nWhat shape?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "a circle<|im_end|>",
            "\n",
        ],
    ),
    "gemma": (
        chat_template_utils.gemma_chat_template,
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        [
            "<bos><start_of_turn>user\n<image>\nWhat color is it?<end_of_turn>\n<start_of_turn>model\n",
            "red<end_of_turn>",
            "\n<start_of_turn>user\nWhat shape?<end_of_turn>\n<start_of_turn>model\n",
            "a circle<end_of_turn>",
            "\n",
        ],
    ),
    "phi3": (  # which closes the whole conversation with a token of its own
        chat_template_utils.phi3_chat_template,
        ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        [
            "<|user|>\n<image>\nWhat color is it?<|end|>\n<|assistant|>\n",
            "red<|end|>",
            "\n<|user|>\nWhat shape?<|end|>\n<|assistant|>\n",
            "a circle<|end|>\n<|endoftext|>",
            "",
        ],
    ),
    "chatml": (
        CHATML,
        CHATML_TOKENS,
        [
            "<|im_start|>user\n<image>\nWhat color is it?<|im_end|>\n<|im_start|>assistant\n",
            "red<|im_end|>",
            "\n<|im_start|>user\nWhat shape?<|im_end|>\n<|im_start|>assistant\n",
            "a circle<|im_end|>",
            "\n",
        ],
    ),
}


def byte_tokenizer(template, specials):
    """One token a byte, and one for each special token."""
    alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=specials[0], eos_token=specials[0], additional_special_tokens=specials[1:]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer(["What color is it? What shape? red, a circle, blue", "red circle\n"])
    return UnicornProcessor(tokenizer, num_image_tokens=3, embed_dim=2)


def conversations(*messages):
    return Dataset.from_dict({"messages": list(messages), "image_embeds": [[0.0, 1.0]] * len(messages)})


def learnt(row):
    return [token for token in row["labels"] if token != IGNORED]


@pytest.mark.parametrize("num_image_tokens", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_hand_made_mask_of_what_the_assistant_writes(family, num_image_tokens):
    template, specials, pieces = FAMILIES[family]
    processor = UnicornProcessor(byte_tokenizer(template, specials), num_image_tokens=num_image_tokens, embed_dim=2)
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    ids, labels = [], []
    for index, piece in enumerate(pieces):
        piece = piece.replace("<image>", "<image>" * num_image_tokens)
        tokens = processor.tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if index % 2 else [IGNORED] * len(tokens)
    assert processor.tokenizer.decode(row["input_ids"]) == processor.tokenizer.decode(ids)
    assert row["input_ids"] == ids
    assert row["labels"] == labels


def test_a_template_unknown_to_trl_is_read_through_its_generation_prompts():
    """Llama 3.2's says the date and a system turn first, and has no marks."""
    tokenizer = byte_tokenizer(chat_template_utils.llama3_2_chat_template, LLAMA_TOKENS)
    processor = UnicornProcessor(tokenizer, embed_dim=2)
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    assert tokenizer.decode(row["input_ids"]).startswith(LLAMA_DATE)
    assert tokenizer.decode(learnt(row)) == "red<|eot_id|>a circle<|eot_id|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_what_to_do(processor):
    other = copy.deepcopy(processor)
    other.tokenizer.chat_template = (
        "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    with pytest.raises(InputError, match=r"generation"):
        tokenize_conversations(conversations(MESSAGES), other)


def test_the_assistants_words_and_end_tokens_are_learnt_and_nothing_else(processor):
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    assert processor.tokenizer.decode(learnt(row)) == " red<|end|> a circle<|end|>"
    assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_an_image_in_an_answer_is_not_learnt(processor):
    shown = [{"role": "user", "content": "What color is it?"}, {"role": "assistant", "content": "red <image>"}]
    (row,) = tokenize_conversations(conversations(shown), processor)
    assert row["input_ids"].count(processor.image_token_id) == 3
    assert processor.image_token_id not in learnt(row)


def test_training_tokens_are_those_the_processor_makes_at_inference(processor):
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    text = processor.apply_chat_template(MESSAGES, tokenize=False)
    inputs = processor(text=[text], image_embeds=[[0.0, 1.0]], add_special_tokens=False)
    assert row["input_ids"] == inputs["input_ids"][0]
    assert row["input_ids"].count(processor.image_token_id) == 3
    assert row["image_embeds"] == [0.0, 1.0]
    assert row["length"] == len(row["input_ids"])


def test_contents_in_parts_are_the_same_as_contents_with_placeholders(processor):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What color is it?"}]
    in_parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in MESSAGES]
    in_parts[0]["content"] = parts
    (row,) = tokenize_conversations(conversations(in_parts), processor)
    (expected,) = tokenize_conversations(conversations(MESSAGES), processor)
    assert row["input_ids"] == expected["input_ids"]


def test_a_caption_is_learnt_with_its_end_token_and_the_image_is_not(processor):
    data = Dataset.from_dict({"id": ["007"], "caption": ["red circle"], "image_embeds": [[0.0, 1.0]]})
    (row,) = tokenize_captions(data, processor)
    assert processor.tokenizer.decode(learnt(row)) == "red circle<|end|>"
    assert row["input_ids"][:3] == [processor.image_token_id] * 3
    assert row["labels"][:3] == [IGNORED] * 3
    assert row["id"] == "007"


# What is too long


def test_texts_of_a_dataset_without_captions_are_its_captions(processor):
    rows = {"caption": ["a red square"], "image_embeds": [[1.0, 2.0]]}
    (expected,) = tokenize_captions(Dataset.from_dict(rows), processor)
    (row,) = tokenize_captions(Dataset.from_dict(rows).rename_column("caption", "text"), processor)
    assert row["labels"] == expected["labels"]


def test_a_long_caption_is_cut_without_an_end_token_or_dropped_and_counted(processor, caplog):
    data = Dataset.from_dict({"caption": ["red circle " * 40, "red"], "image_embeds": [[0.0, 1.0]] * 2})
    cut, whole = tokenize_captions(data, processor, max_length=10)
    assert len(cut["input_ids"]) == 10
    assert processor.tokenizer.eos_token_id not in cut["input_ids"]
    assert whole["input_ids"][-1] == processor.tokenizer.eos_token_id
    assert "1 of 2 samples truncated, 0 left out" in caplog.text
    (kept,) = tokenize_captions(data, processor, max_length=10, overlong="drop")
    assert kept["input_ids"] == whole["input_ids"]
    assert "0 of 2 samples truncated, 1 left out" in caplog.text


def test_a_long_conversation_loses_its_last_turn_or_is_dropped(processor, caplog):
    short = MESSAGES[:2]
    data = conversations(MESSAGES, short)
    whole = tokenize_conversations(data, processor)[0]["input_ids"]
    cut, other = tokenize_conversations(data, processor, max_length=len(whole) - 1)
    assert cut["input_ids"] == other["input_ids"]
    assert processor.tokenizer.decode(learnt(cut)) == " red<|end|>"
    assert "1 of 2 samples truncated, 0 left out" in caplog.text
    rows = tokenize_conversations(data, processor, max_length=len(whole) - 1, overlong="drop")
    assert rows["input_ids"] == [other["input_ids"]]
    assert "0 of 2 samples truncated, 1 left out" in caplog.text


def test_a_cut_ends_behind_an_answer_also_where_turns_do_not_alternate(processor):
    system = {"role": "system", "content": "What?"}
    messages = [system, *MESSAGES[:2], MESSAGES[2], MESSAGES[2], MESSAGES[3]]
    whole = tokenize_conversations(conversations(messages), processor)[0]["input_ids"]
    (cut,) = tokenize_conversations(conversations(messages), processor, max_length=len(whole) - 1)
    (expected,) = tokenize_conversations(conversations(messages[:3]), processor)
    assert cut["input_ids"] == expected["input_ids"]


def test_an_images_placeholders_are_never_cut(processor, caplog):
    """The second image is asked about last: a cut would take its tokens and leave its vector."""
    both = [*MESSAGES[:2], {"role": "user", "content": "<image>\nAnd this?"}, {"role": "assistant", "content": "blue"}]
    two = [[0.0, 1.0], [1.0, 0.0]]
    data = Dataset.from_dict({"messages": [both, MESSAGES], "image_embeds": [two, two[:1]]})
    whole, other = tokenize_conversations(data, processor)["input_ids"][:]
    assert whole.count(processor.image_token_id) == 6
    for max_length in range(len(other), len(whole)):
        rows = tokenize_conversations(data, processor, max_length=max_length)
        assert [row["input_ids"].count(processor.image_token_id) for row in rows] == [3]
    assert "0 of 2 samples truncated, 1 left out" in caplog.text
    caption = Dataset.from_dict({"caption": ["red circle " * 40], "image_embeds": [[0.0, 1.0]]})
    for max_length in range(4, 12):
        (row,) = tokenize_captions(caption, processor, max_length=max_length)
        assert row["input_ids"].count(processor.image_token_id) == 3
    with pytest.raises(InputError, match="max_length 3 leaves no room"):
        tokenize_captions(caption, processor, max_length=3)


def test_a_sample_with_nothing_to_learn_is_left_out_and_counted(processor, caplog):
    rows = tokenize_conversations(conversations(MESSAGES[:1], MESSAGES), processor)
    assert len(rows) == 1
    assert "1 of 2 samples left out: the assistant says nothing in them" in caplog.text


def test_nothing_that_fits_is_an_error_that_names_the_length(processor):
    with pytest.raises(InputError, match="max_length 4"):
        tokenize_conversations(conversations(MESSAGES), processor, max_length=4)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_does_not_fit_is_counted_or_refused_also_in_a_short_stream(streaming, processor, caplog):
    def tokenize(*chats):
        data = conversations(*chats)
        data = data.to_iterable_dataset() if streaming else data
        return list(tokenize_conversations(data, processor, max_length=40, source="chats"))

    long = [{"role": "user", "content": "<image>\n" + "What color? " * 50}, MESSAGES[1]]
    assert len(tokenize(MESSAGES, long, MESSAGES)) == 2
    assert caplog.text.count("max_length 40: 0 of 3 samples truncated, 1 left out") == 1
    with pytest.raises(InputError, match="chats: none of 2 samples fits into max_length 40"):
        tokenize(long, long)


# What is wrong


def test_a_row_whose_images_do_not_match_its_placeholders_is_named(processor):
    text = [{"role": "user", "content": "What shape?"}, {"role": "assistant", "content": "a circle"}]
    data = Dataset.from_dict({"id": ["a", "b"], "messages": [MESSAGES, text], "image_embeds": [[0.0, 1.0]] * 2})
    with pytest.raises(InputError, match=r"sample 'b' needs 0 images .* there are 1 in 'image_embeds'"):
        tokenize_conversations(data, processor)
    with pytest.raises(InputError, match=r"sample 'a' needs 1 images .* no image column"):
        tokenize_conversations(data.remove_columns("image_embeds"), processor)
    with pytest.raises(InputError, match=r"sample 'b' needs 0 images"):
        list(tokenize_conversations(data.to_iterable_dataset(), processor))
    captions = Dataset.from_dict({"caption": ["red", "blue"], "image_embeds": [[0.0, 1.0], None]})
    with pytest.raises(InputError, match=r"sample 'row 1' needs 1 images"):
        tokenize_captions(captions, processor)


def test_a_missing_column_is_named(processor):
    with pytest.raises(InputError, match="has no column 'messages'"):
        tokenize_conversations(Dataset.from_dict({"text": ["a"]}), processor)
    with pytest.raises(InputError, match="has no column 'image_embeds'"):
        tokenize_captions(Dataset.from_dict({"caption": ["a"]}), processor)


def test_pictures_for_a_model_without_a_tower_are_one_sentence_that_says_embed(processor):
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match=r"no image tower.*unicorn-hf embed"):
        tokenize_conversations(Dataset.from_dict({"messages": [MESSAGES], "image": [picture]}), processor)


# Once, and in a stream


def test_tokens_of_a_stream_are_those_of_the_table(processor):
    text = [{"role": "user", "content": "What shape?"}, {"role": "assistant", "content": "a circle"}]
    data = Dataset.from_dict(
        {
            "messages": [MESSAGES, text, MESSAGES[:1], MESSAGES],
            "image_embeds": [[0.0, 1.0], None, [2.0, 2.0], [1.0, 3.0]],
        }
    )
    table = list(tokenize_conversations(data, processor, max_length=30))
    stream = list(tokenize_conversations(data.to_iterable_dataset(), processor, max_length=30))
    assert stream == table
    assert [row["image_embeds"] for row in table] == [[0.0, 1.0], None, [1.0, 3.0]]


def test_a_second_run_finds_the_tokens_of_the_first(processor, tmp_path):
    conversations(MESSAGES).to_parquet(tmp_path / "data.parquet")
    made = [
        tokenize_conversations(
            Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache")),
            UnicornProcessor(copy.deepcopy(processor.tokenizer), num_image_tokens=3, embed_dim=2),
        )
        for _ in range(2)
    ]
    files = [{file["filename"] for file in tokens.cache_files if "cache-" in file["filename"]} for tokens in made]
    assert files[0] == files[1]
    assert len(files[0]) == 1


def test_vectors_are_not_copied_with_the_tokens(processor, tmp_path):
    data = Dataset.from_dict({"caption": ["red"] * 100, "image_embeds": np.ones((100, 4096), np.float32).tolist()}).map(
        lambda row: row, cache_file_name=str(tmp_path / "data.arrow")
    )
    tokens = tokenize_captions(data, processor)
    copied = sum(
        (tmp_path / file["filename"]).stat().st_size
        for file in tokens.cache_files
        if file["filename"] != str(tmp_path / "data.arrow")
    )
    assert copied < 100_000


# A system turn


SILENT = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")


@pytest.mark.parametrize("template", [FAMILIES["gemma"][0], SILENT])
def test_a_system_turn_stands_in_front_of_the_question_where_the_template_has_no_such_role(template):
    tokenizer = byte_tokenizer(template, [*FAMILIES["gemma"][1], *CHATML_TOKENS])
    processor = UnicornProcessor(tokenizer, embed_dim=2)
    system = {"role": "system", "content": "Be brief."}
    first = {"role": "user", "content": f"Be brief.\n\n{MESSAGES[0]['content']}"}
    (row,) = tokenize_conversations(conversations([system, *MESSAGES]), processor)
    (expected,) = tokenize_conversations(conversations([first, *MESSAGES[1:]]), processor)
    assert row["input_ids"] == expected["input_ids"]
    assert row["labels"] == expected["labels"]
    assert "Be brief." in tokenizer.decode(row["input_ids"])


def parts(*content):
    """A conversation whose question has these parts."""
    return [
        {"role": "user", "content": list(content)},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (None, "its messages are None"),
        ([], r"its messages are \[\]"),
        ([{"role": "user", "content": None}], "the content of a message is None"),
        ([{"role": None, "content": "x"}], "one of its messages is"),
        (
            [{"role": "human", "content": "x"}, {"role": "gpt", "content": "red"}],
            "its roles are human, gpt; expected user",
        ),
        (
            parts({"type": "image", "text": None}, {"type": "text", "text": None}),
            "a part of its content is .*a text in it",
        ),
        (parts({"type": "audio", "text": "x"}), "a part of its content is of the type 'audio'"),
        (parts({"type": None, "text": "x"}), "a part of its content is of the type None"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_messages_that_cannot_be_read_are_named_by_row_and_id(wrong, sentence, streaming, processor):
    good = parts({"type": "image", "text": None}, {"type": "text", "text": "What color?"})
    if wrong and isinstance(wrong[0]["content"], str | None):
        good = MESSAGES
    data = Dataset.from_list([{"id": id_, "messages": each} for id_, each in (("a", good), ("b", wrong))])
    data = data.add_column("image_embeds", [[1.0, 2.0]] * 2)
    with pytest.raises(InputError, match=rf"sample 'b' \(row 1\): {sentence}"):
        list(tokenize_conversations(data.to_iterable_dataset() if streaming else data, processor))


def test_messages_that_the_template_does_not_take_are_named_by_row_and_id():
    processor = UnicornProcessor(byte_tokenizer(*FAMILIES["gemma"][:2]), embed_dim=2)
    data = conversations(MESSAGES, [MESSAGES[0], *MESSAGES]).add_column("id", ["a", "b"])
    for rows in (data, data.to_iterable_dataset()):
        with pytest.raises(InputError, match=r"sample 'b' \(row 1\): the tokenizer's chat template does not"):
            list(tokenize_conversations(rows, processor))


def test_the_released_stage_1_learns_the_answer_and_a_line_feed(processor):
    messages = [{"role": "user", "content": "<image>\nWhat color?"}, {"role": "assistant", "content": "red"}]
    (row,) = tokenize_captions(conversations(messages), processor, learn="answer")
    assert processor.tokenizer.decode(learnt(row)) == "red\n"
    assert row["input_ids"] == [processor.image_token_id] * 3 + learnt(row)
    with pytest.raises(InputError, match="needs one question and its answer; one row has user, assistant, user"):
        tokenize_captions(conversations([*messages, messages[0]]), processor, learn="answer")


def test_a_version_of_the_released_prompt_replaces_the_chat_template(processor):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=0))
    tokens = ["<|begin|>", "<|end_of_text|>"]
    other = UnicornProcessor(byte_tokenizer("{{ 'none' }}", tokens), num_image_tokens=1, embed_dim=2)
    set_released_prompt(other, model, "llama")
    (row,) = tokenize_conversations(conversations(MESSAGES), other)
    assert other.tokenizer.decode(learnt(row)).endswith("<|end_of_text|>")
    assert other.chat_template == other.tokenizer.chat_template
    assert model.generation_config.eos_token_id == [other.tokenizer.convert_tokens_to_ids("<|end_of_text|>"), 0]
    with pytest.raises(InputError, match=r"version 'bunny' ends a turn with <\|endoftext\|>, which .* does not have"):
        set_released_prompt(other, model, "bunny")
