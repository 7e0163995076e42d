"""One replica of vLLM as Pentad's engine.

Invariant: weights change only while no request is in flight, and every token carries the version that sampled it;
nothing is generated before the workers have shown that they hold the whole of a version.
"""

import asyncio
import itertools
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pentad.engines.hf.stopping import find_stop
from pentad.engines.protocol import NO_VERSION, EngineFeatures
from pentad.engines.vllm.arguments import VllmSetup, engine_arguments, environment, logprobs_mode
from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.core import EngineFailedError, VllmCore
from pentad.engines.vllm.sampling import Draft, check_sampling, read_scores, sampling_params, scoring_params
from pentad.engines.vllm.worker import Holding, Publication
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport.channel import LocalChannel, LocalTransport
from pentad.weights.transport.protocol import WeightChannel

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

_RELAY_BYTES = 512 << 20
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

    Raises:
        UserError: vLLM cannot do what the setup asks for.
        EngineFailedError: its workers do not compute as they should.
    """

    features = EngineFeatures(
        transports=frozenset({"ipc", "shared", "store"}), scores_at_any_temperature=False, workers_receive=True
    )

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
        self.timings: Mapping[str, float] = {}
        self._version = NO_VERSION
        self._setup, self._eos = setup, sorted(set(eos))
        self._expected = {key: tuple(shape) for key, shape in expected.items()}
        self._mode = logprobs_mode(setup.top_p)
        self._certificate = Certificate(self._expected, name)
        self._in_flight: set[str] = set()
        self._numbers = itertools.count()
        # Why requests wait, if they do.
        self._paused = self._asleep = self._loading = False
        self._cache_asleep = False
        # Whether what is aborted goes back to the caller, or goes on after the pause.
        self._abort_ends = True
        weight_bytes = sum(torch.Size(shape).numel() for shape in self._expected.values()) * torch.bfloat16.itemsize
        arguments = engine_arguments(setup, weight_bytes, gpu_bytes)
        self._core = VllmCore(arguments, environment(setup), name, deadline_s)
        try:
            self._running, self._idle = self._core.wait(_events())
            self._workers: list[dict[str, Any]] = self._core.wait(self._core.workers("start-up", "pentad_describe"))
            for rank, found in enumerate(self._workers):
                wrong = [f"{key} {found[key]}" for key, value in _WANTED.items() if found[key] != value]
                if wrong:
                    raise EngineFailedError(f"worker {rank} of {name} runs with {', '.join(wrong)}")
        except BaseException:
            self._core.close()
            raise

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        return self._version

    @property
    def devices(self) -> list[str]:
        """UUIDs of the GPUs of its workers, in order of rank."""
        return [worker["device"] for worker in self._workers]

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
        return await self._core.here(self._generate(request))

    async def _generate(self, request: GenerateRequest) -> Completion:
        prompt, draft = request.prompt_tokens.tolist(), Draft()
        while True:
            params = sampling_params(request, draft, self._setup.seed, self._eos)
            before = len(draft.tokens)
            output, version = await self._submit(
                prompt + draft.tokens, params, f"{request.request_id}-{request.sample}"
            )
            reason = draft.add(output, version)
            if before and request.params.stop:
                # vLLM looks for stop strings in what it samples, so not in those that began before the pause.
                tokenizer: Any = self._core.llm.get_tokenizer()
                kept = find_stop(tokenizer, draft.tokens, before, request.params.stop)
                if kept is not None:
                    return draft.completion("stop", kept)
            if reason != "abort" or self._abort_ends:
                return draft.completion(reason)

    async def _submit(
        self, prompt: list[int], params: Any, request_id: str, *, waits: bool = True
    ) -> tuple["RequestOutput", int]:
        """vLLM's answer, and the version of the weights that gave it; `waits` while the engine is paused."""
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if waits:
            await self._running.wait()
        version = self._version
        if version == NO_VERSION:
            raise RuntimeError(f"{self.name} has no complete set of weights; call load_weights first")
        number = f"{request_id}/{next(self._numbers)}"
        self._in_flight.add(number)
        self._idle.clear()
        last = None
        try:
            async for output in self._core.llm.generate(TokensPrompt(prompt_token_ids=prompt), params, number):
                last = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailedError(f"{self.name} died while it generated ({type(error).__name__})") from error
        finally:
            self._in_flight.discard(number)
            if not self._in_flight:
                self._idle.set()
        if last is None:
            raise EngineFailedError(f"{self.name} gave no answer to request {request_id}")
        if self._version != version:
            raise AssertionError(f"{self.name} changed its weights under request {request_id}")
        return last, version

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
            output, _ = await self._submit(tokens.tolist(), scoring_params(), "score", waits=False)
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
            await self._stop_requests(ends=abort)

        await self._core.here(self._core.call(pause(), "pausing"))

    async def _stop_requests(self, *, ends: bool) -> None:
        self._abort_ends = ends
        self._open_or_shut()
        if self._in_flight:
            await self._core.llm.pause_generation(mode="abort")
            # A request that was on its way to the core is not among those that it has aborted.
            await self._core.llm.abort(list(self._in_flight))
            await self._idle.wait()
            await self._core.llm.resume_generation()

    async def resume(self) -> None:
        """Go on after `pause`."""

        async def resume() -> None:
            self._paused = False
            self._open_or_shut()

        await self._core.here(resume())

    def _open_or_shut(self) -> None:
        if self._paused or self._asleep or self._loading:
            self._running.clear()
        else:
            self._running.set()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take a whole set of weights.

        The workers receive from a channel of this machine themselves; from another one this process receives, and hands
        on through host memory.

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
        if isinstance(channel, LocalChannel):
            return await self._core.here(self._load(channel, version))
        with self._relay() as relay:
            handed = relay.open(version)
            sending = asyncio.create_task(asyncio.to_thread(handed.send, channel.receive()))
            try:
                return await self._core.here(self._load(handed, version))
            except BaseException:
                handed.close("the engine could not take the weights")
                raise
            finally:
                await sending

    @contextmanager
    def _relay(self) -> Iterator[LocalTransport]:
        sizes = [torch.Size(shape).numel() * torch.bfloat16.itemsize for shape in self._expected.values()]
        relay = LocalTransport(
            "shared",
            torch.bfloat16,
            max(_RELAY_BYTES, *sizes),
            receivers=len(self._workers),
            deadline_s=self._core.deadline_s,
        )
        try:
            yield relay
        finally:
            relay.close()

    async def _load(self, channel: LocalChannel, version: int) -> Mapping[str, int]:
        if self._in_flight or (self._asleep and not self._cache_asleep):
            raise RuntimeError(f"{self.name} must be paused and awake to take weights")
        self._loading, self._version = True, NO_VERSION
        self._open_or_shut()
        try:
            held = await self._receive(channel)
            if self._cache_asleep:
                await self._core.call(self._core.llm.wake_up(["kv_cache"]), "waking the cache")
                self._cache_asleep = self._asleep = False
            if not await self._core.call(self._core.llm.reset_prefix_cache(), "clearing the prefix cache"):
                raise EngineFailedError(f"{self.name} could not clear its prefix cache, which is of older weights")
            self._version = version
            return held
        finally:
            self._loading = False
            self._open_or_shut()

    async def _receive(self, channel: LocalChannel) -> Mapping[str, int]:
        publication = Publication(channel, self._expected, not self._certificate.is_learnt, channel.certify)
        request = pickle.dumps(publication)
        answers = await self._core.workers("receiving weights", "pentad_receive", request)
        holdings: list[Holding] = [pickle.loads(answer) for answer in answers]
        self.timings = {key: max(holding.seconds[key] for holding in holdings) for key in holdings[0].seconds}
        try:
            return self._certify(holdings, channel.certify)
        except WeightMismatchError:
            self._certificate.forget()
            raise

    def _certify(self, holdings: Sequence[Holding], certify: bool) -> Mapping[str, int]:
        sent: dict[str, int] = {}
        for holding in holdings:
            self._certificate.check_names(holding.sent, holding.repeated)
            sent |= holding.checksums
        slices = [holding.slices for holding in holdings]
        if not self._certificate.is_learnt:
            self._certificate.learn(
                [slice_ for slice_ in slices if slice_ is not None],
                [problem for holding in holdings for problem in holding.problems],
            )
        return self._certificate.check([holding.sums for holding in holdings], sent) if certify else {}

    async def sleep(self) -> None:
        """Release the GPU's memory, that of the weights too.

        Raises:
            RuntimeError: requests are running.
        """

        async def sleep() -> None:
            if self._in_flight:
                raise RuntimeError(f"{self.name} must be paused to sleep")
            self._asleep, self._version = True, NO_VERSION
            self._open_or_shut()
            await self._core.llm.sleep(level=2, mode="abort")
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


async def _events() -> tuple[asyncio.Event, asyncio.Event]:
    """Whether requests may go on, and whether none is in flight: both, at first."""
    running, idle = asyncio.Event(), asyncio.Event()
    running.set()
    idle.set()
    return running, idle
