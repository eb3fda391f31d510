"""A thought is told from the answer, whoever asks: by batches, by the command, on the page, through lmms-eval."""

import copy
import sys
import types
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration, UnicornProcessor

from unicorn_hf import InputError
from unicorn_hf.cli import main
from unicorn_hf.evaluation import evaluate
from unicorn_hf.evaluation.images import answer
from unicorn_hf.evaluation.multiple_choice import with_options
from unicorn_hf.evaluation.replies import Reply, ReplyStreamer, read_reply, until
from unicorn_hf.training import UnicornCollator, tokenize_conversations

QWEN3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
MARKS = [("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")]
COLOURS = ["red", "green", "blue", "white"]
QUESTION = "what color is the picture ?"
OPTIONS = [COLOURS[row:] + COLOURS[:row] for row in (0, 3, 1, 2)]
LETTERS = ["ABCD"[options.index(colour)] for options, colour in zip(OPTIONS, COLOURS, strict=True)]
VECTORS = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)


def byte_pair_tokenizer(texts):
    """One that can write any text, as real ones can; "(A)" is a word."""
    words = pre_tokenizers.Split(Regex(r" ?\([A-D]\)| ?\w+| ?[^\s\w]+|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    options = {"special_tokens": ["<pad>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, show_progress=False, **options))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def processor_with(specials, template=QWEN3) -> UnicornProcessor:
    words = [QUESTION, *COLOURS, "( ) A B C D think I look at it user assistant system 0 1 2 3 4 5 6 7 8 9"]
    tokenizer = byte_pair_tokenizer(words * 20)
    tokenizer.add_tokens([mark for marks in MARKS for mark in marks if mark not in specials])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *specials]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    return UnicornProcessor(tokenizer, num_image_tokens=2, embed_dim=128, image_encoder="sandbox")


def train(processor, rows):
    """A tiny model that has learnt `rows` (token ids, labels and vectors) by heart."""
    from transformers import LlamaConfig

    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text_config = LlamaConfig(
        **sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    shared = {"embed_dim": 128, "num_image_tokens": 2, "image_encoder": "sandbox"}
    config = UnicornConfig.from_text_config(text_config, image_token_id=processor.image_token_id, **shared)
    model = UnicornForConditionalGeneration(config)
    batch = UnicornCollator(processor)([dict(row) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    return model.eval()


def conversations(thought=""):
    asked = [(QUESTION, colour) for colour in COLOURS]
    asked += [(with_options(QUESTION, options), letter) for options, letter in zip(OPTIONS, LETTERS, strict=True)]
    messages = [
        [
            {"role": "user", "content": f"<image>\n{question}"},
            {"role": "assistant", "content": thought + said},
        ]
        for question, said in asked
    ]
    return datasets.Dataset.from_dict({"messages": messages, "image_embeds": [*VECTORS, *VECTORS]})


@pytest.fixture(scope="module")
def trained():
    """A model of stage 2 over Qwen3's chat template, as it is trained and saved today."""
    processor = processor_with([])
    rows = tokenize_conversations(conversations(), processor)
    return train(processor, rows), processor


@pytest.fixture(scope="module", params=["words", "special tokens"])
def thinking(request):
    """Models that write a thought before each answer; its marks are words, or special tokens."""
    processor = processor_with(["<think>", "</think>"] if request.param == "special tokens" else [])
    rows = tokenize_conversations(conversations("<think>\nI look at it\n</think>\n\n"), processor)
    model = train(processor, rows)
    processor.chat_template = processor.tokenizer.chat_template = QWEN3  # whose generation prompt has no thought
    return model, processor


def questions():
    return datasets.Dataset.from_dict(
        {"question": [QUESTION] * 4, "answer": COLOURS, "options": OPTIONS, "image_embeds": list(VECTORS)}
    )


def scores(model, processor, **options):
    vqa = evaluate(model, questions(), processor=processor, baseline=False, **options)
    choices = evaluate(
        model, questions(), processor=processor, task="multiple-choice", baseline=False, circular=False, **options
    )
    return vqa, choices


def test_a_stage_2_model_over_qwen3_answers_without_a_block(trained):
    vqa, choices = scores(*trained)
    assert vqa.answers == COLOURS and vqa.overall.value == 1
    assert choices.answers == LETTERS
    assert choices.scores["letter"].value == 1 and choices.scores["no_letter"].value == 0


def test_a_thought_before_the_answer_changes_no_score(thinking):
    vqa, choices = scores(*thinking)
    assert vqa.answers == COLOURS and vqa.overall.value == 1
    assert choices.answers == LETTERS and choices.scores["letter"].value == 1
    assert vqa.num_unfinished == choices.num_unfinished == 0


def test_a_thought_that_is_cut_off_is_no_answer_and_counted(thinking, tmp_path):
    model, processor = thinking
    vqa, _ = scores(model, processor, max_new_tokens=3)
    assert vqa.answers == [""] * 4 and vqa.overall.value == 0
    assert vqa.num_unfinished == 4 and "4 replies ended inside a thought" in str(vqa)
    yes_no = questions().remove_columns("answer").add_column("answer", ["yes"] * 4)
    judged = evaluate(model, yes_no, tmp_path / "out", task="yes-no", processor=processor, max_new_tokens=3)
    assert judged.overall.value == 0
    assert '"unfinished": 4' in (tmp_path / "out" / "evaluation.json").read_text()
    assert "4 replies ended inside a thought" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(InputError, match="still thinking after 3 tokens"):
        answer(model, processor, QUESTION, VECTORS[:1], max_new_tokens=3)


def test_the_answer_is_shown_while_it_is_written_and_the_thought_never(thinking):
    shown = []
    said = answer(*thinking, with_options(QUESTION, OPTIONS[1]), VECTORS[1:2], max_new_tokens=40, show=shown.append)
    assert said == LETTERS[1] and shown[-1] == said
    assert all("look" not in text and "think" not in text and said.startswith(text) for text in shown)


def test_generate_prints_the_answer_and_nothing_else(thinking, tmp_path, monkeypatch, capsys):
    for part in thinking:
        part.save_pretrained(tmp_path / "model")
    command = ["unicorn-hf", "generate", str(tmp_path / "model"), QUESTION, "--device", "cpu"]
    texts = {}
    for limit in (40, 2):
        monkeypatch.setattr(sys, "argv", [*command, "--max-new-tokens", str(limit)])
        with pytest.raises(SystemExit) as ended:
            main()
        texts[limit] = ended.value.code, capsys.readouterr()
    status, printed = texts[40]
    assert status == 0 and printed.out.strip() in COLOURS + list("ABCD")
    status, printed = texts[2]
    assert status == 2 and "still thinking" in printed.err and not printed.out.strip()


def test_the_saved_processor_asks_by_pipeline_as_it_was_trained(trained, tmp_path):
    from transformers import pipeline

    for part in trained:
        part.save_pretrained(tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    (said,) = ask(text=[chat], return_full_text=False, max_new_tokens=12)
    said = said[0] if isinstance(said, list) else said
    assert said["generated_text"] and "think" not in said["generated_text"]


def test_the_page_streams_the_answer_and_never_the_thought(thinking, tmp_path):
    gradio = pytest.importorskip("gradio")
    from unicorn_hf.evaluation.app import make_page

    for part in thinking:
        part.save_pretrained(tmp_path)
    for limit in (40, 2):
        page = make_page(tmp_path, max_new_tokens=limit, device="cpu")
        (ask,) = (event.fn for event in page.fns.values() if event.api_name == "ask")
        if limit == 2:
            with pytest.raises(gradio.Error, match="still thinking after 2 tokens"):
                list(ask(None, QUESTION))
        else:
            pieces = list(ask(None, QUESTION))
            assert pieces[-1] in COLOURS + list("ABCD")
            assert all(pieces[-1].startswith(piece) for piece in pieces)


@pytest.fixture
def lmms_model(monkeypatch):
    """The plug-in's class, over a stand-in for the few names it takes of lmms-eval."""

    class Collator:
        def __init__(self, arguments, sort, grouping):
            self.arguments = arguments

        def get_batched(self, n):
            return [self.arguments[start : start + n] for start in range(0, len(self.arguments), n)]

        def get_original(self, answers):
            return answers

    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.api.instance": {"GenerationResult": tuple},
        "lmms_eval.api.model": {"lmms": type("lmms", (), {"rank": 0, "__init__": lambda self: None})},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda *args, **kwargs: None},
        "lmms_eval.utils": {"Collator": Collator},
    }
    for name, values in names.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "unicorn_hf.evaluation.lmms_eval_model", raising=False)
    from unicorn_hf.evaluation.lmms_eval_model import Unicorn

    yield Unicorn
    sys.modules.pop("unicorn_hf.evaluation.lmms_eval_model", None)


def test_lmms_eval_looks_for_its_stops_in_the_answer_and_not_in_the_thought(thinking, lmms_model, caplog):
    def ask(model, limit, stops):
        options = {"max_new_tokens": limit, "until": stops}
        request = types.SimpleNamespace(args=(QUESTION, options, lambda document: [], 0, "task", "test"))
        return model.generate_until([request, request])

    unicorn = object.__new__(lmms_model)
    unicorn.model, unicorn.processor = thinking
    unicorn.encoder = unicorn.transfer = None
    unicorn.device, unicorn.batch_size, unicorn.rank = unicorn.model.device, 2, 0
    unicorn.task_dict = {"task": {"test": [{}]}}
    for stops in (["\n"], "\n", ["\n\n", "think"], []):
        said = ask(unicorn, 40, stops)
        assert said[0] in COLOURS + list("ABCD") and said[0] == said[1]
    assert ask(unicorn, 2, ["\n"]) == ["", ""]
    assert "2 of 2 replies ended inside a thought" in caplog.text


def test_a_reply_begins_inside_the_thought_that_its_prompt_opened():
    tokenizer = processor_with([]).tokenizer
    finished, cut = (tokenizer(text)["input_ids"] for text in ("I look </think> red", "I look at it"))
    prompt = "<|im_start|>assistant\n<think>\n"
    assert read_reply(tokenizer, finished, prompt) == Reply("red", "I look")
    assert read_reply(tokenizer, cut, prompt) == Reply("", "I look at it", is_unfinished=True)
    assert read_reply(tokenizer, cut, "<|im_start|>assistant\n<think>\n\n</think>\n\n") == Reply("I look at it")
    # A question that spells the mark opens nothing.
    assert read_reply(tokenizer, cut, "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n").answer


WORDS = st.lists(st.sampled_from([*COLOURS, "I", "look", "at", "it", "<", "[", ">"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(marks=st.sampled_from(MARKS), thought=WORDS, said=WORDS, special=st.booleans(), opened=st.booleans())
def test_whatever_the_marks_the_answer_is_what_stands_behind_the_thought(marks, thought, said, special, opened):
    tokenizer = TOKENIZERS[special]
    opening, closing = marks
    thought, said = " ".join(thought), " ".join(said)
    prompt, begin = (f"<|im_start|>assistant\n{opening}\n", "") if opened else ("<|im_start|>assistant\n", opening)
    ids = tokenizer(f"{begin}{thought}{closing}\n\n{said}<|im_end|><pad><pad>")["input_ids"]
    expected = tokenizer.decode(tokenizer(said)["input_ids"]).strip()
    shown = []
    streamer = ReplyStreamer(tokenizer, prompt, shown.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    reply = read_reply(tokenizer, ids, prompt)
    assert reply.answer == expected == shown[-1] and not reply.is_unfinished
    assert all(expected.startswith(text) for text in shown)
    cut = ids[: tokenizer(f"{begin}{thought}")["input_ids"].__len__()]
    assert read_reply(tokenizer, cut, prompt).is_unfinished


@settings(max_examples=60, deadline=None)
@given(said=WORDS, special=st.booleans())
def test_a_reply_without_a_thought_is_read_as_it_always_was(said, special):
    tokenizer = TOKENIZERS[special]
    ids = tokenizer(" ".join(said) + "<|im_end|><pad>")["input_ids"]
    expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert read_reply(tokenizer, ids, "<|im_start|>assistant\n") == Reply(expected)


TOKENIZERS = [processor_with([]).tokenizer, processor_with([mark for marks in MARKS for mark in marks]).tokenizer]


@pytest.mark.parametrize(
    ("ends", "expected"), [([], "a\nb"), (None, "a\nb"), ("\n", "a"), (["\n", "b"], "a"), ([""], "a\nb")]
)
def test_until_is_one_text_or_several(ends, expected):
    assert until("a\nb ", ends) == expected


def test_a_chat_template_that_reaches_out_is_one_sentence(trained):
    model, processor = trained
    other = copy.deepcopy(processor)
    for template in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{% if",
    ):
        other.chat_template = other.tokenizer.chat_template = template
        with pytest.raises(InputError, match="chat template"):
            evaluate(model, questions(), processor=other)
        with pytest.raises(InputError, match="chat template"):
            answer(model, other, QUESTION)
