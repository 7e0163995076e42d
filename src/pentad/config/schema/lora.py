"""Settings of LoRA: which modules get an adapter, how large, and what it begins with."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from pentad.config.schema.base import Settings

ALL_LINEAR = "all-linear"


class LoraSettings(Settings):
    """`model.lora.*`: https://arxiv.org/abs/2106.09685, with the names and the meaning of PEFT."""

    rank: int = Field(
        0,
        ge=0,
        description="rows of A and columns of B; the model is frozen. 0: no adapters, all of the model is trained",
    )
    alpha: float | None = Field(None, gt=0, description="the adapter is scaled by alpha / rank; null: alpha is rank")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    dropout: float = Field(0.0, ge=0, lt=1, description="part of an adapter's input that is zeroed in training")
    targets: str | list[str] = Field(
        ALL_LINEAR,
        description="modules with an adapter: endings of Hugging Face module names, or one regular expression; "
        "all-linear: every projection, those of experts included, routers not",
    )
    exclude: str | list[str] = Field([], description="modules without one, named in the same way")
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming",
        description="what A begins with (B begins with 0): uniform as torch's linear layers, or normal, 1/rank",
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the adapters; auto: as trainer.dtype")
    adapter: Path | None = Field(
        None, strict=False, description="a PEFT adapter to go on from; rank, alpha and targets must be its own"
    )

    @property
    def scale(self) -> float:
        """What `B A x` is multiplied by; of settings with a rank."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
