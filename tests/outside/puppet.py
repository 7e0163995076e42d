"""An engine without a model that does what its requests are called: for tests of those who talk to engines.

A response has the prompt's first token, the number of the replica, and how many requests came in the same tick. A
request called `wait ...` is answered when the engine is resumed.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pentad.engines.protocol import EngineFailedError, EngineFeatures, EngineSpec
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.transport.protocol import WeightChannel


class UnsendableError(Exception):
    def __reduce__(self) -> str:
        raise TypeError("cannot be pickled")


class ForeignError(Exception):
    """Only the engine's process has its module."""


class ForeignUserError(UserError):
    def __init__(self) -> None:
        super().__init__("the engine has had enough", "let it rest")


class Puppet:
    version = 0
    features = EngineFeatures(transports=frozenset({"store"}))

    def __init__(self, spec: EngineSpec) -> None:
        self._replica = spec.replica
        self._together = self._waiting = self._begun = self._begun_before_pause = 0
        self._resumed = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> Completion:
        self._together += 1
        self._begun += 1
        await asyncio.sleep(0)
        tokens = torch.tensor([int(request.prompt_tokens[0]), self._replica, self._together])
        await asyncio.sleep(0)
        self._together = 0
        match request.request_id.split()[0]:
            case "wait":
                self._waiting += 1
                try:
                    await self._resumed.wait()
                finally:
                    self._waiting -= 1
            case "refuse":
                raise UserError("the engine cannot do this", "ask for less")
            case "break":
                raise ValueError("a wrong value")
            case "break-unsendably":
                raise UnsendableError("a wrong value")
            case "break-foreign":
                raise ForeignError("a wrong value")
            case "break-with-foreign":
                raise ValueError(ForeignError("a wrong value"))
            case "refuse-foreign":
                raise ForeignUserError
            case "break-cancelled":
                raise asyncio.CancelledError("the engine's own task was cancelled")
            case "give-up":
                raise EngineFailedError("the core of the engine is gone")
            case "die":
                os._exit(1)
        return Completion(tokens, torch.zeros(3), torch.zeros(3, dtype=torch.int32), "length")

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """How many requests wait, and how many had begun at the last pause."""
        return [torch.tensor([float(self._waiting), float(self._begun_before_pause)])]

    async def pause(self, *, abort: bool) -> None:
        self._begun_before_pause = self._begun
        self._resumed.clear()

    async def resume(self) -> None:
        self._resumed.set()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        raise AssertionError("it has no weights")

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...
