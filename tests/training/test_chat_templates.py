"""What is trained is what is asked for at inference, over every chat template that TRL ships."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from datasets import Dataset
from transformers import AutoProcessor

from tests.training.test_tokenization import FAMILIES, byte_tokenizer
from unicorn_hf import InputError, UnicornProcessor
from unicorn_hf.training import stop_at_the_end_of_a_turn, tokenize_conversations
from unicorn_hf.training.chat_templates import WITHOUT_THINKING

TEMPLATES = {
    path.stem: path
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not path.stem.endswith("_training")
}
MESSAGES = [
    {"role": "user", "content": "<image>\nWhat color is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "What shape?"},
    {"role": "assistant", "content": "a circle"},
]
# They ask for a thought that no training text has, or write no plain text.
REFUSED = {"deepseek_r1_distill", "deepseekv3", "idefics3", "llava_next", "smolvlm"}


def processor_over(name: str) -> UnicornProcessor:
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    return UnicornProcessor(byte_tokenizer(TEMPLATES[name].read_text(), marks), embed_dim=2)


def tokenize(processor, messages=MESSAGES):
    images = {"image_embeds": [[0.0, 1.0]]} if "<image>" in messages[0]["content"] else {}
    return tokenize_conversations(Dataset.from_dict({"messages": [messages], **images}), processor)[0]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in REFUSED])
def test_the_prompt_at_inference_and_its_reply_begin_the_training_tokens_in_every_turn(name, tmp_path):
    processor = processor_over(name)
    row = tokenize(processor)
    processor.save_pretrained(tmp_path)
    saved = UnicornProcessor.from_pretrained(tmp_path)
    for index in (1, 3):
        text = saved.apply_chat_template(MESSAGES[:index], add_generation_prompt=True)
        inputs = saved(text=[text], image_embeds=[[0.0, 1.0]], add_special_tokens=False)
        prompt = inputs["input_ids"][0]
        assert row["input_ids"][: len(prompt)] == prompt
        labels = row["labels"][len(prompt) :]
        learnt = labels[: labels.index(-100)] if -100 in labels else labels
        said = saved.tokenizer.decode(learnt)
        assert MESSAGES[index]["content"] in said and "think" not in said


@pytest.mark.parametrize("name", sorted(REFUSED & set(TEMPLATES)))
def test_a_template_that_asks_for_what_is_not_trained_is_refused(name):
    with pytest.raises(InputError, match="chat template"):
        tokenize(processor_over(name))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in REFUSED])
def test_the_choice_stays_when_a_model_is_trained_again(name):
    processor = processor_over(name)
    first, template = tokenize(processor), processor.chat_template
    assert tokenize(processor) == first
    assert processor.chat_template == processor.tokenizer.chat_template == template


def test_a_template_that_asks_as_it_trains_is_kept_as_it_is():
    processor = processor_over("qwen2_5")
    tokenize(processor)
    assert processor.chat_template == TEMPLATES["qwen2_5"].read_text()


def test_qwen3_is_saved_without_thinking_and_still_thinks_when_asked():
    processor = processor_over("qwen3")
    tokenize(processor)
    assert processor.chat_template.startswith(WITHOUT_THINKING)
    question = [{"role": "user", "content": "?"}]
    quiet = processor.apply_chat_template(question, add_generation_prompt=True)
    assert quiet.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    thinking = processor.apply_chat_template(question, add_generation_prompt=True, enable_thinking=True)
    assert thinking.endswith("<|im_start|>assistant\n")


def test_a_thought_in_an_answer_is_learnt_with_it():
    processor = processor_over("qwen3")
    thought = "<think>\nI look.\n</think>\n\nred"
    row = tokenize(processor, [MESSAGES[0], {"role": "assistant", "content": thought}])
    learnt = [label for label in row["labels"] if label != -100]
    assert processor.tokenizer.decode(learnt) == f"{thought}<|im_end|>"


@pytest.mark.parametrize(
    "template", ["{% if", "{{ messages + 1 }}", "{{ messages.__class__.__mro__[1] }}", "{{ 1 / 0 }}"]
)
def test_a_template_that_cannot_be_written_is_one_sentence(template):
    processor = UnicornProcessor(byte_tokenizer(template, ["<s>", "</s>"]), embed_dim=2)
    with pytest.raises(InputError, match="chat template"):
        tokenize(processor)


def test_of_several_templates_the_default_one_is_settled():
    processor = processor_over("qwen3")
    template = processor.chat_template
    processor.chat_template = processor.tokenizer.chat_template = {"default": template, "tool_use": "{{ tools }}"}
    row = tokenize(processor)
    assert row == tokenize(processor_over("qwen3"))
    assert processor.chat_template["default"].startswith(WITHOUT_THINKING)
    assert processor.chat_template["tool_use"] == "{{ tools }}"


@pytest.mark.parametrize(
    ("ends", "more"), [(None, []), (0, [0]), ([0, 200], [0, 200])], ids=["of no end", "of one end", "of two ends"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_model_stops_at_the_end_of_an_answer_too(family, ends, more):
    template, marks, pieces = FAMILIES[family]
    processor = UnicornProcessor(byte_tokenizer(template, ["<|endofall|>", *marks]), embed_dim=2)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
    for _ in range(2):
        stop_at_the_end_of_a_turn(model, processor)
        end, *others = model.generation_config.eos_token_id
        assert pieces[1].startswith(f"red{processor.tokenizer.decode([end])}")
        assert others == more


def test_a_model_stops_at_the_end_that_only_the_training_version_of_its_template_writes():
    processor = UnicornProcessor(byte_tokenizer(TEMPLATES["glm4moe"].read_text(), ["<|end|>", "<|user|>"]), embed_dim=2)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    learnt = tokenize(processor)["labels"]
    stop_at_the_end_of_a_turn(model, processor)
    assert model.generation_config.eos_token_id == [learnt[-1]]


def test_a_template_whose_answers_have_no_end_is_named(caplog):
    template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=7))
    stop_at_the_end_of_a_turn(model, UnicornProcessor(byte_tokenizer(template, ["<s>"]), embed_dim=2))
    assert "the model may not stop by itself" in caplog.text
    assert model.generation_config.eos_token_id == 7


def test_a_header_that_is_neither_asked_with_nor_learnt_is_refused():
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    marks = ["<|im_start|>", "<|im_end|>"]
    with pytest.raises(InputError, match="generation prompt"):
        tokenize(UnicornProcessor(byte_tokenizer(template, marks), embed_dim=2))
    asking = template + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    assert tokenize(UnicornProcessor(byte_tokenizer(asking, marks), embed_dim=2))


def test_the_recipe_saves_the_template_that_was_trained(recipe, whole, tmp_path):
    arguments = {"chat_template_path": TEMPLATES["qwen3"], "max_steps": 1}
    run = recipe("finetune", tmp_path / "output", arguments=arguments)
    assert run.status == [0], run.log[-3000:]
    saved = AutoProcessor.from_pretrained(run.output_dir)
    assert saved.chat_template == saved.tokenizer.chat_template
    asked = saved.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True)
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
