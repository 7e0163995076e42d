"""vLLM's core process and the event loop that talks to it.

Invariant: every call ends: with its result, with the core's death, or with its deadline; vLLM itself waits forever. No
process of the engine is left after `close`, nor after the death of this process.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Coroutine, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from pentad.engines.protocol import EngineFailedError
from pentad.engines.vllm.lifetime import LEADER

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

_POLL_S = 1.0
_CLOSE_S = 20.0


class VllmCore:
    """An AsyncLLM on an event loop of its own, on a thread of its own.

    Args:
        arguments: of vLLM's AsyncEngineArgs.
        environment: variables that vLLM reads; they are set for this process.
        name: of the engine in errors.
        deadline_s: longest time of one call, in seconds.
    """

    def __init__(
        self, arguments: Mapping[str, Any], environment: Mapping[str, str], name: str, deadline_s: float
    ) -> None:
        self.name, self.deadline_s = name, deadline_s
        os.environ.update({**environment, LEADER: str(os.getpid())})
        before = set(psutil.Process().children(recursive=True))
        self._loop = asyncio.new_event_loop()
        # The core ends with the thread that starts it, so that thread lives as long as the engine.
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"vllm {name}", daemon=True)
        self._thread.start()
        self._children: set[psutil.Process] = set()
        self._llm: AsyncLLM | None = None
        try:
            self._llm = self._submit(_build(arguments)).result()
        except BaseException:
            self.close()
            raise
        finally:
            self._children = {
                child for child in psutil.Process().children(recursive=True) if _is_engine(child)
            } - before

    @property
    def llm(self) -> "AsyncLLM":
        """vLLM's client of the core; to be used on its loop only."""
        if self._llm is None:
            raise EngineFailedError(f"{self.name} is closed")
        return self._llm

    async def here(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the core's loop, whichever loop the caller is on."""
        return await asyncio.wrap_future(self._submit(work))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the core's loop and wait, from a thread without one."""
        return self._submit(work).result()

    async def call(self, work: Awaitable[T], phase: str) -> T:
        """The result of some work in the core; on its loop.

        Raises:
            EngineFailedError: it died, or did not finish in time.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(work)
        end = self._loop.time() + self.deadline_s
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=_POLL_S)
                if done:
                    return task.result()
                if self.llm.errored:
                    raise EngineFailedError(f"{self.name} died during {phase}")
                if self._loop.time() > end:
                    raise EngineFailedError(f"{self.name} did not finish {phase} within {self.deadline_s:g} s")
        except EngineDeadError as error:
            raise EngineFailedError(f"{self.name} died during {phase}") from error
        finally:
            task.cancel()

    async def workers(self, phase: str, method: str, *arguments: Any) -> list[Any]:
        """What a method of the workers' extension returns, in order of rank; on the core's loop."""
        # Longer than the deadline of `call`, whose error says that the engine is lost.
        return await self.call(self.llm.collective_rpc(method, timeout=2 * self.deadline_s, args=arguments), phase)

    def close(self) -> None:
        """End all processes of the engine; may be called again."""
        llm, self._llm = self._llm, None
        if llm is not None:
            # It may be dead, or hang; its processes are ended below.
            with contextlib.suppress(Exception):
                self._submit(asyncio.to_thread(llm.shutdown, _CLOSE_S / 2)).result(_CLOSE_S)
        for child in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._children = set()
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _build(arguments: Mapping[str, Any]) -> "AsyncLLM":
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except Exception as error:
        # Some of vLLM's errors cannot be sent to another process.
        raise EngineFailedError(f"vLLM did not start: {type(error).__name__}: {error}") from error


def _is_engine(process: psutil.Process) -> bool:
    """Whether a child is vLLM's: Python has one of its own, which follows the resources of all children."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False
