"""Which devices run what: allocation strings, layouts, and what a model permits. No torch."""

from pentad.layout.layout import ENGINES, TRAINERS, Allocation, Component, Layout
from pentad.layout.parse import parse_allocation

__all__ = ["ENGINES", "TRAINERS", "Allocation", "Component", "Layout", "parse_allocation"]
