"""What every rollout engine can do.

Invariant: the verbs say nothing of how an engine works. An engine is one replica, on one or more devices. Calls of
`generate` overlap; weights change only while the engine is paused.

Example::

    await engine.pause(abort=False)
    await engine.load_weights(channel, version=3)
    await engine.resume()
    completions = await asyncio.gather(*(engine.generate(request) for request in requests))

tests/engines/contract.py says the same as tests, which an engine of the user's must pass, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.rollout import RolloutSettings
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

NO_VERSION = -1
"""The version of an engine that has no weights, or not all of them."""


class EngineFailedError(RuntimeError):
    """The engine died, or hangs, though its process lives: it is lost, and another must be made in its place."""


@dataclass(frozen=True)
class EngineFeatures:
    """What an engine can do beyond the protocol.

    Attributes:
        transports: names of the weight transports that it can receive from.
        adapters: where `EngineSpec.lora` is given it takes all weights once, adapters among them, and then adapters
            alone. Other engines are sent the model with its adapters merged into it, every time.
        merges_because: why it does not take adapters; empty where it takes them, or knows none.
        routed_experts: completions say which experts each token was sent to.
        scores_at_any_temperature: `logprobs` takes temperatures other than 1.
        tells_constants: it satisfies `TellsConstants`.
        workers_receive: processes of its own receive weights, so it is given the channel as it was opened.
    """

    transports: frozenset[str]
    adapters: bool = False
    merges_because: str = ""
    routed_experts: bool = False
    scores_at_any_temperature: bool = True
    tells_constants: bool = False
    workers_receive: bool = False


class Engine(Protocol):
    """One replica. It refuses to generate until a whole set of weights has arrived."""

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        ...

    @property
    def features(self) -> EngineFeatures: ...

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response. The same request, seed and weights give the same random numbers.

        Requests that are made within one tick of the event loop belong together: an engine with nothing else to do
        gives the same bits to the same requests in the same order. A call that fails leaves the others alone, and so
        does one that is cancelled.

        Raises:
            UserError, ValueError: this request cannot be answered.
            RuntimeError: there are no weights, or the engine sleeps or is closed.
            EngineFailedError: the engine is lost; so may all other verbs raise it.
        """
        ...

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens, also while paused.

        Args:
            sequences: int64 `[L]` each, L >= 1.
            temperature: divides the logits; positive.

        Returns:
            float32 `[L]` each: entry `i` is `log p(token i | earlier tokens)`, and entry 0 is 0.
        """
        ...

    async def pause(self, *, abort: bool) -> None:
        """Stop sampling, and return when it has stopped; later requests wait. May be called again.

        Args:
            abort: running requests return what they have, with finish reason `abort`; otherwise they wait, and go on
                after `resume` under whatever weights the engine then has.
        """
        ...

    async def resume(self) -> None:
        """Sample again. Requests that wait fail where the engine has no weights by now. May be called again."""
        ...

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take a whole set of weights, each expected tensor exactly once, in any order.

        `channel.receive()` blocks, so it belongs on another thread than that of the event loop.

        Returns:
            the checksum of every tensor, by Hugging Face name, as the engine now holds it.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen. The engine then has no version.
            RuntimeError: requests are running, or the engine sleeps. Its version stays as it was.
        """
        ...

    async def sleep(self) -> None:
        """Release the accelerator's memory until `wake`. The engine has no version until it is given weights again.

        Raises:
            RuntimeError: requests are running.
        """
        ...

    async def wake(self) -> None:
        """Take the memory back, without weights."""
        ...

    async def close(self) -> None:
        """Release everything. The engine cannot be used afterwards. May be called again."""
        ...


class TellsConstants(Protocol):
    """What an engine with the feature `tells_constants` can do, too. Others are compared by log-probs only."""

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        """What its modules compute with beside weights, all or some of it. The engine has weights.

        Args:
            positions: for the rotary angles; each below the model's positions.
        """
        ...


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is made from.

    Attributes:
        directory: the model as a Hugging Face directory, absolute. Weights come from the trainer later.
        tokenizer: an absolute directory or a hub id.
        settings: `rollout.*`, from which an engine takes what concerns it.
        dtype: that weights are sent in, and that the engine computes in.
        device: where to compute.
        seed: goes into every random number; the same for all replicas.
        replica: number of this engine, from 0.
        longest: most tokens of a prompt and its response, and of a sequence that is scored.
        shares_device: whether a trainer uses the same devices.
        deadline_s: longest time of one call besides `generate`, in seconds.
        lora: `model.lora`: what is trained are adapters; None: the model itself.
        tensor: devices that this replica splits the weights over (t of the allocation); `device` is the first.
    """

    directory: Path
    tokenizer: str
    settings: RolloutSettings
    dtype: torch.dtype
    device: torch.device
    seed: int
    replica: int
    longest: int = 4096
    shares_device: bool = False
    deadline_s: float = 600.0
    lora: LoraSettings | None = None
    tensor: int = 1


class MakeEngine(Protocol):
    """What `rollout.engine: module:Class` names: a class, or a function, that makes an engine without weights.

    It is called in the process of the engine, outside any event loop. All later calls come from one event loop.
    """

    def __call__(self, spec: EngineSpec, **options: Any) -> Engine:
        """Make one replica.

        Args:
            spec: what the run knows.
            options: `rollout.engine_options`.
        """
        ...
