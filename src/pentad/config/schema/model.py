"""Settings that name the model to be trained."""

from pathlib import Path

from pydantic import Field

from pentad.config.schema.base import Settings
from pentad.config.schema.lora import LoraSettings


class ModelSettings(Settings):
    """`model.*`"""

    path: str = Field(description="Hugging Face directory, checkpoint, hub id, or a .gguf file")
    tokenizer: str | None = Field(None, description="where the tokenizer is; default: with the model")
    chat_template: Path | None = Field(
        None, strict=False, description="a Jinja file that replaces the tokenizer's chat template"
    )
    lora: LoraSettings = LoraSettings()

    @property
    def adapters(self) -> LoraSettings | None:
        """What adapters are trained; None: the whole model is trained."""
        return self.lora if self.lora.rank else None
