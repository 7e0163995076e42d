"""One replica of vLLM as Pentad's engine.

Invariant: weights change only while no request is in flight; nothing is generated before the workers have shown that
they hold the whole of a version.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pentad.engines.protocol import NO_VERSION, EngineFailedError, EngineFeatures
from pentad.engines.vllm.arguments import VllmSetup, engine_arguments, environment, logprobs_mode
from pentad.engines.vllm.core import VllmCore
from pentad.engines.vllm.receiving import WorkerWeights
from pentad.engines.vllm.requests import Requests
from pentad.engines.vllm.sampling import check_sampling, read_scores, scoring_params
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.transport.protocol import DirectChannel, WeightChannel

_WANTED = {"head_dtype": "float32", "dtype": "bfloat16", "quantization": None}


class VllmEngine:
    """Generates with vLLM; its weights come from the trainer.

    Args:
        setup: what the engine is to be.
        expected: shape of every tensor of the checkpoint, by its Hugging Face name.
        gpu_bytes: memory of one GPU.
        eos: tokens that end a response.
        name: of this engine in errors.
        deadline_s: longest time of one call besides `generate`, in seconds.

    Attributes:
        devices: UUIDs of the GPUs of its workers, in order of rank.

    Raises:
        UserError: vLLM cannot do what the setup asks for.
        EngineFailedError: its workers do not compute as they should.
    """

    def __init__(
        self,
        setup: VllmSetup,
        expected: Mapping[str, Sequence[int]],
        gpu_bytes: int,
        *,
        eos: Iterable[int] = (),
        name: str = "engine 0",
        deadline_s: float = 600.0,
    ) -> None:
        self.name = name
        self._setup = setup
        self._mode = logprobs_mode(setup.top_p)
        # Why requests wait, if they do.
        self._paused = self._asleep = self._loading = False
        self._cache_asleep = False
        weight_bytes = sum(torch.Size(shape).numel() for shape in expected.values()) * torch.bfloat16.itemsize
        if setup.lora:
            weight_bytes += setup.lora.elements * torch.bfloat16.itemsize
        arguments = engine_arguments(setup, weight_bytes, gpu_bytes)
        self._core = VllmCore(arguments, environment(setup), name, deadline_s)
        self._weights = WorkerWeights(self._core, expected, setup.lora)
        self._requests = Requests(self._core, setup.seed, sorted(set(eos)))
        try:
            self._workers: list[dict[str, Any]] = self._core.wait(self._core.workers("start-up", "pentad_describe"))
            for rank, found in enumerate(self._workers):
                wrong = [f"{key} {found[key]}" for key, value in _WANTED.items() if found[key] != value]
                if wrong:
                    raise EngineFailedError(f"worker {rank} of {name} runs with {', '.join(wrong)}")
            self.devices: list[str] = [worker["device"] for worker in self._workers]
        except BaseException:
            self._core.close()
            raise

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        return self._requests.version

    @property
    def features(self) -> EngineFeatures:
        """What it can do; adapters alone where it was made for them."""
        return EngineFeatures(
            transports=frozenset({"ipc", "nccl", "shared", "store"}),
            adapters=self._setup.lora is not None,
            merges_because=self._setup.merges_because,
            scores_at_any_temperature=False,
            workers_receive=True,
        )

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds of the last publication, of the slowest worker: `load`, `certify`."""
        return self._weights.timings

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response. Waits while the engine is paused.

        Raises:
            ValueError: the request asks for more tokens than the engine was made for, or for log-probs that vLLM
                cannot give.
            EngineFailedError: the engine died.
        """
        check_sampling(request, self._mode)
        params = request.params
        length = len(request.prompt_tokens) + params.max_tokens
        if length > self._setup.longest:
            raise ValueError(f"request {request.request_id} may take {length} tokens, more than {self._setup.longest}")
        if params.stop and self._setup.tokenizer is None:
            raise ValueError("stop strings need VllmSetup(tokenizer=...)")
        return await self._core.here(self._requests.complete(request))

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
        """Score given tokens, also while paused.

        Args:
            sequences: int64 `[L]` each, L >= 1.
            temperature: 1; vLLM's log-probs of given tokens know no other.

        Returns:
            float32 `[L]` each: entry `i` is `log p(token i | earlier tokens)`, and entry 0 is 0.

        Raises:
            ValueError: another temperature is asked for.
        """
        if temperature != 1:
            raise ValueError(f"vLLM scores given tokens at temperature 1 only, not {temperature:g}")

        async def score(tokens: Tensor) -> Tensor:
            output, _ = await self._requests.send(tokens.tolist(), scoring_params(), "score", waits=False)
            return read_scores(output, tokens)

        async def score_all() -> list[Tensor]:
            return list(await asyncio.gather(*(score(tokens) for tokens in sequences)))

        return await self._core.here(self._core.call(score_all(), "scoring"))

    async def pause(self, *, abort: bool) -> None:
        """Stop sampling; later requests wait.

        Args:
            abort: requests in flight return what they have; otherwise they go on after `resume`.
        """

        async def pause() -> None:
            self._paused = True
            self._open_or_shut()
            await self._requests.stop(ends=abort)

        await self._core.here(self._core.call(pause(), "pausing"))

    async def resume(self) -> None:
        """Go on after `pause`."""

        async def resume() -> None:
            self._paused = False
            self._open_or_shut()

        await self._core.here(resume())

    def _open_or_shut(self) -> None:
        if self._paused or self._asleep or self._loading:
            self._requests.open.clear()
        else:
            self._requests.open.set()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take a whole set of weights, adapters among them if it was made for some, or adapters alone after that.

        The workers receive from a `DirectChannel` themselves; from another one this process receives, and hands on
        through host memory.

        Returns:
            checksum of every tensor as the workers hold it; empty where the channel takes none.

        Raises:
            RuntimeError: requests are running, or the engine sleeps. Its version stays as it was.
            WeightMismatchError: a tensor is missing, unknown, repeated, misshapen or changed. The engine then has no
                version.
            EngineFailedError: the engine died.
        """
        if version < 0:
            raise ValueError(f"weight version must not be negative: {version}")
        if isinstance(channel, DirectChannel):
            return await self._core.here(self._load(channel, version))
        with self._weights.relay(len(self._workers)) as relay:
            handed = relay.open(version)
            sending = asyncio.create_task(asyncio.to_thread(handed.send, channel.receive()))
            try:
                held = await self._core.here(self._load(handed, version))
            except BaseException:
                handed.close("the engine could not take the weights")
                # What the workers ran into is the cause; that nobody takes what is sent follows from it.
                await asyncio.gather(sending, return_exceptions=True)
                raise
            await sending
            return held

    async def _load(self, channel: DirectChannel, version: int) -> Mapping[str, int]:
        if self._requests.are_running or (self._asleep and not self._cache_asleep):
            raise RuntimeError(f"{self.name} must be paused and awake to take weights")
        self._loading, self._requests.version = True, NO_VERSION
        self._open_or_shut()
        try:
            # One deadline for all of it.
            held = await self._core.call(self._take(channel), "taking weights")
            self._requests.version = version
            return held
        finally:
            self._loading = False
            self._open_or_shut()

    async def _take(self, channel: DirectChannel) -> Mapping[str, int]:
        held = await self._weights.receive(channel)
        self._requests.adapter = self._weights.adapters and self._weights.adapters.request
        if self._cache_asleep:
            await self._core.llm.wake_up(["kv_cache"])
            self._cache_asleep = self._asleep = False
        if not await self._core.llm.reset_prefix_cache():
            raise EngineFailedError(f"{self.name} could not clear its prefix cache, which is of older weights")
        return held

    async def sleep(self) -> None:
        """Release the GPU's memory, that of the weights too.

        Raises:
            RuntimeError: requests are running.
        """

        async def sleep() -> None:
            if self._requests.are_running:
                raise RuntimeError(f"{self.name} must be paused to sleep")
            self._asleep, self._requests.version = True, NO_VERSION
            self._open_or_shut()
            # Weights that will not come again are kept in the machine's memory.
            await self._core.llm.sleep(level=2 if self._setup.lora is None else 1, mode="abort")
            self._weights.doubt()
            self._cache_asleep = False

        if not self._setup.sleeps:
            raise RuntimeError(f"{self.name} was not made to sleep (VllmSetup.sleeps)")
        await self._core.here(self._core.call(sleep(), "falling asleep"))

    async def wake(self) -> None:
        """Take back the memory of the weights; that of the cache follows when `load_weights` has filled them."""

        async def wake() -> None:
            if self._asleep and not self._cache_asleep:
                await self._core.llm.wake_up(["weights"])
                self._cache_asleep = True

        await self._core.here(self._core.call(wake(), "waking"))

    async def close(self) -> None:
        """End all processes of the engine."""
        await asyncio.to_thread(self._core.close)
