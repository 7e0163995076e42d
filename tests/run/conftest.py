"""Fixtures for runs of the real command on the quickstart's tiny model."""

from quickstart import pentad, quickstart

__all__ = ["pentad", "quickstart"]
