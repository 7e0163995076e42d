"""Requests of one engine, on the way to vLLM's core and back.

Invariant: a request is sent only while `open` is set and a version is there, and every token carries the version that
sampled it. What a pause has stopped goes back to its caller, or is sent again with what it has when `open` is set.

All methods are called on the core's event loop.
"""

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from pentad.engines.hf.stopping import find_stop
from pentad.engines.protocol import NO_VERSION, EngineFailedError
from pentad.engines.vllm.core import VllmCore
from pentad.engines.vllm.sampling import Draft, sampling_params
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput


class Requests:
    """The requests in flight.

    Args:
        core: that answers them.
        seed: of the run.
        eos: tokens that end a response.

    Attributes:
        version: of the weights that the core has; -1 where it has none, or not all.
        open: whether requests may be sent.
        adapter: vLLM's name for the adapters that requests use; None without.
    """

    def __init__(self, core: VllmCore, seed: int, eos: list[int]) -> None:
        self.version = NO_VERSION
        self.adapter: LoRARequest | None = None
        self.open = asyncio.Event()
        self.open.set()
        self._core, self._seed, self._eos = core, seed, eos
        self._numbers = itertools.count()
        self._in_flight: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped_ends = True

    @property
    def are_running(self) -> bool:
        """Whether one is in flight."""
        return bool(self._in_flight)

    async def complete(self, request: GenerateRequest) -> Completion:
        """The whole response to a request."""
        prompt, draft = request.prompt_tokens.tolist(), Draft()
        while True:
            params = sampling_params(request, draft, self._seed, self._eos)
            before = len(draft.tokens)
            output, version = await self.send(prompt + draft.tokens, params, f"{request.request_id}-{request.sample}")
            reason = draft.add(output, version)
            if before and request.params.stop:
                # vLLM looks for stop strings in what it samples, so not in those that began before the pause.
                tokenizer: Any = self._core.llm.get_tokenizer()
                kept = find_stop(tokenizer, draft.tokens, before, request.params.stop)
                if kept is not None:
                    return draft.completion("stop", kept)
            if reason != "abort" or self._stopped_ends:
                return draft.completion(reason)

    async def send(
        self, prompt: list[int], params: Any, name: str, *, waits: bool = True
    ) -> tuple["RequestOutput", int]:
        """vLLM's answer, and the version of the weights that gave it; `waits` for `open`.

        Raises:
            RuntimeError: there are no weights.
            EngineFailedError: the core died.
        """
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if waits:
            await self.open.wait()
        version, engine = self.version, self._core.name
        if version == NO_VERSION:
            raise RuntimeError(f"{engine} has no complete set of weights; call load_weights first")
        number = f"{name}/{next(self._numbers)}"
        self._in_flight.add(number)
        self._idle.clear()
        last = None
        try:
            asked = TokensPrompt(prompt_token_ids=prompt)
            async for output in self._core.llm.generate(asked, params, number, lora_request=self.adapter):
                last = output
        except EngineDeadError as error:
            raise EngineFailedError(f"{engine} died while it generated ({type(error).__name__})") from error
        except EngineGenerateError as error:  # of this request alone
            raise RuntimeError(f"{engine} could not answer request {name}: {error.__cause__ or error}") from error
        finally:
            self._in_flight.discard(number)
            if not self._in_flight:
                self._idle.set()
        if last is None:
            raise EngineFailedError(f"{engine} gave no answer to request {name}")
        if self.version != version:
            raise AssertionError(f"{engine} changed its weights under request {name}")
        return last, version

    async def stop(self, *, ends: bool) -> None:
        """Have the core give up what it is at; `open` is not set. What `ends` goes back to its caller."""
        self._stopped_ends = ends
        if not self._in_flight:
            return
        llm = self._core.llm
        await llm.pause_generation(mode="abort")
        # A request that was on its way to the core is not among those that it has aborted.
        await llm.abort(list(self._in_flight))
        await self._idle.wait()
        await llm.resume_generation()
