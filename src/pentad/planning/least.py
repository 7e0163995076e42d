"""The least memory that a run needs on its GPUs, for refusing before the start what cannot fit.

Invariant: only what is certainly held at one time is counted (weights, gradients, optimizer, an engine's weights and
cache), so that nothing is refused that could have run.
"""

from collections.abc import Sequence

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Allocation
from pentad.layout.validate import Problem
from pentad.planning.adapters import AdapterWork
from pentad.planning.apart import memory_apart, policy_work
from pentad.planning.coefficients import GIB
from pentad.planning.engine import EngineWork, predict_engine
from pentad.planning.memory import RankMemory, Workload, predict_memory

_STATE = ("weights", "gradients", "optimizer", "critic")


def check_memory(
    facts: ModelFacts,
    allocation: Allocation,
    dtype: str,
    engine: EngineWork | None,
    memory_gib: float,
    adapters: AdapterWork | None = None,
    critic: ModelFacts | None = None,
) -> list[Problem]:
    """What cannot fit on GPUs of that much memory; empty when it may fit. The layout must be legal for the model.

    Args:
        dtype: of the trainer, `bf16` or `fp32`.
        engine: what each rollout engine generates; None where its memory is not known.
        memory_gib: of one GPU, in GiB.
        adapters: that are trained instead of the model.
        critic: facts of the critic that is trained beside it.
    """
    layout, rollout = allocation.trainer.layout, allocation.rollout
    work = Workload(1, layout.pipeline, 1, dtype, adapters=adapters, critic=critic)
    ranks = predict_memory(facts, layout, policy_work(allocation, work))
    needs = {str(allocation.trainer): _state(ranks)}
    apart = {str(component): _state(memory) for component, (_, memory) in memory_apart(facts, allocation, work).items()}
    if rollout is not None and engine is not None:
        parts = predict_engine(facts, rollout, engine).components
        needs[str(rollout)] = parts["weights"] + parts["cache"]
    if allocation.colocated and engine is not None:
        needs = {str(allocation): sum(needs.values())}
    needs |= apart
    more = "take more GPUs: t, p or e divide the weights, d the optimizer's state"
    fixes = {
        **dict.fromkeys((str(allocation.trainer), *apart), more),
        str(rollout): "lower rollout.batch_size, or take a smaller model or larger GPUs",
        str(allocation): "give engines and trainer GPUs of their own (+ instead of |), or take more GPUs",
    }
    return [
        Problem(f"{who} needs at least {size / GIB:.1f} GiB on each GPU, which have {memory_gib:.1f} GiB", fixes[who])
        for who, size in needs.items()
        if size > memory_gib * GIB
    ]


def _state(ranks: Sequence[RankMemory]) -> int:
    """Bytes that the rank with most has all the time."""
    return max(sum(rank.components[part] for part in _STATE) for rank in ranks)
