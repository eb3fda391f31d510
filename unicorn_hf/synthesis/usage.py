"""What calls to a language model cost."""

from dataclasses import asdict, dataclass


@dataclass
class Usage:
    """Calls and tokens; failed and repeated calls count too, where the server says what they took."""

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Usage") -> None:
        self.calls += other.calls
        self.retries += other.retries
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in the currency of the bill."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6
