"""All settings of one run."""

from pydantic import Field

from pentad.config.algorithm import AlgorithmSettings
from pentad.config.base import Settings
from pentad.config.cluster import RaySettings
from pentad.config.data import DataSettings
from pentad.config.experiment import ExperimentSettings
from pentad.config.megatron import MegatronSettings
from pentad.config.model import ModelSettings
from pentad.config.reward import RewardSettings
from pentad.config.rollout import RolloutSettings
from pentad.config.trainer import TrainerSettings


class RunSettings(Settings):
    """What a configuration file says, checked and complete."""

    experiment: ExperimentSettings
    model: ModelSettings
    allocation: str = Field("hf:d1|megatron:d1", description="engines and trainer with their layouts")
    data: DataSettings
    trainer: TrainerSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    megatron: MegatronSettings = MegatronSettings()
    ray: RaySettings = RaySettings()
