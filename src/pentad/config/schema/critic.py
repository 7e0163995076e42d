"""Settings of the critic, for algorithms that read values."""

from pydantic import Field

from pentad.config.schema.base import Settings
from pentad.config.schema.trainer import OptimizerSettings, ScheduleSettings


class CriticOptimizerSettings(OptimizerSettings):
    """`critic.optimizer.*`: AdamW, as `trainer.optimizer.*`."""

    lr: float = Field(1e-5, ge=0, description="highest learning rate")


class CriticSettings(Settings):
    """`critic.*`: a model with the trainer's dtype and microbatches, and an optimizer of its own."""

    model: str | None = Field(
        None,
        description="what the critic begins with: a language model, whose output layer is replaced by a head of zeros; "
        "a *ForTokenClassification or *ForSequenceClassification model with one label; or a checkpoint, of which it "
        "is the critic; null: model.path",
    )
    optimizer: CriticOptimizerSettings = CriticOptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    warmup_steps: int = Field(0, ge=0, description="steps at the beginning in which the critic alone is trained")
    export: bool = Field(False, description="write the critic to <run>/critic at the end")
