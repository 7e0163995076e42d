"""An engine of a user's: it replays recorded completions, and scores with a plain transformers model.

It is used as `rollout.engine: path/to/replay.py:ReplayEngine` with `rollout.engine_options: {recording: FILE}`. The
file has a line of JSON for each completion: `prompt` and `response` (token ids), `sample`, `logprobs`. A replayed
response comes a token a tick of the event loop.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pentad.engines.protocol import NO_VERSION, EngineFeatures, EngineSpec
from pentad.samples.completion import Completion, FinishReason
from pentad.samples.request import GenerateRequest
from pentad.weights.checksum import checksum
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport.protocol import WeightChannel


@dataclass(eq=False)
class Replay:
    """A response, as far as it has been replayed."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int] = field(default_factory=list)
    aborted: bool = False

    def completion(self, reason: FinishReason) -> Completion:
        count = len(self.versions)
        versions = torch.tensor(self.versions, dtype=torch.int32)
        logprobs = torch.tensor(self.logprobs[:count], dtype=torch.float32)
        return Completion(torch.tensor(self.tokens[:count], dtype=torch.int64), logprobs, versions, reason)


class ReplayEngine:
    def __init__(self, spec: EngineSpec, *, recording: str) -> None:
        self.version = NO_VERSION
        self.features = EngineFeatures(transports=frozenset({"store"}))
        config = AutoConfig.from_pretrained(spec.directory)
        self._positions = config.max_position_embeddings
        self._model = AutoModelForCausalLM.from_config(config, dtype=spec.dtype).eval()
        self._recorded: dict[tuple[tuple[int, ...], int], tuple[list[int], list[float]]] = {}
        with open(recording) as lines:
            for line in map(json.loads, lines):
                self._recorded[tuple(line["prompt"]), line["sample"]] = line["response"], line["logprobs"]
        self._changed = asyncio.Condition()
        self._running: list[Replay] = []
        self._paused = self._closed = False

    async def generate(self, request: GenerateRequest) -> Completion:
        if not self._paused or self._closed:
            self._check_weights()
        if len(request.prompt_tokens) + request.params.max_tokens > self._positions:
            raise ValueError("too long for the model")
        key = (tuple(request.prompt_tokens.tolist()), request.sample)
        if key not in self._recorded:
            raise ValueError(f"request {request.request_id}: no such completion was recorded")
        replay = Replay(*self._recorded[key])
        self._running.append(replay)
        try:
            return await self._replay(replay, request)
        finally:
            self._running.remove(replay)
            async with self._changed:
                self._changed.notify_all()

    async def _replay(self, replay: Replay, request: GenerateRequest) -> Completion:
        params = request.params
        for count, token in enumerate(replay.tokens[: params.max_tokens], start=1):
            async with self._changed:
                await self._changed.wait_for(lambda: not self._paused or replay.aborted or self._closed)
            if replay.aborted:
                return replay.completion("abort")
            self._check_weights()
            replay.versions.append(self.version)
            if token in params.stop_token_ids:
                return replay.completion("stop")
            if count < params.max_tokens:
                await asyncio.sleep(0)
        whole = len(replay.tokens) < params.max_tokens
        return replay.completion("stop" if whole else "length")

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        self._check_weights()
        return [self._score(tokens, temperature) for tokens in sequences]

    @torch.no_grad()
    def _score(self, tokens: Tensor, temperature: float) -> Tensor:
        scores = torch.log_softmax(self._model(input_ids=tokens[None]).logits[0, :-1].float() / temperature, dim=-1)
        return torch.cat([torch.zeros(1), scores.gather(1, tokens[1:, None])[:, 0]])

    async def pause(self, *, abort: bool) -> None:
        async with self._changed:
            self._paused = True
            running = list(self._running)
            for replay in running if abort else ():
                replay.aborted = True
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not abort or not set(running) & set(self._running))

    async def resume(self) -> None:
        async with self._changed:
            self._paused = False
            self._changed.notify_all()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        if self._running and not self._paused:
            raise RuntimeError("requests are running")
        self.version = NO_VERSION
        held = await asyncio.to_thread(self._receive, channel)  # it blocks
        self.version = version
        return held

    def _receive(self, channel: WeightChannel) -> Mapping[str, int]:
        held = {name: parameter.data for name, parameter in self._model.named_parameters()}
        missing = set(held)
        for name, tensor in channel.receive():
            if name not in missing or tensor.shape != held[name].shape:
                raise WeightMismatchError(f"{name} is unknown, repeated or misshapen")
            held[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise WeightMismatchError(f"{', '.join(sorted(missing))} did not arrive")
        return {name: checksum(tensor) for name, tensor in held.items()}

    async def sleep(self) -> None:
        self.version = NO_VERSION

    async def wake(self) -> None:
        pass

    async def close(self) -> None:
        self.version, self._closed = NO_VERSION, True
        async with self._changed:
            self._changed.notify_all()

    def _check_weights(self) -> None:
        if self.version == NO_VERSION:
            raise RuntimeError("there are no weights")
