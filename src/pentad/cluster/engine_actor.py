"""The process of one rollout engine.

Invariant: it knows the `Engine` protocol, not which engine it has. Each request that was submitted is collected once,
as a completion or as the reason why there is none.
"""

import asyncio
import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
import torch
from torch import Tensor

from pentad.cluster.process import GROUPS, Process, check_visible, thread_share
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.rollout import RolloutSettings
from pentad.engines.protocol import Engine, EngineFailedError, EngineFeatures, EngineSpec, TellsConstants
from pentad.errors import UserError
from pentad.platform.device import find_platform
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

Ticket = int
"""The driver's number of a request."""
Answer = Completion | Exception
NamedTensor = tuple[str, Tensor]

# Packages that the driver has for certain.
_EVERYWHERE = frozenset({"builtins", "pentad", "torch"})


@ray.remote(concurrency_groups=GROUPS)
class EngineActor(Process):
    """One engine on one device. All but `build` are coroutines of one event loop, so calls overlap."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._built: Engine | None = None
        self._running: dict[Ticket, asyncio.Task[None]] = {}
        self._finished: list[tuple[Ticket, Answer]] = []
        self._something_finished = asyncio.Event()

    def build(
        self,
        backend: str,
        directory: Path,
        tokenizer: str,
        settings: RolloutSettings,
        seed: int,
        user_directory: Path,
        longest: int,
        shares_device: bool,
        deadline_s: float,
        lora: LoraSettings | None,
        tensor: int,
        further_gpus: Sequence[str],
        neighbours: int,
    ) -> tuple[torch.dtype, EngineFeatures]:
        """Make the engine, without weights; returns the dtype that it takes weights in, and what it can do.

        Args:
            backend: the engine that the allocation names.
            directory: of the model, absolute.
            tokenizer: an absolute directory or a hub id.
            user_directory: where the module of `rollout.engine` is looked for first.
            longest: most tokens of a sequence.
            shares_device: whether a trainer uses the same device.
            deadline_s: longest time of one call besides generation, in seconds.
            lora: adapters that the trainer trains, if it does.
            tensor: devices that the engine splits the weights over.
            further_gpus: numbers of those beside the one that Ray gave to this process.
            neighbours: engines on this machine, this one among them.

        Raises:
            UserError: this machine does not see a directory, or `rollout.engine` cannot be made.
        """
        check_visible("model.path", directory)
        if Path(tokenizer).is_absolute():
            check_visible("model.tokenizer", Path(tokenizer))
        if further_gpus:
            # Before CUDA is used; the engine's own processes inherit it.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join([os.environ["CUDA_VISIBLE_DEVICES"], *further_gpus])
        platform = find_platform()
        if not platform.is_cuda:
            torch.set_num_threads(thread_share(neighbours))
        dtype = platform.dtype(settings.dtype)
        spec = EngineSpec(
            directory, tokenizer, settings, dtype, platform.device, seed, self.rank, longest, shares_device, deadline_s,
            lora, tensor,
        )  # fmt: skip
        # Imported here, because the driver, which imports this file, has no use for it.
        from pentad.engines.load import make_engine

        self._built = make_engine(backend, spec, user_directory)
        return dtype, self._built.features

    async def submit(self, requests: Sequence[tuple[Ticket, GenerateRequest]]) -> None:
        """Have requests completed, all of them together and in their order; `collect` gives the answers."""
        for ticket, request in requests:
            task = asyncio.create_task(self._complete(ticket, request))
            self._running[ticket] = task
            task.add_done_callback(lambda _, ticket=ticket: self._running.pop(ticket))

    async def collect(self) -> list[tuple[Ticket, Answer]]:
        """What has been answered since the last call; waits until there is something."""
        await self._something_finished.wait()
        self._something_finished.clear()
        finished, self._finished = self._finished, []
        return finished

    async def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drop requests; they are not collected."""
        for ticket in tickets:
            if (task := self._running.get(ticket)) is not None:
                task.cancel()

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens: float32 `[L]` for each sequence."""
        return await self._engine.logprobs(sequences, temperature)

    async def constants(self, positions: Sequence[int]) -> ModelConstants | None:
        """What the engine computes with beside weights; None where it cannot tell."""
        if not self._engine.features.tells_constants:
            return None
        return await cast(TellsConstants, self._engine).constants(positions)

    async def pause(self, abort: bool) -> None:
        """See `Engine.pause`. What was submitted before counts as running."""
        await asyncio.sleep(0)  # it reaches the engine first
        await self._engine.pause(abort=abort)

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._engine.resume()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take all weights; returns the checksum of each tensor as the engine holds it, by Hugging Face name.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        engine = self._engine
        # Where other processes receive, this one does not see the tensors.
        given = channel if engine.features.workers_receive else _Noted(channel, self._noting)
        return await engine.load_weights(given, version)

    async def sleep(self) -> None:
        """Release the accelerator's memory; see `Engine.sleep`."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take it back."""
        await self._engine.wake()

    async def _complete(self, ticket: Ticket, request: GenerateRequest) -> None:
        answer: Answer
        try:
            answer = await self._engine.generate(request)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # by `cancel`, and not by the engine
                raise
            answer = _portable(error)
        except Exception as error:
            answer = _portable(error)
        self._finished.append((ticket, answer))
        self._something_finished.set()

    @property
    def _engine(self) -> Engine:
        if self._built is None:
            raise RuntimeError("the engine was not built")
        return self._built


def _portable(error: BaseException) -> Exception:
    """The error if the driver can read it, else one that says the same. The driver may lack the user's modules."""
    if isinstance(error, EngineFailedError):  # perhaps of a class of the user's
        return EngineFailedError(str(error))
    if isinstance(error, Exception):
        try:
            _DriverUnpickler(io.BytesIO(pickle.dumps(error))).load()
        except Exception:
            if isinstance(error, UserError):  # of a class of the user's
                return UserError(str(error.cause), str(error.fix))
        else:
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class _DriverUnpickler(pickle.Unpickler):
    """Knows no classes but those that the driver can import."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name.partition(".")[0] not in _EVERYWHERE:
            raise pickle.UnpicklingError(f"the driver may not have {module_name}")
        return super().find_class(module_name, global_name)


class _Noted:
    """A channel of which is known, while it is received, at which tensor it is."""

    def __init__(
        self, channel: WeightChannel, note: Callable[[str, Iterator[NamedTensor]], Iterator[NamedTensor]]
    ) -> None:
        self._channel, self._note = channel, note

    def of_stage(self, stage: int) -> WeightChannel:
        return self._channel.of_stage(stage)

    def send(self, tensors: Iterable[NamedTensor]) -> Mapping[str, int]:
        return self._channel.send(tensors)

    def receive(self) -> Iterator[NamedTensor]:
        return self._note("loading", self._channel.receive())

    def close(self, reason: str) -> None:
        self._channel.close(reason)
