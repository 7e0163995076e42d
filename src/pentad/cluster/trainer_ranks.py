"""The ranks of one trainer component as the driver sees them, and the models that they have.

Invariant: every rank has every model of its component, and none of another's.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from pentad.cluster.cluster import Cluster
from pentad.cluster.role_model import RoleModel
from pentad.cluster.trainer_actor import TrainerActor
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.run import RunSettings
from pentad.layout import Component
from pentad.record.phases import CRITIC, REFERENCE, TRAINER
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan, plan_microbatches

_NAMES: dict[Role, str] = {"policy": TRAINER, "reference": REFERENCE, "critic": CRITIC}


class TrainerRanks:
    """All ranks of a component.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory, in every role.
        cluster: where they are placed.
        component: whose devices they have.
        roles: optimizer steps of the whole run in each role; None for a model that is never trained.
        critic: what the critic begins with, as a directory; None: as the others.

    Attributes:
        dtype: of the weights, once they are built.
    """

    def __init__(
        self,
        settings: RunSettings,
        directory: Path,
        cluster: Cluster,
        component: Component,
        roles: Mapping[Role, int | None],
        critic: Path | None,
    ) -> None:
        self.layout = component.layout
        self.roles = dict(roles)
        name = _NAMES[component.role or "policy"]
        deadline_s, publishes = settings.trainer.deadline_s, "policy" in roles
        self.gang = cluster.spawn(TrainerActor, name, component, deadline_s, publishes=publishes)
        self.dtype = torch.float32
        self._max_tokens = settings.trainer.tokens_per_microbatch
        models = {role: _model_of(role, steps, settings, directory, critic) for role, steps in roles.items()}
        self._arguments = (
            self.layout,
            settings.megatron,
            models,
            settings.experiment.seed,
            settings.model.adapters,
        )

    @property
    def trains(self) -> bool:
        """Whether a model here is trained."""
        return any(steps is not None for steps in self.roles.values())

    @property
    def machines(self) -> Counter[str]:
        """How many of the ranks are on each machine."""
        return Counter(self.gang.info(rank).machine for rank in range(len(self.gang)))

    async def build(self, neighbours: Mapping[str, int]) -> None:
        """Have the models loaded on every rank, once their processes run.

        Args:
            neighbours: ranks of all components on each machine, which share its cores.
        """
        gang, phase = self.gang, "start-up"
        meeting = await gang.call_rank(0, "open_meeting", gang.deadline_s, phase=phase)
        machines = [gang.info(rank).machine for rank in range(len(gang))]
        arguments = [(meeting, *self._arguments, neighbours[machine]) for machine in machines]
        self.dtype = (await gang.call_each("build", arguments, phase))[0]["dtype"]

    def plan(self, batch: Batch) -> Plan:
        """How a batch is packed and shared out."""
        # Interleaved schedules deal microbatches to the stages in turn.
        multiple = self.layout.pipeline if self.layout.virtual > 1 else 1
        pairs = batch.per_sequence.get("pair_ids")
        together = None if pairs is None else pairs.tolist()
        return plan_microbatches(
            batch.lengths, self.layout.data, self._max_tokens, multiple=multiple, together=together
        )


def _model_of(
    role: Role, optimizer_steps: int | None, settings: RunSettings, directory: Path, critic: Path | None
) -> RoleModel:
    trainer = settings.trainer
    if role != "critic":
        return RoleModel(directory, "model.path", trainer, optimizer_steps)
    own = settings.critic
    trainer = trainer.model_copy(update={"optimizer": own.optimizer, "schedule": own.schedule})
    setting = "model.path" if critic is None else "critic.model"
    return RoleModel(critic or directory, setting, trainer, optimizer_steps, is_critic=True)
