"""Text that a user, a file or a model brings never becomes a mark of a tokenizer or of a prompt, in any step."""

import json
import string

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils
from unicorn_hf.dataset_scripts.released_json import Rejected, read_rows

from unicorn_hf import UnicornProcessor
from unicorn_hf.data.markup import marks_of, without_marks
from unicorn_hf.evaluation.images import prompt_inputs, render_prompt, user_message
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import tokenize_captions, tokenize_conversations

PLAIN = [
    "a < b and c > d, or a <b> c",
    "[1, 2] and x[0] and [A] and [red]",
    '<div class="x"><b>bold</b><br/><h1>Title</h1></div> &lt;image&gt;',
    "if (a<b && b>c) { std::vector<size_t> v; v[i] |= 1 << n; }  # f(x) |> g",
    "<3 😀 — “quoted” 100 % | a | b | \\n\n\n\t  end",
    "List<String> and Map<Integer, Foo> and #include <stdio.h>",
    "https://a.b/c?d=<e>&f=[g] a@b.c ¿? ｜ <- -> <= => <>",
    "the image in the middle of the system, said the user",
]
MARKS = [
    "<image>",
    "[IMG]",
    "<|turn>",
    "<turn|>",
    "<unused0>",
    "<vision_start>",
    "<start_of_turn>",
    "<|im_end|>",
    "</s>",
]
MARKS += [
    f"<|{'a' * 60}|>",
    "<| a b |>",
    "<｜end▁of▁sentence｜>",
    "[/INST]",
    "<extra_id_7>",
    "<image_soft_token>",
    "◁think▷",
]


def byte_level(template, special, plain=(), normalizer=None, **options):
    """One token a byte, special tokens, and added tokens that are not special (`plain`)."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    model = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder, model.normalizer = decoders.ByteLevel(), normalizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token=special[0], additional_special_tokens=special[1:], **options
    )
    tokenizer.add_tokens(list(plain))
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama():
    return train_tokenizer(["What color is it? What shape? red, a circle, blue", *PLAIN] * 20)


def qwen_like():
    special = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    plain = [AddedToken(mark, normalized=False) for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    return byte_level(chat_template_utils.qwen3_chat_template, special, plain, normalizers.NFC())


def gemma_like():
    special = ["<end_of_turn>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<start_of_image>", "<image_soft_token>"]
    plain = [f"<unused{number}>" for number in range(100)] + ["\n\n", "\n\n\n", "▁▁", "<table>", "</table>", "<b>"]
    plain = [AddedToken(mark, normalized=False) for mark in plain]
    return byte_level(chat_template_utils.gemma_chat_template, special, plain)


def mistral_like():
    special = [
        "</s>",
        "<s>",
        "[INST]",
        "[/INST]",
        "[IMG]",
        "[IMG_BREAK]",
        "[TOOL_CALLS]",
        "[control_8]",
        "en_XX",
        "\ue000",
    ]
    template = (
        "<s>{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
        "{% else %}{% generation %}{{ message.content + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    return byte_level(template, special)


def that_folds_case():
    """One that looks for its added tokens in the text in lower case and NFKC."""
    marks = [AddedToken(mark, normalized=True) for mark in ("<tool>", "<box>", "<a b>")]
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return byte_level(template, ["<|im_end|>", "<|im_start|>"], marks, normalizer)


MAKERS = {maker.__name__: maker for maker in (tiny_llama, qwen_like, gemma_like, mistral_like, that_folds_case)}
PROCESSORS = {name: UnicornProcessor(maker(), num_image_tokens=2, embed_dim=2) for name, maker in MAKERS.items()}


def control_ids(tokenizer) -> set[int]:
    """The ids of all added and special tokens but the plain ones of `gemma_like`."""
    plain = ("\n\n", "\n\n\n", "▁▁", "<table>", "</table>", "<b>")
    ids = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content not in plain}
    return (ids | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}  # which stands for a word it does not know


@st.composite
def attacks(draw, name=None):
    """A tokenizer's name, and a text of its marks, whole, in pieces and in one another, and of other characters."""
    name = name or draw(st.sampled_from(sorted(PROCESSORS)))
    tokenizer = PROCESSORS[name].tokenizer
    marks = sorted({*tokenizer.all_special_tokens, *(each.content for each in tokenizer.added_tokens_decoder.values())})
    mark = st.sampled_from([*marks, *(each.upper() for each in marks), "＜tool＞", "<TOOL>"])
    piece = st.tuples(mark, st.integers(0, 20), st.integers(0, 20)).map(lambda cut: cut[0][cut[1] : cut[1] + cut[2]])
    text = ""
    for part in draw(st.lists(st.one_of(mark, piece, st.sampled_from(["a", " ", "red\n", "<", ">", "|"])), max_size=8)):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + part + text[place:]
    return name, text


def told(name: str, *conversations) -> list[list[int]]:
    """The token ids of conversations about one image each in training."""
    data = Dataset.from_dict({"messages": conversations, "image_embeds": [[0.0, 1.0]] * len(conversations)})
    return tokenize_conversations(data, PROCESSORS[name])["input_ids"][:]


def controls(name: str, ids) -> list[int]:
    return [id_ for id_ in ids if id_ in control_ids(PROCESSORS[name].tokenizer)]


@settings(deadline=None)
@given(attacks())
@example(("tiny_llama", "<im<image>age>"))
@example(("tiny_llama", "<|" * 40 + "<|end|>" + "|>" * 40))
@example(("qwen_like", "<thin<|im_end|>k>"))
@example(("mistral_like", "en_en_XXXX \ue000"))
@example(("that_folds_case", "<ToOl> ＜box＞ <bo\u212a<box>> <A B>"))
def test_a_text_has_no_mark_of_its_tokenizer_once_they_are_taken_out(attack):
    name, text = attack
    tokenizer = PROCESSORS[name].tokenizer
    words = without_marks(text, marks_of(tokenizer))
    assert not controls(name, tokenizer(words, add_special_tokens=False)["input_ids"])
    assert without_marks(words, marks_of(tokenizer)) == words


@settings(max_examples=40, deadline=None)
@given(attacks())
def test_a_caption_in_training_has_the_marks_of_its_image_and_its_end_alone(attack):
    name, text = attack
    data = Dataset.from_dict({"caption": [text], "image_embeds": [[0.0, 1.0]]})
    (row,) = tokenize_captions(data, PROCESSORS[name])
    processor = PROCESSORS[name]
    assert controls(name, row["input_ids"]) == [processor.image_token_id] * 2 + [processor.tokenizer.eos_token_id]


@settings(max_examples=25, deadline=None)
@given(attacks())
def test_a_conversation_in_training_has_the_marks_of_its_template_and_its_images_alone(attack):
    name, text = attack
    said = text.replace("<image>", "")
    said = "" if "<image>" in said else said
    messages = [
        {"role": "user", "content": f"<image>\nx{said}"},
        {"role": "assistant", "content": f"x{said}x"},
    ]
    plain = [{"role": "user", "content": "<image>\nx"}, {"role": "assistant", "content": "x"}]
    told_all, told_plain = told(name, messages, plain)
    assert controls(name, told_all) == controls(name, told_plain)


@settings(deadline=None)
@given(attacks(), st.integers(0, 2))
@example(("tiny_llama", "<im<image>age>"), 1)
@example(("tiny_llama", "<im<image>age> <|end|>"), 0)
def test_a_question_at_inference_has_the_marks_of_its_template_and_its_pictures_alone(attack, num_pictures):
    name, text = attack
    processor = PROCESSORS[name]
    marks, vectors = marks_of(processor.tokenizer), [[0.0, 1.0]] * num_pictures

    def asked(question):
        prompt = render_prompt(processor, [user_message(question, num_pictures, marks)])
        return controls(name, prompt_inputs(processor, [prompt], vectors)["input_ids"][0].tolist())

    assert sorted(asked(text)) == sorted(asked("x"))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(name, text):
    assert without_marks(text) == text
    assert without_marks(text, marks_of(PROCESSORS[name].tokenizer)) == text


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(MARKS), st.sampled_from(PLAIN), st.text(max_size=3)), max_size=6))
def test_without_a_tokenizer_the_marks_of_all_families_become_words(parts):
    text = without_marks(" ".join(parts))
    assert not any(mark in text for mark in MARKS)
    assert without_marks(text) == text


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_keeps_its_word_and_one_inside_of_another_makes_none(mark):
    word = "".join(each for each in mark if each not in "<>[]/|｜◁▷")
    assert without_marks(f"a {mark} b") == f"a {word} b"
    for place in range(1, len(mark)):
        nested = mark[:place] + mark + mark[place:]
        assert mark not in without_marks(nested)


def test_deep_nesting_takes_no_longer_than_flat_text():
    for text in (
        "<|" * 200_000 + "|>" * 200_000,
        "<" * 200_000 + "image" + ">" * 200_000,
        "<im" * 200_000,
        "<[" * 200_000,
    ):
        assert "<image>" not in without_marks(text)


def test_a_thought_that_an_answer_begins_with_keeps_its_marks_and_no_other_does():
    answer = "<think>\nI <|im_end|>look.\n</think>\n\nred <think> </tool_call>"
    question = "<think><image>?"
    (ids,) = told("qwen_like", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    text = PROCESSORS["qwen_like"].tokenizer.decode(ids)
    assert "<think>\nI im_endlook.\n</think>\n\nred think tool_call<|im_end|>" in text
    assert "user\nthink<image><image>?<|im_end|>" in text


def test_parts_of_a_content_make_no_placeholder_together():
    content = [{"type": "image"}, {"type": "text", "text": "<im"}, {"type": "text", "text": "age> <image><image>?"}]
    (text,) = {PROCESSORS["qwen_like"].apply_chat_template([{"role": "user", "content": content}]) for _ in "a"}
    assert text.count("<image>") == 1 and "image imageimage?" in text


@settings(deadline=None)
@given(st.lists(st.sampled_from([*MARKS, "<im", "age>", "<|im_", "end|>", "red ", *string.punctuation]), max_size=8))
@example(["<im", "<image>", "age>"])
def test_imported_rows_have_one_placeholder_and_no_mark(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("released")
    said = "".join(parts)
    turns = [{"from": "human", "value": f"<image>\nWhat? {said}"}, {"from": "gpt", "value": f"x {said}"}]
    records = [{"id": "0", "caption": f"x {said}", "conversations": turns}]
    (folder / "Instruction.json").write_text(json.dumps(records))
    with Rejected(folder / "rejected.jsonl", "unicorn-471k-instruction") as rejected:
        ((row,),) = read_rows(folder / "Instruction.json", with_messages=True, rejected=rejected)
    first, *others = [row["messages"][0]["content"].removeprefix("<image>\n"), row["messages"][1]["content"]]
    for text in (first, *others, row["caption"]):
        assert text.startswith(("What?", "x"))
        assert not any(mark in text for mark in MARKS)
    if without_marks(said) != said:
        assert rejected.changes
