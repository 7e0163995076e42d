"""Whether an allocation suits the other settings: one check for `pentad config` and for the run. No torch."""

from collections.abc import Iterator

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.layout import Allocation, parse_allocation
from pentad.layout.validate import check_supported
from pentad.run.vllm_checks import check_vllm


def check_allocation(settings: RunSettings) -> Iterator[UserError]:
    """What is wrong with the allocation, by itself and for the algorithm."""
    try:
        allocation = parse_allocation(settings.allocation)
    except UserError as problem:
        yield problem
        return
    for problem in check_supported(allocation):
        yield UserError(f"allocation: {problem.cause}", problem.fix)
    yield from check_vllm(settings, allocation)
    yield from _check_transport(settings, allocation)
    yield from _check_own(settings, allocation)
    if settings.trainer.max_staleness and allocation.rollout is not None and allocation.colocated:
        yield UserError(
            f"trainer.max_staleness is {settings.trainer.max_staleness}, but {allocation} has engines and trainer take "
            "turns on the same devices, so nothing can be generated while the trainer trains",
            f"write {allocation.rollout}+{allocation.trainer} (devices of their own), or set trainer.max_staleness=0",
        )
    if allocation.rollout is None:
        engine = f"hf:d{allocation.trainer.layout.world}"
        fix = f"write {engine}|{allocation.trainer} (same devices) or hf:d1+{allocation.trainer} (separate devices)"
        if settings.algorithm.trains_on == "rollouts":
            name = settings.algorithm.name
            yield UserError(f"allocation: algorithm {name} generates samples, but there is no rollout engine", fix)
        elif generated := [name for name, one in settings.data.eval.items() if one.generates]:
            yield UserError(
                f"allocation: data.eval.{generated[0]} is evaluated by generating, but there is no rollout engine",
                f"{fix}, set data.eval.{generated[0]}.measure=loss, or remove data.eval",
            )
    elif settings.algorithm.trains_on != "rollouts" and not any(one.generates for one in settings.data.eval.values()):
        yield UserError(
            f"allocation: {allocation.rollout} would do nothing: algorithm {settings.algorithm.name} generates "
            "only for data.eval, which is empty",
            f"write {allocation.trainer}, or name a data.eval source",
        )


def _check_transport(settings: RunSettings, allocation: Allocation) -> Iterator[UserError]:
    """A way for weights that the allocation rules out, whatever the machines are."""
    name = settings.rollout.transport
    if allocation.rollout is None or name in ("auto", "shared", "store"):
        return
    if name == "ipc" and (allocation.world_size > 1 or allocation.rollout.backend == "hf"):
        needs = "one GPU that a trainer and a vllm engine share"
    elif name == "nccl" and allocation.colocated:
        needs = "engines on other GPUs than the trainer's"
    else:
        return
    yield UserError(
        f"rollout.transport={name} needs {needs}; the allocation is {allocation}", "set rollout.transport=auto"
    )


def _check_own(settings: RunSettings, allocation: Allocation) -> Iterator[UserError]:
    """Components for models that the run does not have, or has inside another."""
    algorithm, advice = settings.algorithm, {"critic": "take an algorithm that reads values, as ppo"}
    for role in ("reference", "critic"):
        if (component := allocation.own(role)) is None:
            continue
        fix = f"write {allocation.without(component)}"
        if role not in algorithm.roles:
            instead = advice.get(role, "set algorithm.kl_coef above 0, where the algorithm has it")
            cause = f"algorithm {algorithm.name} has no {role} with these settings"
            yield UserError(f"allocation: {component} would do nothing: {cause}", f"{fix}, or {instead}")
        elif role == "reference" and settings.model.adapters is not None:
            yield UserError(
                f"allocation: {component} would do nothing: with model.lora the reference is the policy's own model "
                "with its adapters off",
                fix,
            )
