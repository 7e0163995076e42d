"""The event loop's side of decoding: requests in, completions out, a look at a time.

A look is a few decode steps on the engine's thread. Between two looks the event loop takes in all requests that have
arrived, in their order, and gives back what has finished.

Invariant: every request is answered, by a completion or an exception; one that nobody waits for any more is dropped at
the next look. No look is taken while paused.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

from pentad.engines.hf.decoder import Decoder
from pentad.engines.hf.job import Job
from pentad.samples.completion import Completion


async def on_thread[T](thread: Executor, work: Callable[[], T]) -> T:
    """The result of some work on a thread."""
    return await asyncio.get_running_loop().run_in_executor(thread, work)


class Looks:
    """Decodes while there is something to decode.

    Args:
        decoder: used on `thread` only.
        thread: of one worker.
        check_ready: raises where nothing can be sampled; all requests fail with what it raises.

    Attributes:
        paused: whether looks are withheld.
    """

    def __init__(self, decoder: Decoder, thread: Executor, check_ready: Callable[[], None]) -> None:
        self._decoder, self._thread, self._check_ready = decoder, thread, check_ready
        self.paused = False
        self._arrived: list[Job] = []
        self._answers: dict[Job, asyncio.Future[Completion]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._answers)

    async def complete(self, job: Job) -> Completion:
        """The completion of a job, once it has been sampled."""
        self._answers[job] = asyncio.get_running_loop().create_future()
        self._arrived.append(job)
        self._start()
        try:
            return await self._answers[job]
        finally:
            job.cancelled = True
            del self._answers[job]

    async def pause(self) -> None:
        """Return when no look is being taken; none is until `resume`."""
        self.paused = True
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._start()

    async def abort(self) -> None:
        """Pause, and answer all requests made before this with what they have."""
        arrived, self._arrived = self._arrived, []
        await self.pause()
        for job in [*await on_thread(self._thread, self._decoder.withdraw), *arrived]:
            self._answer(job, job.completion("abort"))

    async def fail(self, error: Exception) -> None:
        """Pause, and answer all requests with an error."""
        await self.pause()
        await self._fail(error)

    def _start(self) -> None:
        """Take looks from the next tick on, so that all requests of this tick are in the first."""
        if not self.paused and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._look_on())

    async def _look_on(self) -> None:
        """Look until there is nothing to do, or a pause."""
        while not self.paused and (self._arrived or self._decoder.busy):
            try:
                self._check_ready()
                arrived, self._arrived = self._arrived, []
                self._decoder.add(arrived)
                for job, answer in await on_thread(self._thread, self._decoder.advance):
                    self._answer(job, answer)
            except Exception as error:
                await self._fail(error)
            # Who has been answered may ask for more at once, to be in the next look.
            await asyncio.sleep(0)

    async def _fail(self, error: Exception) -> None:
        jobs: Iterable[Job] = await on_thread(self._thread, self._decoder.discard)
        arrived, self._arrived = self._arrived, []
        for job in [*jobs, *arrived]:
            self._answer(job, error)

    def _answer(self, job: Job, answer: Completion | Exception) -> None:
        future = self._answers.get(job)
        if future is None or future.done():  # nobody waits any more
            return
        if isinstance(answer, Completion):
            future.set_result(answer)
        else:
            future.set_exception(answer)
