"""`TransformersWriter`: a local language model with continuous batching, for one machine without a server."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from unicorn_hf.data.markup import marks_of, without_marks
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.completion import MAX_TOKENS, CallFailed, Completion, Prompt
from unicorn_hf.synthesis.usage import Prices, Usage
from unicorn_hf.system_turn import has_system_role, system_to_user

_PAGE = 256  # tokens of a block of the cache, in every version of transformers
_BATCH_TOKENS = 512  # per step without a GPU; attention masks and logits grow with it
_REQUEST_BLOCKS = 8  # for a prompt and an answer of usual length
_MEMORY_SHARE = 0.5  # of the free memory, without a GPU
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_THOUGHT_BEGINS = ("<think>", "<thinking>", "<reasoning>", "<thought>", "[think]")


@dataclass
class TransformersWriter:
    """Generates in this process; requests join and leave the running batch one by one.

    Args:
        model: a folder or Hub id of a causal language model with a chat template.
        device: where it runs; by default the first GPU, or the CPU if there is none.
        dtype: the dtype of the weights; "auto" for the dtype in which they were saved.
        concurrency: the most prompts in a batch.
        deadline: seconds for one prompt.
        temperature: the sampling temperature; 0 always takes the likeliest token.
        max_tokens: the most tokens of one answer, its thought included. An answer that is cut off is asked again with
            more tokens, up to this number.
        prices: the prices of a million tokens, if the machine costs money.

    Raises:
        InputError: the model cannot be loaded, has no chat template, does not fit the memory, or stops during the run.
    """

    model: str
    device: str | None = None
    dtype: str = "auto"
    concurrency: int = 32
    deadline: float = 600.0
    temperature: float = 1.0
    max_tokens: int = MAX_TOKENS
    prices: Prices = field(default_factory=Prices)

    name = "transformers"

    def __post_init__(self):
        if not self.model:
            raise InputError("the transformers writer needs a model; name a folder or a Hub id (--model)")
        self.model = str(self.model)  # the plan is JSON, which has no Path

    async def __aenter__(self):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        safe = {"trust_remote_code": False}  # without it, transformers would ask on the terminal
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model, **safe)
            language_model = AutoModelForCausalLM.from_pretrained(self.model, dtype=self.dtype, **safe)
            language_model = language_model.to(device).eval()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            reason = f"{reason[:400]} …" if len(reason) > 400 else reason
            raise InputError(f"{self.model}: cannot be loaded as a language model ({reason})") from error
        self._marks = marks_of(self._tokenizer)
        if not self._tokenizer.chat_template:
            raise InputError(f"{self.model}: its tokenizer has no chat template; name an instruction-tuned model")
        self._has_system_role = has_system_role(
            lambda messages: self._tokenizer.apply_chat_template(messages, tokenize=False)
        )
        sampling = {"temperature": self.temperature} if self.temperature > 0 else {}
        ends = language_model.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        settings = GenerationConfig(
            do_sample=self.temperature > 0,
            eos_token_id=ends,
            pad_token_id=language_model.generation_config.pad_token_id,
            **sampling,
        )
        batching, self._capacity = {}, math.inf
        if not device.startswith("cuda"):  # the manager measures a GPU, but without one it would take all memory
            num_blocks = self._num_blocks(language_model)
            self._capacity = num_blocks * _PAGE
            batching = {"num_blocks": num_blocks, "max_batch_tokens": max(_BATCH_TOKENS, self.concurrency)}
        # An error in its thread is reported below in one sentence, without a traceback.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self._manager = language_model.init_continuous_batching(settings, ContinuousBatchingConfig(**batching))
        self._manager.start()
        self._count, self._last_error = 0, None
        return self

    async def __aexit__(self, *exception):
        # When the run ends by an error, running requests are not waited for.
        await asyncio.to_thread(self._manager.stop, block=True, hard_stop=exception[0] is not None)
        del self._manager, self._tokenizer

    def _num_blocks(self, language_model) -> int:
        """The number of cache blocks: enough for the prompts of a batch, but at most half of the free memory."""
        wanted = max(_REQUEST_BLOCKS * self.concurrency, math.ceil(2 * self.max_tokens / _PAGE))
        config, width = language_model.config.get_text_config(), language_model.dtype.itemsize
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        batch = max(_BATCH_TOKENS, self.concurrency)
        # A token in the cache: its keys and values in all layers, their copies for one layer's attention, and its
        # columns of the attention masks (full and sliding).
        a_token = width * (2 * config.num_hidden_layers * kv_heads * head_dim + (2 * heads + 3 * kv_heads) * head_dim)
        a_token += 2 * width * batch
        logits = 4 * config.vocab_size * batch
        free = _free_memory()
        fitting = int((_MEMORY_SHARE * free - logits) / (a_token * _PAGE))
        if fitting < _REQUEST_BLOCKS:
            needed = (logits + _REQUEST_BLOCKS * a_token * _PAGE) / _MEMORY_SHARE
            raise InputError(
                f"{self.model}: needs {needed / 1e9:.1f} GB of memory besides its weights, but {free / 1e9:.1f} GB are "
                "free; free some memory, name a smaller model, or load it in 16 bits (dtype='bfloat16')"
            )
        return min(wanted, fitting)

    async def complete(self, prompt: Prompt) -> Completion:
        """The answer to a prompt.

        Raises:
            CallFailed: the model failed on it, or took longer than the deadline.
        """
        messages = [{**turn, "content": without_marks(turn["content"], self._marks)} for turn in prompt.messages]
        messages = messages if self._has_system_role else system_to_user(messages)
        token_ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        max_tokens = int(min(prompt.max_tokens, self._capacity - len(token_ids)))
        usage = Usage(calls=1, prompt_tokens=len(token_ids))
        if max_tokens < 1:
            raise CallFailed(
                "no_room", f"the prompt has {len(token_ids)} tokens; the cache holds {self._capacity}", usage
            )
        self._count += 1
        name = f"request {self._count}"
        answer = asyncio.get_running_loop().create_future()
        self._manager.register_result_handler(name, lambda result: None if answer.done() else answer.set_result(result))
        if self._manager.add_request(token_ids, request_id=name, max_new_tokens=max_tokens) is None:
            raise self._stopped()
        end = time.monotonic() + self.deadline
        while not (await asyncio.wait([answer], timeout=min(1.0, max(0.0, end - time.monotonic()))))[0]:
            if not self._manager.is_running():
                raise self._stopped()
            if time.monotonic() >= end:
                self._manager.cancel_request(name)
                raise CallFailed("deadline", f"no answer within {self.deadline:g} s", usage)
        result = answer.result()
        if result.error:
            self._last_error = result.error
            await asyncio.sleep(0.5)  # a failing thread ends its requests first
            if not self._manager.is_running():
                raise self._stopped()
            raise CallFailed("generation", result.error[:500], usage)
        tokens = list(result.generated_tokens)
        usage.completion_tokens = len(tokens)
        cut_off = len(tokens) >= max_tokens and tokens[-1] not in self._ends
        while tokens and tokens[-1] in self._ends:
            tokens.pop()
        # Special tokens stay, because marks of a thought may be some. A template may begin the thought itself.
        opened = self._tokenizer.decode(token_ids[-16:]).rstrip().lower().endswith(_THOUGHT_BEGINS)
        text = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return Completion(f"<think>{text}" if opened else text, usage, cut_off)

    def _stopped(self) -> InputError:
        reason = self._last_error or getattr(self._manager, "fatal_error", None) or "no reason is given"
        return InputError(
            f"{self.model}: the generation has stopped ({' '.join(str(reason).split())[:400]}); check the memory or "
            "the model, then run the same command again: it continues from here"
        )


def _free_memory() -> int:
    """The free bytes for this process, by the machine and by the limit of its container."""
    import psutil

    free = psutil.virtual_memory().available
    for name in _CGROUP_LIMITS:
        try:
            free = min(free, int(Path(name).read_text()) - psutil.Process().memory_info().rss)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free
