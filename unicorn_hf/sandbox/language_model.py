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
    paraphrases: list[tuple[str, str]],
    conversations: list[list[dict[str, str]]],
    output: Path,
    *,
    hidden_size: int,
    num_layers: int,
    steps: int,
    seed: int,
) -> tuple[int, int]:
    """Train a tokenizer and a small Llama to say captions in other words and to answer questions about them; save both.

    Of a conversation the assistant's tokens alone are learnt, of two captions the second. Batches are drawn at random:
    those of equal length would be of one task each.

    Returns:
        the number of parameters and the size of the vocabulary.
    """
    import datasets
    import torch
    from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    tokenizer = train_tokenizer([turn["content"] for turns in conversations for turn in turns])
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
            # The usual 10,000 is meant for thousands of tokens: a small head keeps too few dimensions that tell a token
            # from the next, and learns late to look at the one before.
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            # The usual 0.02 is meant for widths of thousands.
            initializer_range=hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    chats = tokenizer.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    input_ids = chats["input_ids"]
    labels = [
        [token if said else -100 for token, said in zip(chat, mask, strict=True)]
        for chat, mask in zip(input_ids, chats["assistant_masks"], strict=True)
    ]
    given = tokenizer([f"{first}\n" for first, _ in paraphrases])["input_ids"]
    learnt = tokenizer([second + tokenizer.eos_token for _, second in paraphrases])["input_ids"]
    input_ids += [first + second for first, second in zip(given, learnt, strict=True)]
    labels += [[-100] * len(first) + second for first, second in zip(given, learnt, strict=True)]
    samples = {"input_ids": input_ids, "labels": labels}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=32,
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
            train_dataset=datasets.Dataset.from_dict(samples),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        ).train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters(), len(tokenizer)


def train_tokenizer(texts: Iterable[str]):
    """A tokenizer of the texts' own words; a space belongs to the word behind it, "(A)" is a word.

    A real one has a hundred thousand tokens more, which a model of this size would pay for in every step.
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
