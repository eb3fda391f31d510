"""Fixtures that more than one folder uses."""

from hub_server import hub

__all__ = ["hub"]
