"""The work of a configuration's optimizer step and engines, as `pentad.planning` counts it.

Invariant: what is not known before the data is read is bounded by settings, and said in a note. No torch.
"""

from pathlib import Path
from typing import Any

from pentad.config.schema.run import RunSettings
from pentad.families.facts import ModelFacts
from pentad.families.model_files import facts_of
from pentad.layout import Allocation, Layout
from pentad.layout.pipeline import pipeline_chunks
from pentad.planning.adapters import adapter_parameters, adapter_work
from pentad.planning.engine import EngineWork
from pentad.planning.memory import Workload
from pentad.planning.parameters import model_parameters
from pentad.weights.source import CRITIC


def workload(
    settings: RunSettings, facts: ModelFacts, allocation: Allocation, longest: int | None = None
) -> tuple[Workload, EngineWork | None, tuple[str, ...]]:
    """The work of one optimizer step and of an engine under a configuration, and what had to be assumed.

    Args:
        longest: tokens of the longest sequence that is trained on, of a pair of one of the two; None where the data is
            not read.
    """
    trainer, algorithm, layout = settings.trainer, settings.algorithm, allocation.trainer.layout
    rollouts = algorithm.trains_on == "rollouts"
    if rollouts:
        bound, what = settings.data.max_prompt_tokens + settings.rollout.max_response_tokens, "samples"
        # Minibatches are of whole groups; the largest is planned.
        samples = -(-trainer.prompts_per_step // algorithm.updates) * settings.rollout.n
        why = "the longest; shorter ones make fewer"
    else:
        bound, what, why = settings.data.max_prompt_tokens, "rows", "data.max_prompt_tokens"
        samples = trainer.prompts_per_step * (2 if algorithm.trains_on == "preferences" else 1)
    if longest is not None:
        why = "the longest that the data gives; shorter ones make fewer"
    elif (longest := min(bound, facts.max_positions or bound)) < bound:
        # The settings are a bound, and often a default; a run looks at the prompts that it has.
        why = f"the model's positions; the settings would allow {bound:,}, and a run checks whether its prompts fit"
    notes = [f"microbatches are counted for {what} of {longest:,} tokens: {why}"]
    together = max(1, trainer.tokens_per_microbatch // longest)
    microbatches = max(1, -(-samples // (layout.data * together)))
    if layout.virtual > 1:
        microbatches = -(-microbatches // layout.pipeline) * layout.pipeline

    adapters, adapted = None, 0
    if (lora := settings.model.adapters) is not None:
        adapters = adapter_work(lora, facts, layout)
        whole = adapter_parameters(facts, Layout(), pipeline_chunks(facts, Layout())[0], adapters)
        share, adapted = whole.total / model_parameters(facts), whole.base
        notes.append(
            f"LoRA of rank {adapters.rank}: {whole.total:,} parameters are trained, {share:.2%} of the model's"
        )
    engine = EngineWork(
        adapted=adapted,
        sequences=settings.rollout.batch_size,
        tokens=longest if rollouts else _longest_evaluated(settings, facts),
        dtype="fp32" if settings.rollout.dtype == "fp32" else "bf16",
        sleeps=settings.rollout.sleep,
    )
    if allocation.rollout is not None and settings.rollout.engine is not None:
        notes.append(f"the memory of rollout.engine={settings.rollout.engine} is not known, and not counted")
    work = Workload(
        tokens=trainer.tokens_per_microbatch,
        microbatches=microbatches,
        sequence=longest,
        dtype="bf16" if trainer.dtype == "auto" else trainer.dtype,
        recompute=_recompute(settings.megatron.transformer),
        reference="reference" in algorithm.roles,
        critic=_critic(settings, facts),
        adapters=adapters,
    )
    return work, engine if settings.rollout.engine is None else None, tuple(notes)


def _critic(settings: RunSettings, policy: ModelFacts) -> ModelFacts | None:
    if "critic" not in settings.algorithm.roles:
        return None
    if settings.critic.model is None:
        return policy.as_critic()
    own = Path(settings.critic.model).expanduser() / CRITIC
    return facts_of(str(own) if (own / "config.json").is_file() else settings.critic.model).as_critic()


def _longest_evaluated(settings: RunSettings, facts: ModelFacts) -> int:
    """Tokens of the longest prompt and response of an evaluation."""
    bound = settings.data.max_prompt_tokens + settings.longest_response
    return min(bound, facts.max_positions or bound)


def _recompute(transformer: dict[str, Any]) -> Any:
    granularity = transformer.get("recompute_granularity")
    return granularity if granularity in ("selective", "full") else "none"
