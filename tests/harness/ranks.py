"""Real ranks for tests: processes forked from a warm server, joined over gloo, gone when the call returns.

Invariant: `run_on` returns the answer of every rank or raises what went wrong on one of them, within its deadline;
no process outlives it. The server has imported torch and Megatron and runs nothing, so a layout costs a fork.
"""

import importlib.util
import io
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.layout import Layout

if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from pentad.platform.device import Platform
    from pentad.trainers.megatron.trainer import Trainer

_PRELOAD = ["pytest", "pentad.trainers.megatron.trainer", "transformers.models.llama.modeling_llama"]
_WARM_UP_S = 240


class RankError(AssertionError):
    """A rank failed; the message holds its traceback."""


@dataclass(frozen=True)
class Rank:
    """What a function that runs on ranks gets to know of its place."""

    number: int
    layout: Layout
    platform: "Platform"
    groups: "ProcessGroupCollection"

    def trainer(
        self,
        directory: Path,
        settings: TrainerSettings | None = None,
        megatron: MegatronSettings | None = None,
        optimizer_steps: int | None = 10,
        lora: LoraSettings | None = None,
    ) -> "Trainer":
        """A trainer with the weights of a model directory; `optimizer_steps=None` makes one that never trains.

        With `lora` its adapters are those of `lora.adapter`, or begin anew.
        """
        from transformers import AutoConfig

        from pentad.trainers.megatron.trainer import Trainer
        from pentad.weights.adapters import open_adapter
        from pentad.weights.hf_files import CheckpointReader

        trainer = Trainer(
            AutoConfig.from_pretrained(directory),
            self.layout,
            self.groups,
            self.platform,
            settings or TrainerSettings(total_steps=10),
            megatron or MegatronSettings(),
            optimizer_steps,
            lora,
        )
        trainer.load(CheckpointReader(directory), open_adapter(trainer.config, trainer.mapping, lora, seed=1))
        return trainer


def run_on[R](layout: Layout, function: Callable[..., R], *args: Any, deadline_s: float = 60.0) -> list[R]:
    """Run `function(rank, *args)` on every rank of a layout.

    Args:
        function: a function at the top level of a file; its arguments and its answer are pickled. The file is
            imported again on every rank, so it should not import Megatron, which the ranks have.
        deadline_s: for all of it, from the first fork.

    Returns:
        the answers in the order of the ranks.

    Raises:
        RankError: a rank raised, died or did not answer in time.
    """
    server = _server()
    job = _dumps((sys.modules[function.__module__].__file__, function.__qualname__, layout, args))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        readers, processes = [], []
        try:
            for number in range(layout.world):
                reader, writer = server.Pipe(duplex=False)
                process = server.Process(target=_rank_main, args=(number, meeting, deadline_s, job, writer))
                process.start()
                writer.close()
                readers.append(reader)
                processes.append(process)
            results = _collect(readers, started + deadline_s)
            for process in processes:
                process.join(max(0.0, started + deadline_s - time.monotonic()))
            return results
        finally:
            for process in processes:
                process.kill()
                process.join()


@cache
def _server() -> Any:
    """The warm server, after its imports are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    first = context.Process(target=time.monotonic)
    first.start()
    first.join(_WARM_UP_S)
    if first.exitcode != 0:
        raise RuntimeError(f"the server of test ranks did not start within {_WARM_UP_S} s")
    return context


def _collect(readers: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    waiting = dict(zip(readers, range(len(readers)), strict=True))
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {sorted(waiting.values())} did not answer in time")
        for reader in ready:
            number = waiting.pop(reader)
            try:
                done, answer = pickle.loads(reader.recv_bytes())
            except EOFError:
                raise RankError(f"rank {number} died") from None
            if not done:
                raise RankError(f"rank {number} raised\n{answer}")
            answers[number] = answer
    return [answers[number] for number in range(len(readers))]


def _rank_main(number: int, meeting: str, deadline_s: float, job: bytes, writer: Connection) -> None:
    # The ranks are CPU ranks on machines with GPUs, too.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    try:
        file, name, layout, args = pickle.loads(job)
        answer = _work(number, meeting, deadline_s, _function(file, name), layout, args)
        writer.send_bytes(_dumps((True, answer)))
    except BaseException:
        writer.send_bytes(_dumps((False, traceback.format_exc())))
        # Other ranks may wait for this one in a collective, and it for them at exit.
        os._exit(1)


def _work(
    number: int, meeting: str, deadline_s: float, function: Callable[..., Any], layout: Layout, args: tuple[Any, ...]
) -> Any:
    from pentad.platform.device import enter_platform
    from pentad.trainers.megatron.parallel import join_ranks, make_groups

    platform = enter_platform()
    join_ranks(platform, number, layout.world, meeting, deadline_s)
    answer = function(Rank(number, layout, platform, make_groups(layout, seed=1)), *args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return answer


class _Pickler(pickle.Pickler):
    """Tensors travel as numpy arrays: torch's own pickles would make the reader import what the rank has imported."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        value = value.detach().cpu().contiguous()
        return _tensor, (value.view(-1).view(torch.uint8).numpy(), value.dtype, tuple(value.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _function(file: str, name: str) -> Callable[..., Any]:
    """A function of a test file, which is not importable by name."""
    spec = importlib.util.spec_from_file_location(f"on_rank_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)
