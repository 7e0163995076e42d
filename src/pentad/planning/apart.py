"""Reference and critic on GPUs of their own: what their ranks hold, and for how long they work.

Invariant: each model of a workload is counted once, on the component whose ranks have it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout.cluster_checks import check_cluster, check_projections
from pentad.layout.layout import Allocation, Component, TrainedRole
from pentad.layout.validate import check_layout, refuse
from pentad.planning.coefficients import BYTES, GIB
from pentad.planning.cost import predict_scoring_time, predict_time
from pentad.planning.gpus import Gpu
from pentad.planning.memory import RankMemory, Workload, predict_memory, predict_scoring


@dataclass(frozen=True)
class ApartPlan:
    """A component of models that have GPUs of their own, planned.

    Attributes:
        roles: of its models.
        devices: its first and last GPU.
        memory: of each rank of each pipeline stage.
        seconds: predicted time of its work of one optimizer step, which it does beside the policy's.
    """

    component: Component
    roles: tuple[TrainedRole, ...]
    devices: tuple[int, int]
    memory: tuple[RankMemory, ...]
    seconds: float

    @property
    def name(self) -> str:
        """Its models in words."""
        return " and ".join(self.roles)

    @property
    def peak(self) -> RankMemory:
        """The rank that needs most memory."""
        return max(self.memory, key=lambda rank: rank.total)

    def excess(self, gpu: Gpu) -> int:
        """Bytes by which the peak passes the GPU's memory; 0 or less where it fits."""
        return self.peak.total - int(gpu.memory_gib * GIB)

    def as_json(self, gpu: Gpu) -> dict[str, Any]:
        """Everything that it says, in plain values."""
        return {
            "component": str(self.component),
            "roles": list(self.roles),
            "gpus": self.component.layout.world,
            "step_seconds": self.seconds,
            "excess_bytes": self.excess(gpu),
            "stages": [
                {"stage": rank.stage, "memory": dict(rank.components), "peak_bytes": rank.total}
                | {"parameters": asdict(rank.parameters)}
                for rank in self.memory
            ],
        }


def roles_of(work: Workload) -> list[TrainedRole]:
    """The models that a workload has."""
    # With adapters the reference is the policy's own model.
    reference: list[TrainedRole] = ["reference"] if work.reference and work.adapters is None else []
    critic: list[TrainedRole] = ["critic"] if work.critic is not None else []
    return ["policy", *reference, *critic]


def policy_work(allocation: Allocation, work: Workload) -> Workload:
    """What the ranks of the policy do: the workload without the models that are elsewhere."""
    here = allocation.homes(roles_of(work))[allocation.trainer]
    elsewhere = set(roles_of(work)) - set(here)
    return replace(
        work,
        reference=work.reference and "reference" not in elsewhere,
        critic=None if "critic" in elsewhere else work.critic,
    )


def check_components(allocation: Allocation, work: Workload) -> None:
    """Refuse a component of a model that the workload does not have.

    Raises:
        UserError: there is one.
    """
    for component in allocation.components:
        if component.role is not None and component.role not in roles_of(work):
            raise UserError(
                f"allocation: {component} has no {component.role} to hold in this workload",
                f"write {allocation.without(component)}, or plan a configuration that has a {component.role}",
            )


def memory_apart(
    facts: ModelFacts, allocation: Allocation, work: Workload
) -> dict[Component, tuple[tuple[TrainedRole, ...], tuple[RankMemory, ...]]]:
    """Models and memory of each component that is not the policy's. The layouts must be legal for the models."""
    found = {}
    for component, roles in allocation.homes(roles_of(work)).items():
        if component != allocation.trainer:
            found[component] = (tuple(roles), _memory(facts, component, roles, _own_work(allocation, component, work)))
    return found


def plan_apart(
    facts: ModelFacts, allocation: Allocation, work: Workload, gpu: Gpu
) -> tuple[tuple[ApartPlan, ...], tuple[str, ...]]:
    """Plan what is not the policy's, and what should be known of it.

    Raises:
        UserError: a model does not permit its layout.
    """
    check_components(allocation, work)
    notes: list[str] = []
    for component, roles in allocation.homes(roles_of(work)).items():
        for model in dict.fromkeys(_facts(role, facts, work) for role in roles):
            subject = f"{' and '.join(roles)} on {component}"
            if component != allocation.trainer:
                refuse([*check_layout(model, component.layout), *check_projections(model, component.layout)], subject)
        if component != allocation.trainer:
            problems = check_cluster(component.layout, gpu.per_node)
            notes += [f"{component}: {item.cause}; {item.fix}" for item in problems]
    plans = []
    for component, (roles, memory) in memory_apart(facts, allocation, work).items():
        devices = allocation.devices(component)
        own = _own_work(allocation, component, work)
        seconds = sum(_seconds(role, _facts(role, facts, work), component, own, gpu) for role in roles)
        plans.append(ApartPlan(component, roles, (devices[0], devices[-1]), memory, seconds))
    return tuple(plans), tuple(notes)


def _facts(role: TrainedRole, policy: ModelFacts, work: Workload) -> ModelFacts:
    return work.critic if role == "critic" and work.critic is not None else policy


def _own_work(allocation: Allocation, component: Component, work: Workload) -> Workload:
    """The same tokens in as many microbatches as other replicas make of them, without any other model."""
    layout = component.layout
    count = -(-work.microbatches * allocation.trainer.layout.data // layout.data)
    if layout.virtual > 1:
        count = -(-count // layout.pipeline) * layout.pipeline
    return replace(work, microbatches=count, reference=False, critic=work.critic, engine=None, adapters=None)


def _memory(
    facts: ModelFacts, component: Component, roles: list[TrainedRole], work: Workload
) -> tuple[RankMemory, ...]:
    layout, own = component.layout, replace(work, critic=None)
    if work.critic is None or "critic" not in roles:
        return predict_scoring(facts, layout, own)
    ranks = predict_memory(work.critic, layout, own)
    if "reference" not in roles:
        return ranks
    held = [rank.parameters.total * BYTES[work.dtype] for rank in predict_scoring(facts, layout, own)]
    return tuple(
        replace(rank, components={**rank.components, "reference": size}) for rank, size in zip(ranks, held, strict=True)
    )


def _seconds(role: TrainedRole, facts: ModelFacts, component: Component, work: Workload, gpu: Gpu) -> float:
    own = replace(work, critic=None)
    scoring = predict_scoring_time(facts, component.layout, own, gpu)
    return scoring if role == "reference" else scoring + predict_time(facts, component.layout, own, gpu).total
