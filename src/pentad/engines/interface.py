"""What every rollout engine can do.

Invariant: the verbs say nothing of how an engine works. An engine is one replica, on one or more devices. Calls of
`generate` overlap; weights change only while the engine is paused.

Example::

    await engine.load_weights(channel, version=3)
    completions = await asyncio.gather(*(engine.generate(request) for request in requests))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.transport.protocol import WeightChannel

NO_VERSION = -1
"""The version of an engine that has no weights, or not all of them."""


@dataclass(frozen=True)
class EngineFeatures:
    """What an engine can do beyond the protocol.

    Attributes:
        transports: names of the weight transports that it can receive from.
        adapters: it takes LoRA adapters without the weights that they adapt.
        routed_experts: completions say which experts each token was sent to.
        scores_at_any_temperature: `logprobs` takes temperatures other than 1.
    """

    transports: frozenset[str]
    adapters: bool = False
    routed_experts: bool = False
    scores_at_any_temperature: bool = True


class Engine(Protocol):
    """One replica. It refuses to generate until a whole set of weights has arrived."""

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        ...

    @property
    def features(self) -> EngineFeatures: ...

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response. The same request, seed and weights give the same random numbers."""
        ...

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens.

        Args:
            sequences: int64 `[L]` each, L >= 1.
            temperature: divides the logits; positive.

        Returns:
            float32 `[L]` each: entry `i` is `log p(token i | earlier tokens)`, and entry 0 is 0.
        """
        ...

    async def pause(self, *, abort: bool) -> None:
        """Stop sampling; later requests wait.

        Args:
            abort: running requests return what they have, with finish reason `abort`; otherwise they wait, and go on
                after `resume` under whatever weights the engine then has.
        """
        ...

    async def resume(self) -> None: ...

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take a whole set of weights, each expected tensor exactly once, in any order.

        Returns:
            the checksum of every tensor, by Hugging Face name, as the engine now holds it.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen. The engine then has no version.
        """
        ...

    async def sleep(self) -> None:
        """Release the accelerator's memory until `wake`. The engine has no version until it is given weights again."""
        ...

    async def wake(self) -> None: ...

    async def close(self) -> None:
        """Release everything. The engine cannot be used afterwards."""
        ...
