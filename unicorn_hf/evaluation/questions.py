"""The column `question`, which every task but captions needs."""

from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError


def read_questions(dataset, source) -> list[str]:
    """The column `question`.

    Raises:
        InputError: the column is missing, or one of its rows holds no text.
    """
    check_columns(dataset, "question", source=source)
    questions = dataset["question"][:]
    for row, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"{source}: row {row}: the question is {question!r}; expected a text")
    return questions
