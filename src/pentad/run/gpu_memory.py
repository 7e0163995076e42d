"""Whether there are enough GPUs on this machine, and a run can fit on them, asked before anything is started."""

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout import Allocation
from pentad.layout.validate import refuse
from pentad.planning.adapters import adapter_work
from pentad.planning.engine import EngineWork
from pentad.planning.least import check_memory
from pentad.record.machine import gpus_here


def check_gpus(
    settings: RunSettings, facts: ModelFacts, allocation: Allocation, critic: ModelFacts | None = None
) -> None:
    """Refuse a run of more GPUs than this machine has, or whose weights, optimizer and caches exceed their memory.

    Without a GPU here, or with a cluster of other machines (`ray.address`), nothing is known and nothing refused.

    Args:
        critic: that is trained beside the policy.

    Raises:
        UserError: there are too few, or it cannot fit.
    """
    if settings.ray.address is not None or not (gpus := gpus_here()):
        return
    if allocation.world_size > len(gpus):
        raise UserError(
            f"allocation {allocation} needs {allocation.world_size} GPUs; this machine has {len(gpus)}",
            f"choose an allocation of at most {len(gpus)}, or name a cluster of more machines in ray.address",
        )
    memory = min(gib for _, gib in gpus)
    rollout = settings.rollout
    engine = EngineWork(
        sequences=rollout.batch_size,
        # Prompts are not read yet; each has one token at least.
        tokens=settings.longest_response + 1,
        dtype="fp32" if rollout.dtype == "fp32" else "bf16",
        sleeps=rollout.sleep,
    )
    # What an engine of the user's own holds is not known.
    known = engine if rollout.engine is None else None
    dtype = "fp32" if settings.trainer.dtype == "fp32" else "bf16"
    lora = settings.model.adapters
    adapters = None if lora is None else adapter_work(lora, facts, allocation.trainer.layout)
    refuse(check_memory(facts, allocation, dtype, known, memory, adapters, critic), f"allocation {allocation}")
