"""What the model of a role is made from.

Invariant: it can be made before Megatron is imported, and pickles.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pentad.config.schema.trainer import TrainerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pentad.weights.hf_files import TensorSource


@dataclass(frozen=True)
class RoleModel:
    """The model of one role.

    Attributes:
        directory: it begins with.
        setting: that names the directory.
        settings: of the trainer, with the optimizer and the schedule of this role.
        optimizer_steps: of the whole run; None for a model that is never trained.
        is_critic: it has a value head, whatever the directory has.
    """

    directory: Path
    setting: str
    settings: TrainerSettings
    optimizer_steps: int | None
    is_critic: bool = False

    def open(self) -> "tuple[PreTrainedConfig, TensorSource]":
        """Configuration and tensors.

        Raises:
            UserError: they cannot be read.
        """
        from pentad.weights.checkpoint_model import open_weights
        from pentad.weights.critic import CriticReader, critic_config
        from pentad.weights.source import load_config

        config = load_config(self.directory)
        if self.is_critic:
            return critic_config(config), CriticReader(self.directory)
        return config, open_weights(self.directory)
