"""The demo's language model: a small Llama and its tokenizer, trained on the demo's own text."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unicorn_hf.training.batching import length_grouped_order

BATCH_SIZE = 32
# A very short chat template, because every token costs time on a CPU.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ ' ' + message.content + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ '<|user|>' + message.content + '<|assistant|>' }}{%- endif -%}"
    "{%- endfor -%}"
)


def train_language_model(
    options: list[list[dict[str, str]]],
    conversations: list[list[dict[str, str]]],
    paraphrases: list[tuple[str, str]],
    output: Path,
    *,
    hidden_size: int,
    num_layers: int,
    steps: int,
    seed: int,
) -> tuple[int, int]:
    """Train a tokenizer and a small Llama that can read, and save both.

    In a conversation only the assistant's tokens are in the loss, in a pair of captions only the second caption.

    Args:
        options: conversations with lettered options but without a caption, so only the letters can be learnt. They come
            first and alone: from them a model of this size learns to find a word again and to copy its neighbour, which
            reading needs too. If they are mixed with the others from the start, it does not learn this in time.
        conversations: conversations that contain the caption they are about.
        paraphrases: pairs of captions of the same scene.

    Returns:
        the number of parameters and the size of the vocabulary.
    """
    import datasets
    import torch
    from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    turns = [turn for messages in options + conversations for turn in messages]
    # The chat template puts a space before an answer, and for this tokenizer a word with a space is another word.
    said = [f" {turn['content']}" if turn["role"] == "assistant" else turn["content"] for turn in turns]
    tokenizer = train_tokenizer(said + [caption for pair in paraphrases for caption in pair])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 16,
            num_key_value_heads=hidden_size // 16,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            # The usual 10,000 is for thousands of tokens. With it, too few dimensions of a small head distinguish
            # neighbouring positions, and the model learns late to look at the previous token.
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            # The usual 0.02 is for widths of thousands.
            initializer_range=hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    first = steps * 3 // 10
    samples = [
        *_draw(_tokenize_conversations(options, tokenizer), first, seed),
        *_draw(
            _tokenize_conversations(conversations, tokenizer) + _tokenize_paraphrases(paraphrases, tokenizer),
            steps - first,
            seed,
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                train_sampling_strategy="sequential",
                learning_rate=4e-3,
                adam_beta2=0.98,
                lr_scheduler_type="cosine",
                warmup_steps=min(50, steps // 10),
                logging_steps=100,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=datasets.Dataset.from_list(samples),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        ).train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters(), len(tokenizer)


def _tokenize_conversations(conversations, tokenizer) -> list[dict]:
    chats = tokenizer.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return [
        {"input_ids": ids, "labels": [token if said else -100 for token, said in zip(ids, mask, strict=True)]}
        for ids, mask in zip(chats["input_ids"], chats["assistant_masks"], strict=True)
    ]


def _tokenize_paraphrases(paraphrases, tokenizer) -> list[dict]:
    given = tokenizer([f"{first}\n" for first, _ in paraphrases])["input_ids"]
    learnt = tokenizer([second + tokenizer.eos_token for _, second in paraphrases])["input_ids"]
    return [
        {"input_ids": first + second, "labels": [-100] * len(first) + second}
        for first, second in zip(given, learnt, strict=True)
    ]


def _draw(samples: list[dict], num_batches: int, seed: int) -> list[dict]:
    """Samples in batches of similar length, in random order. Windows are small, so that batches mix tasks."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(samples), num_batches * BATCH_SIZE, replace=num_batches * BATCH_SIZE > len(samples))
    lengths = np.array([len(samples[row]["input_ids"]) for row in drawn])
    batches = []
    for start in range(0, len(drawn), 4 * BATCH_SIZE):
        window = slice(start, start + 4 * BATCH_SIZE)
        batches += drawn[window][length_grouped_order(lengths[window], BATCH_SIZE, generator)].tolist()
    return [samples[row] for row in batches]


def train_tokenizer(texts: Iterable[str]):
    """A tokenizer of the texts' own words; a space belongs to the following word, and "(A)" is a word.

    A real vocabulary has a hundred thousand tokens more, which would dominate the time of such a small model.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\([A-D]\)| ?\w+| ?[^\s\w]+|\s"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special_tokens = ["<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special_tokens, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )
