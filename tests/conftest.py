"""Fixtures that more than one folder uses."""

from demo_run import demo_output
from hub_server import hub

__all__ = ["demo_output", "hub"]
