"""The demo's language model: a small Llama and its tokenizer, trained on the demo's own text."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

# As short as a chat template can be, since every token costs time on a CPU.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ ' ' + message.content + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ '<|user|>' + message.content + '<|assistant|>' }}{%- endif -%}"
    "{%- endfor -%}"
)


def train_language_model(
    captions: list[str],
    conversations: list[list[dict[str, str]]],
    output: Path,
    *,
    hidden_size: int,
    num_layers: int,
    steps: int,
    seed: int,
) -> tuple[int, int]:
    """Train a byte-pair tokenizer and a small Llama on captions and conversations without images; save both.

    Of a conversation the assistant's tokens alone are learnt. Batches are drawn at random: those of equal length would
    be of one task each.

    Returns:
        the number of parameters and the size of the vocabulary.
    """
    import datasets
    import torch
    from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    tokenizer = train_tokenizer(captions + [turn["content"] for turns in conversations for turn in turns])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            # The usual 0.02 is meant for widths of thousands.
            initializer_range=hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    ids = tokenizer([caption + tokenizer.eos_token for caption in captions])["input_ids"]
    chats = tokenizer.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = ids + [
        [token if said else -100 for token, said in zip(chat, mask, strict=True)]
        for chat, mask in zip(chats["input_ids"], chats["assistant_masks"], strict=True)
    ]
    samples = {"input_ids": ids + chats["input_ids"], "labels": labels}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=32,
                learning_rate=1.5e-3,
                lr_scheduler_type="cosine",
                warmup_steps=min(50, steps // 10),
                logging_steps=100,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=datasets.Dataset.from_dict(samples),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        ).train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters(), len(tokenizer)


def train_tokenizer(texts: Iterable[str]):
    """A byte-pair tokenizer of 512 tokens at most; a space belongs to the word behind it, "(A)" is a word."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\([A-D]\)| ?\w+| ?[^\s\w]+|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
