"""`TransformersWriter`: a local language model with continuous batching, for one machine without a server."""

import asyncio
from dataclasses import dataclass, field

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.usage import Prices, Usage
from unicorn_hf.synthesis.writers import CallFailed, Completion, Prompt


@dataclass
class TransformersWriter:
    """Generates in this process; requests join and leave the running batch one by one.

    Args:
        model: a folder or Hub id of a causal language model with a chat template.
        device: where it runs; the first GPU, or else the CPU, by default.
        dtype: of the weights; "auto" for the dtype they were saved in.
        concurrency: the most prompts in a batch.
        deadline: seconds for one prompt.
        temperature: of the sampling; 0 for the likeliest token each time.
        prices: money for a million tokens, should the machine cost any.

    Raises:
        InputError: the model cannot be loaded, or has no chat template.
    """

    model: str
    device: str | None = None
    dtype: str = "auto"
    concurrency: int = 32
    deadline: float = 600.0
    temperature: float = 1.0
    prices: Prices = field(default_factory=Prices)

    name = "transformers"

    def __post_init__(self):
        if not self.model:
            raise InputError("the transformers writer needs a model; name a folder or a Hub id (--model)")

    async def __aenter__(self):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model)
            language_model = AutoModelForCausalLM.from_pretrained(self.model, dtype=self.dtype).to(device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{self.model}: cannot be loaded as a language model ({reason})") from error
        if not self._tokenizer.chat_template:
            raise InputError(f"{self.model}: its tokenizer has no chat template; name an instruction-tuned model")
        sampling = {"temperature": self.temperature} if self.temperature > 0 else {}
        settings = GenerationConfig(
            do_sample=self.temperature > 0,
            eos_token_id=language_model.generation_config.eos_token_id or self._tokenizer.eos_token_id,
            pad_token_id=language_model.generation_config.pad_token_id,
            **sampling,
        )
        # Off a GPU the manager would take nine tenths of the memory for its cache.
        blocks = {} if device.startswith("cuda") else {"num_blocks": 8 * self.concurrency, "max_batch_tokens": 2048}
        self._manager = language_model.init_continuous_batching(settings, ContinuousBatchingConfig(**blocks))
        self._manager.start()
        self._count = 0
        return self

    async def __aexit__(self, *exception):
        await asyncio.to_thread(self._manager.stop, block=True)
        del self._manager, self._tokenizer

    async def complete(self, prompt: Prompt) -> Completion:
        """The answer to a prompt.

        Raises:
            CallFailed: the model failed on it, or took longer than the deadline.
        """
        token_ids = self._tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        self._count += 1
        name = f"request {self._count}"
        answer = asyncio.get_running_loop().create_future()
        self._manager.register_result_handler(name, lambda result: answer.done() or answer.set_result(result))
        self._manager.add_request(token_ids, request_id=name, max_new_tokens=prompt.max_tokens)
        usage = Usage(calls=1, prompt_tokens=len(token_ids))
        try:
            result = await asyncio.wait_for(answer, self.deadline)
        except asyncio.TimeoutError:
            self._manager.cancel_request(name)
            raise CallFailed("deadline", f"no answer within {self.deadline:g} s", usage) from None
        if result.error:
            raise CallFailed("generation", result.error[:500], usage)
        usage.completion_tokens = len(result.generated_tokens)
        return Completion(self._tokenizer.decode(result.generated_tokens, skip_special_tokens=True), usage)
