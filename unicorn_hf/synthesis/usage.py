"""What calls to a language model cost."""

from dataclasses import asdict, dataclass

from tqdm.auto import tqdm


@dataclass
class Usage:
    """Calls and tokens; failed and repeated calls count too, if the server reports their usage."""

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
    """The price of a million tokens, in the currency of the bill."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


def in_units(count: int) -> str:
    """A number of tokens with about three digits: 873, 12.4k, 3.08M."""
    return str(count) if count < 1000 else tqdm.format_sizeof(count)


def money(cost: float) -> str:
    """A cost with two decimals, or with more if it would read as zero."""
    return f"{cost:,.2f}" if cost == 0 or cost >= 0.1 else f"{cost:.2g}"
