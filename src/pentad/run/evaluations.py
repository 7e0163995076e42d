"""The parts of an evaluation, in a run and alone.

Invariant: a set is sampled and scored by its own settings where it has them, otherwise by those of the run.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

from transformers import PreTrainedTokenizerBase

from pentad.config.schema.run import RunSettings
from pentad.data.prompts import EncodedPrompts
from pentad.layout import Layout
from pentad.loops.evaluation import EvaluationSet
from pentad.loops.scoring import Decode, Scorer
from pentad.rewards.pool import RewardPool
from pentad.rewards.pools import RewardPools
from pentad.run.prepare import response_limit
from pentad.samples.request import SamplingParams


class Scorers:
    """One scorer for each pool of rewards.

    Args:
        pools: None where nothing is scored.
        tell: is told of failures: kind and message.
        stack: closes the scorers.
        working: a context that a round of calls is in.

    Attributes:
        common: that of `reward.*`; None where it scores nothing.
    """

    def __init__(
        self,
        pools: RewardPools | None,
        tokenizer: PreTrainedTokenizerBase,
        tell: Callable[[str, str], None],
        stack: ExitStack,
        working: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        decode, made = _decoder(tokenizer), dict[RewardPool, Scorer]()

        def scorer(pool: RewardPool) -> Scorer:
            if pool not in made:
                made[pool] = Scorer(pool, decode, tell, working)
                stack.callback(made[pool].close)
            return made[pool]

        self.common = scorer(pools.common) if pools is not None and pools.common is not None else None
        self._own = {} if pools is None else {name: scorer(pool) for name, pool in pools.own.items()}

    def of(self, name: str) -> Scorer:
        """What scores an evaluation."""
        found = self._own.get(name, self.common)
        if found is None:
            raise RuntimeError(f"evaluation {name} has no reward")
        return found


def evaluation_sets(
    evals: Mapping[str, EncodedPrompts], settings: RunSettings, scorers: Scorers
) -> dict[str, EvaluationSet]:
    """What engines answer, and how."""
    sets = {}
    for name, prompts in evals.items():
        one = settings.evals[name]
        params = SamplingParams(
            temperature=one.temperature or 0.0,
            max_tokens=response_limit(settings, name),
            stop=tuple(settings.rollout.stop),
        )
        sets[name] = EvaluationSet(prompts, params, one.n or 1, scorers.of(name))
    return sets


def shared_evenly(layout: Layout) -> int:
    """Numbers of sequences that the trainer's ranks can share out are the multiples of this."""
    return layout.data * (layout.pipeline if layout.virtual > 1 else 1)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    return lambda sequences: [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in sequences]
