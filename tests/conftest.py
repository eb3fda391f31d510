"""Fixtures that more than one folder uses."""

import os

# One thread a process, also in those that tests start: sums keep their order, and runs are equal to the bit.
os.environ["OMP_NUM_THREADS"] = "1"

from demo_run import demo_output
from hub_server import hub

__all__ = ["demo_output", "hub"]
