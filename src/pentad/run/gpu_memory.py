"""Whether a run can fit on the GPUs of this machine, asked before anything is started."""

from pentad.config.schema.run import RunSettings
from pentad.families.facts import ModelFacts
from pentad.layout import Allocation
from pentad.layout.validate import refuse
from pentad.planning.adapters import adapter_work
from pentad.planning.engine import EngineWork
from pentad.planning.least import check_memory
from pentad.record.machine import smallest_gpu_gib


def check_gpus(
    settings: RunSettings, facts: ModelFacts, allocation: Allocation, critic: ModelFacts | None = None
) -> None:
    """Refuse a run whose weights, optimizer and caches exceed the memory of this machine's GPUs.

    Without a GPU here, or with a cluster of other machines (`ray.address`), nothing is known and nothing refused.

    Args:
        critic: that is trained beside the policy.

    Raises:
        UserError: it cannot fit.
    """
    if settings.ray.address is not None or (memory := smallest_gpu_gib()) is None:
        return
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
