"""One class an algorithm, told apart by `algorithm.name`. No torch."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pentad.config.schema.algorithms.base import AlgorithmSettings
from pentad.config.schema.algorithms.cispo import CISPOSettings
from pentad.config.schema.algorithms.custom import CustomSettings
from pentad.config.schema.algorithms.dapo import DAPOSettings
from pentad.config.schema.algorithms.dpo import DPOSettings
from pentad.config.schema.algorithms.dr_grpo import DrGRPOSettings
from pentad.config.schema.algorithms.grpo import GRPOSettings
from pentad.config.schema.algorithms.gspo import GSPOSettings
from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.config.schema.algorithms.ppo import PPOSettings
from pentad.config.schema.algorithms.reinforce_pp import ReinforcePPSettings
from pentad.config.schema.algorithms.rloo import RLOOSettings
from pentad.config.schema.algorithms.sft import SFTSettings

ALGORITHMS: dict[str, type[AlgorithmSettings]] = {
    "grpo": GRPOSettings,
    "dr_grpo": DrGRPOSettings,
    "dapo": DAPOSettings,
    "rloo": RLOOSettings,
    "reinforce_pp": ReinforcePPSettings,
    "gspo": GSPOSettings,
    "cispo": CISPOSettings,
    "ppo": PPOSettings,
    "dpo": DPOSettings,
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
    Annotated[GRPOSettings, Tag("grpo")]
    | Annotated[DrGRPOSettings, Tag("dr_grpo")]
    | Annotated[DAPOSettings, Tag("dapo")]
    | Annotated[RLOOSettings, Tag("rloo")]
    | Annotated[ReinforcePPSettings, Tag("reinforce_pp")]
    | Annotated[GSPOSettings, Tag("gspo")]
    | Annotated[CISPOSettings, Tag("cispo")]
    | Annotated[PPOSettings, Tag("ppo")]
    | Annotated[DPOSettings, Tag("dpo")]
    | Annotated[SFTSettings, Tag("sft")]
    | Annotated[CustomSettings, Tag(CUSTOM)],
    Discriminator(_tag),
    Field(default_factory=GRPOSettings),
]

__all__ = [
    "ALGORITHMS",
    "CUSTOM",
    "AlgorithmSettings",
    "AnyAlgorithm",
    "CISPOSettings",
    "CustomSettings",
    "DAPOSettings",
    "DPOSettings",
    "DrGRPOSettings",
    "GRPOSettings",
    "GSPOSettings",
    "PPOSettings",
    "PolicyGradientSettings",
    "RLOOSettings",
    "ReinforcePPSettings",
    "SFTSettings",
]
