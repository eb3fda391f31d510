"""The demo's language model: a small Llama with random weights, and a tokenizer trained on the demo's own text."""

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


def save_language_model(
    texts: Iterable[str], output: Path, *, hidden_size: int, num_layers: int, seed: int
) -> tuple[int, int]:
    """Train a byte-pair tokenizer on `texts` and draw a Llama's weights at random; save both to `output`.

    Returns:
        the number of parameters and the size of the vocabulary.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\([A-D]\)| ?\w+| ?[^\s\w]+|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            # The usual 0.02 is meant for widths of thousands.
            initializer_range=hidden_size**-0.5,
            pad_token_id=fast.pad_token_id,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(output)
    fast.save_pretrained(output)
    return model.num_parameters(), len(fast)
