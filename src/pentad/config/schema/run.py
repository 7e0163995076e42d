"""All settings of one run."""

from pydantic import Field

from pentad.config.schema.algorithms import AnyAlgorithm
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.base import Settings
from pentad.config.schema.critic import CriticSettings
from pentad.config.schema.data import DataSettings
from pentad.config.schema.evaluation import EvalSettings
from pentad.config.schema.experiment import ExperimentSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.model import ModelSettings
from pentad.config.schema.ray import RaySettings
from pentad.config.schema.reward import RewardSettings
from pentad.config.schema.rollout import RolloutSettings
from pentad.config.schema.trainer import TrainerSettings


class RunSettings(Settings):
    """What a configuration file says, checked and complete."""

    experiment: ExperimentSettings
    model: ModelSettings
    allocation: str = Field(
        "hf:d1|megatron:d1",
        description="engines and trainer with their layouts; reference and critic may have devices of their own",
    )
    data: DataSettings
    trainer: TrainerSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    algorithm: AnyAlgorithm
    critic: CriticSettings = CriticSettings()
    megatron: MegatronSettings = MegatronSettings()
    ray: RaySettings = RaySettings()

    @property
    def evals(self) -> dict[str, EvalSettings]:
        """`data.eval` with what each leaves to `rollout.*` and `data.*` filled in."""
        return {name: self._completed(one) for name, one in self.data.eval.items()}

    def _completed(self, one: EvalSettings) -> EvalSettings:
        rollout = self.rollout
        values: dict[str, int | float | None] = {"limit": self.data.eval_limit}
        if one.generates:
            values |= {
                "n": rollout.eval_n,
                "temperature": rollout.eval_temperature,
                "max_response_tokens": rollout.max_response_tokens,
            }
        return one.model_copy(update={name: v for name, v in values.items() if getattr(one, name) is None})

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response that an engine samples, in training or in an evaluation."""
        evaluated = [one.max_response_tokens or 0 for one in self.evals.values()]
        return max([self.rollout.max_response_tokens, *evaluated])

    @property
    def critic_warmup(self) -> int:
        """Steps at the beginning in which the critic alone is trained."""
        steps = self.critic.warmup_steps
        return steps if steps and "critic" in self.algorithm.roles else 0

    def optimizer_steps(self, role: Role) -> int | None:
        """Optimizer steps of the model in a role in the whole run; None for a reference, which is never trained."""
        if role == "reference":
            return None
        steps = self.trainer.total_steps - (self.critic_warmup if role == "policy" else 0)
        return steps * self.algorithm.updates
