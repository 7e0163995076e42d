"""One class an algorithm, told apart by `algorithm.name`. No torch."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pentad.config.schema.algorithms.base import AlgorithmSettings
from pentad.config.schema.algorithms.custom import CustomSettings
from pentad.config.schema.algorithms.grpo import GRPOSettings
from pentad.config.schema.algorithms.sft import SFTSettings

ALGORITHMS: dict[str, type[AlgorithmSettings]] = {
    "grpo": GRPOSettings,
    "sft": SFTSettings,
}
CUSTOM = "module:Class"


def _tag(value: Any) -> str:
    name = value.get("name", "grpo") if isinstance(value, dict) else getattr(value, "name", "grpo")
    if isinstance(name, str) and ":" in name:
        return CUSTOM
    # A name that does not exist is refused by the field, which knows what may be written.
    return name if isinstance(name, str) and name in ALGORITHMS else "grpo"


AnyAlgorithm = Annotated[
    Annotated[GRPOSettings, Tag("grpo")] | Annotated[SFTSettings, Tag("sft")] | Annotated[CustomSettings, Tag(CUSTOM)],
    Discriminator(_tag),
    Field(default_factory=GRPOSettings),
]

__all__ = ["ALGORITHMS", "CUSTOM", "AlgorithmSettings", "AnyAlgorithm", "CustomSettings", "GRPOSettings", "SFTSettings"]
