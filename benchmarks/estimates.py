"""The hours and the memory that reproducing the papers takes: estimated from arithmetic, not measured.

    python benchmarks/estimates.py

A transformer of P parameters takes 2 P operations per token in the forward pass, and 2 P more for each of these: the
gradient of its activations, the gradient of its weights, and a second forward pass with gradient checkpointing (Kaplan
et al. 2020, arXiv 2001.08361; attention is left out, because sequences are short). The hours are these operations
divided by a share of the card's peak; `benchmarks/recipes.py` measures the share of real training runs.
Prints the table of docs/reproduce.md.
"""

from dataclasses import dataclass

PEAK = {"H100": 989e12, "RTX 4090": 165e12}  # dense bfloat16, NVIDIA's data sheets
SHARE = 0.4  # share of the peak, usual for training and prefill that never wait for data; assumed, not measured here
WRITING_SHARE = 0.2  # share of the peak of a server that generates token by token
GB = 1e9

QWEN_72B, QWEN_7B, QWEN_HALF_B, LLAMA_8B = 72.7e9, 7.6e9, 0.49e9, 8.03e9
# Tokens read and written for one row, as `--dry-run` counts them; for a conversation, with its check.
CAPTION_REQUEST, CONVERSATION_REQUESTS = 365, 1000
CAPTION, CONVERSATION = 70, 350


@dataclass(frozen=True)
class Step:
    name: str
    operations: float
    share: float
    disk: str  # what it leaves
    memory: str  # of one card, at least
    card: str


def steps() -> list[Step]:
    return [
        Step(
            "Unicorn: 1.2M captions, Qwen2.5-72B",
            2 * QWEN_72B * CAPTION_REQUEST * 1.2e6,
            WRITING_SHARE,
            "1",
            "4 x 80",
            "H100",
        ),
        Step(
            "Unicorn: 471K conversations, Qwen2.5-72B",
            2 * QWEN_72B * CONVERSATION_REQUESTS * 471e3,
            WRITING_SHARE,
            "1",
            "4 x 80",
            "H100",
        ),
        Step("1.2M captions by LLM2CLIP (8B)", 2 * LLAMA_8B * 100 * 1.2e6, SHARE, vectors(1.2e6, 1280), "20", "H100"),
        Step("100K images by LLM2CLIP (ViT-L/14-336)", 382e9 * 100e3, SHARE, vectors(100e3, 1280), "4", "H100"),
        Step("stage 1, Llama-3-8B, one image token", 4 * LLAMA_8B * (CAPTION + 1) * 1.2e6, SHARE, "16", "24", "H100"),
        Step(
            "stage 1, Llama-3-8B, 576 image tokens", 4 * LLAMA_8B * (CAPTION + 576) * 1.2e6, SHARE, "16", "40", "H100"
        ),
        Step(
            "stage 2, Llama-3-8B, all weights", 8 * LLAMA_8B * (CONVERSATION + 1) * 471e3, SHARE, "32", "4 x 80", "H100"
        ),
        Step("stage 2, Llama-3-8B, LoRA", 6 * LLAMA_8B * (CONVERSATION + 1) * 471e3, SHARE, "2", "40", "H100"),
        Step(
            "ReVision: stage 1 on 2M captions, one image token",
            4 * LLAMA_8B * (CAPTION + 1) * 2e6,
            SHARE,
            "16",
            "24",
            "H100",
        ),
        Step(
            "smallest: 100K captions, Qwen2.5-7B",
            2 * QWEN_7B * CAPTION_REQUEST * 100e3,
            WRITING_SHARE,
            "0.1",
            "24",
            "RTX 4090",
        ),
        Step(
            "smallest: 40K conversations, Qwen2.5-7B",
            2 * QWEN_7B * CONVERSATION_REQUESTS * 40e3,
            WRITING_SHARE,
            "0.1",
            "24",
            "RTX 4090",
        ),
        Step(
            "smallest: 100K captions and 5K images by CLIP B/32",
            2 * 63e6 * 77 * 100e3 + 8.8e9 * 5e3,
            SHARE,
            vectors(105e3, 512),
            "2",
            "RTX 4090",
        ),
        Step("smallest: stage 1, Qwen2.5-0.5B", 4 * QWEN_HALF_B * (CAPTION + 1) * 100e3, SHARE, "1", "8", "RTX 4090"),
        Step(
            "smallest: stage 2, Qwen2.5-0.5B, all weights",
            8 * QWEN_HALF_B * (CONVERSATION + 1) * 40e3,
            SHARE,
            "2",
            "16",
            "RTX 4090",
        ),
    ]


def vectors(rows: float, embed_dim: int) -> str:
    """Gigabytes of float16 vectors."""
    return f"{rows * embed_dim * 2 / GB:.1f}"


def table() -> str:
    lines = [
        "| step | operations | hours on one card | GB it leaves | GB of GPU memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in steps():
        hours = step.operations / (step.share * PEAK[step.card]) / 3600
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else "below 0.1"
        lines.append(f"| {step.name} | {step.operations:.1e} | {shown} ({step.card}) | {step.disk} | {step.memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
