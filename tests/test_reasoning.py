import pytest

from unicorn_hf.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("9 of them", None, "9 of them"),
        ("", None, None),
        ("<think>\n\n</think>\n\n9 of them", None, "9 of them"),
        ("<think>I count.</think>9", "I count.", "9"),
        ("I count.</think>9", "I count.", "9"),
        ("<think>I count: 1, 2,", "I count: 1, 2,", None),
        ("<think>I close with </think> at the end.</think>9", "I close with  at the end.", "9"),
        ("<think>I count.</think>", "I count.", None),
        ("<think>a</think>8 <think>no", "a8 no", None),
        ("<reasoning>I count.</reasoning>9", "I count.", "9"),
        ("[THINK]I count.[/THINK]9", "I count.", "9"),
        (
            "<|channel|>analysis<|message|>I count.<|end|><|start|>assistant<|channel|>final<|message|>9<|return|>",
            "I count.",
            "9",
        ),
        ("<|channel|>analysis<|message|>I count", "I count", None),
    ],
)
def test_a_thought_is_told_from_the_answer_behind_it(text, reasoning, answer):
    assert split_reasoning(text) == (reasoning, answer)
