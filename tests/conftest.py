"""Fixtures that more than one folder uses."""

import os

# One thread a process, also in those that tests start: they share two cores. No test depends on the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging

import pytest
from demo_run import demo_output
from hub_server import hub

__all__ = ["demo_output", "hub"]

# The libraries whose log also says what a later release will take away.
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "transformers", "trl")
# Between the libraries: an assistant model's draft in transformers passes both to its own `generate`.
NOT_OURS = ("Passing `generation_config` together with generation-related arguments",)


class _Deprecations(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        message = record.getMessage()
        told = "deprecated" in message.lower() or "will be removed" in message.lower()
        if told and not message.startswith(NOT_OURS):
            self.messages.append(message)


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used():
    """Fails a test in whose process a library has logged that something is deprecated."""
    handler = _Deprecations()
    for name in LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    yield
    for name in LIBRARIES:
        logging.getLogger(name).removeHandler(handler)
    assert not handler.messages
