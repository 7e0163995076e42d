"""Short ways to drive an engine from a test that is not asynchronous."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from pentad.engines.protocol import Engine
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams

Weights = Sequence[tuple[str, Tensor]]


class GivenWeights:
    """A channel that holds what it delivers."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = list(tensors)

    def of_stage(self, stage: int) -> "GivenWeights":
        return self

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        raise AssertionError("nothing is to be sent")

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._tensors)

    def close(self, reason: str) -> None:
        raise AssertionError("it ends by itself")


async def change_weights(engine: Engine, tensors: Iterable[tuple[str, Tensor]], version: int) -> Mapping[str, int]:
    """Pause, load and resume, as a run does."""
    await engine.pause(abort=False)
    held = await engine.load_weights(GivenWeights(tensors), version)
    await engine.resume()
    return held


def load(engine: Engine, tensors: Iterable[tuple[str, Tensor]], version: int) -> Mapping[str, int]:
    return asyncio.run(change_weights(engine, tensors, version))


def generate(engine: Engine, requests: Sequence[GenerateRequest]) -> list[Completion]:
    """All at once."""

    async def together() -> list[Completion]:
        return await asyncio.gather(*map(engine.generate, requests))

    return asyncio.run(together())


def samples(prompt: Tensor, request_id: str, count: int, **params: object) -> list[GenerateRequest]:
    """Requests for several samples of a prompt."""
    chosen = SamplingParams(**params)
    return [GenerateRequest(prompt, request_id, chosen, sample) for sample in range(count)]
