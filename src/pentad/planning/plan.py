"""The plan of a model on a layout: stages, parameters, memory and time, as one value.

Invariant: a plan exists only for a layout that the model permits.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout.cluster_checks import check_cluster, check_dtype, check_microbatches, check_projections
from pentad.layout.context import context_method
from pentad.layout.layout import Allocation, Layout
from pentad.layout.pipeline import Chunk, pipeline_chunks
from pentad.layout.validate import check_layout, refuse
from pentad.planning.apart import ApartPlan, plan_apart, policy_work
from pentad.planning.coefficients import GIB
from pentad.planning.cost import StepTime, predict_time
from pentad.planning.engine import EngineMemory, EngineWork, predict_engine
from pentad.planning.gpus import Gpu
from pentad.planning.memory import RECOMPUTE, RankMemory, Workload, predict_memory, predict_peak
from pentad.planning.parameters import active_parameters, model_parameters
from pentad.planning.rank import Candidate, rank_layouts


@dataclass(frozen=True)
class LayoutPlan:
    """An allocation, planned.

    Attributes:
        model: the model's name.
        engine: memory of the rollout engines on each of their GPUs, if there are any and it is known; where they share
            the trainer's GPUs it is also in `memory`.
        apart: reference and critic, where they have GPUs of their own; `memory` and `time` are without them then.
        chunks: of each pipeline stage.
        memory: of each rank of each pipeline stage.
        notes: what the user should know; the plan is legal all the same.
    """

    model: str
    facts: ModelFacts
    allocation: Allocation
    gpu: Gpu
    work: Workload
    chunks: tuple[tuple[Chunk, ...], ...]
    memory: tuple[RankMemory, ...]
    engine: EngineMemory | None
    time: StepTime
    notes: tuple[str, ...]
    apart: tuple[ApartPlan, ...] = ()

    @property
    def layout(self) -> Layout:
        """The trainer's layout."""
        return self.allocation.trainer.layout

    @property
    def peak(self) -> RankMemory:
        """The rank that needs most memory."""
        return max(self.memory, key=lambda rank: rank.total)

    @property
    def excess(self) -> int:
        """Bytes by which the trainer's peak passes the GPU's memory; 0 or less where it fits."""
        return self.peak.total - int(self.gpu.memory_gib * GIB)

    @property
    def engine_excess(self) -> int:
        """Bytes by which an engine on GPUs of its own passes the GPU's memory; 0 or less where it fits."""
        if self.engine is None or self.allocation.colocated:
            return 0
        return self.engine.total - int(self.gpu.memory_gib * GIB)

    @property
    def fits(self) -> bool:
        """Whether trainer, engines, and what is apart fit."""
        apart = all(part.excess(self.gpu) <= 0 for part in self.apart)
        return self.excess <= 0 and self.engine_excess <= 0 and apart


def make_plan(
    model: str,
    facts: ModelFacts,
    allocation: Allocation,
    gpu: Gpu,
    work: Workload,
    engine_work: EngineWork | None,
    notes: tuple[str, ...] = (),
) -> LayoutPlan:
    """Plan trainer and rollout engines of an allocation.

    Args:
        engine_work: what each engine generates; None where its memory is not known.

    Raises:
        UserError: the model does not permit the layout, or the workload cannot be.
    """
    layout = allocation.trainer.layout
    check_work(work)
    problems = [
        *check_layout(facts, layout),
        *check_projections(facts, layout),
        *check_microbatches(layout, work.microbatches),
    ]
    refuse(problems, f"{model} on {allocation.trainer}")
    apart, apart_notes = plan_apart(facts, allocation, work, gpu)
    notes += apart_notes
    work = policy_work(allocation, work)
    if work.critic is not None:
        refuse(
            [*check_layout(work.critic, layout), *check_projections(work.critic, layout)],
            f"the critic on {allocation.trainer}",
        )
    time = predict_time(facts, layout, work, gpu)
    notes += tuple(f"{item.cause}; {item.fix}" for item in check_cluster(layout, gpu.per_node))
    engine = None
    if allocation.rollout is not None and engine_work is not None:
        engine = predict_engine(facts, allocation.rollout, engine_work)
        work = replace(work, engine=engine if allocation.colocated else None)
    memory = predict_memory(facts, layout, work)
    chunks = pipeline_chunks(facts, layout)
    return LayoutPlan(model, facts, allocation, gpu, work, chunks, memory, engine, time, notes, apart)


def make_ranking(facts: ModelFacts, gpus: int, gpu: Gpu, work: Workload, step_tokens: int) -> list[Candidate]:
    """All legal layouts on that many GPUs, best first.

    Raises:
        UserError: the workload cannot be.
    """
    check_work(work)
    if gpus < 1 or step_tokens < 1:
        what = f"--gpus {gpus}" if gpus < 1 else f"--step-tokens {step_tokens}"
        raise UserError(f"{what} is not a whole number above 0", "give 1 or more")
    if step_tokens < work.tokens:
        cause = f"--step-tokens {step_tokens} does not fill one microbatch of {work.tokens} tokens on any layout"
        raise UserError(cause, f"give {work.tokens} or more, or smaller microbatches with --tokens")
    return rank_layouts(facts, gpus, gpu, work, step_tokens)


def check_work(work: Workload) -> None:
    """Refuse a workload that cannot be.

    Raises:
        UserError: a size below 1, an unknown dtype or recomputation.
    """
    refuse(check_dtype(work.dtype), "dtype")
    for name in ("tokens", "microbatches", "sequence"):
        if getattr(work, name) < 1:
            raise UserError(f"{name} is {getattr(work, name)}", f"give {name} as 1 or more")
    if work.sequence > work.tokens:
        cause = f"sequences of {work.sequence} tokens do not fit into a microbatch of {work.tokens}"
        raise UserError(cause, f"give a sequence of {work.tokens} tokens or less, or larger microbatches")
    if work.recompute not in RECOMPUTE:
        raise UserError(f"recompute: there is no {work.recompute!r}", f"use one of {', '.join(RECOMPUTE)}")


def lighter(plan: LayoutPlan) -> str | None:
    """What would make a trainer fit that does not: recomputation, or an engine that sleeps; None if neither does."""
    limit, engine = plan.gpu.memory_gib * GIB, plan.work.engine
    asleep = None if engine is None else replace(engine, work=replace(engine.work, sleeps=True))
    heavier = RECOMPUTE[RECOMPUTE.index(plan.work.recompute) + 1 :]
    awake = engine is not None and not engine.work.sleeps
    tries = [("rollout.sleep=true", replace(plan.work, engine=asleep))] if awake else []
    tries += [(f"recompute {recompute}", replace(plan.work, recompute=recompute)) for recompute in heavier]
    if awake:
        tries += [
            (f"rollout.sleep=true and recompute {recompute}", replace(plan.work, engine=asleep, recompute=recompute))
            for recompute in heavier
        ]
    for change, work in tries:
        if predict_peak(plan.facts, plan.layout, work).total <= limit:
            return change
    return None


def fewer_sequences(plan: LayoutPlan) -> int | None:
    """How many sequences an engine on GPUs of its own could decode at once, if that would make it fit."""
    if plan.engine is None or plan.allocation.rollout is None:
        return None
    sequences = plan.engine.work.sequences
    while sequences > 1:
        sequences //= 2
        smaller = predict_engine(plan.facts, plan.allocation.rollout, replace(plan.engine.work, sequences=sequences))
        if smaller.total <= plan.gpu.memory_gib * GIB:
            return sequences
    return None


def plan_to_json(plan: LayoutPlan) -> dict[str, Any]:
    """Everything that a plan says, in plain values. Memory in bytes, times in seconds."""
    return {
        **_common(plan.model, plan.facts, plan.gpu, plan.work),
        "allocation": str(plan.allocation),
        "gpus": plan.allocation.world_size,
        "trainer_gpus": plan.layout.world,
        "context_method": context_method(plan.facts, plan.layout),
        "fits": plan.fits,
        "excess_bytes": plan.excess,
        "engine": _engine(plan),
        "apart": [part.as_json(plan.gpu) for part in plan.apart],
        "microbatches": plan.work.microbatches,
        "bubble": plan.time.bubble,
        "step": _time(plan.time),
        "stages": [
            {
                "stage": rank.stage,
                "chunks": [
                    {"layers": list(chunk.layers), "embedding": chunk.embedding, "head": chunk.head} for chunk in chunks
                ],
                "parameters": rank.parameters.parts,
                "memory": dict(rank.components),
                "peak_bytes": rank.total,
                "allocated_bytes": rank.allocated,
            }
            for rank, chunks in zip(plan.memory, plan.chunks, strict=True)
        ],
        "notes": list(plan.notes),
    }


def _engine(plan: LayoutPlan) -> dict[str, Any] | None:
    if plan.engine is None:
        return None
    return {
        "component": str(plan.allocation.rollout),
        "shares_gpus": plan.allocation.colocated,
        **asdict(plan.engine.work),
        "memory": dict(plan.engine.components),
        "peak_bytes": plan.engine.total,
        "excess_bytes": plan.engine_excess,
    }


def ranking_to_json(
    model: str, facts: ModelFacts, gpus: int, gpu: Gpu, work: Workload, step_tokens: int, candidates: list[Candidate]
) -> dict[str, Any]:
    """Every candidate, best first, in plain values."""
    best = candidates[0]
    return {
        **_common(model, facts, gpu, work),
        "gpus": gpus,
        "step_tokens": step_tokens,
        "layouts": [
            {
                "allocation": f"megatron:{item.layout}",
                "fits": item.fits,
                "excess_bytes": item.excess,
                "peak_bytes": item.peak.total,
                "memory": dict(item.peak.components),
                "microbatches": item.microbatches,
                "bubble": item.time.bubble,
                "step": _time(item.time),
                "reason": item.reason(best),
            }
            for item in candidates
        ],
    }


def _common(model: str, facts: ModelFacts, gpu: Gpu, work: Workload) -> dict[str, Any]:
    return {
        "model": model,
        "facts": asdict(facts),
        "parameters": model_parameters(facts),
        "active_parameters": active_parameters(facts),
        "gpu": asdict(gpu),
        "tokens": work.tokens,
        "sequence": work.sequence,
        "dtype": work.dtype,
        "recompute": work.recompute,
    }


def _time(time: StepTime) -> dict[str, Any]:
    parts = dict(time.parts)
    return {"seconds": time.total, "parts": parts, "tokens_per_second": time.tokens_per_second, "mfu": time.mfu}
