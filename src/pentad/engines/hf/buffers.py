"""The device memory that decoding needs beside the weights: cache, rows, and the captured steps that use them.

Invariant: buffers never move while they live, so captured steps stay valid; longer sequences get new buffers.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pentad.engines.hf.cache import SlotCache, cache_shape
from pentad.engines.hf.graphs import GraphedStep
from pentad.engines.hf.job import Job
from pentad.engines.hf.sampling import SampleMode
from pentad.engines.hf.slots import Slots
from pentad.errors import UserError

_MAX_TOKENS_STEP = 64
_CAPACITY_STEP = 128
_STOP_IDS_STEP = 8


@dataclass(frozen=True)
class BufferShape:
    """How long things may be: a sequence, a response, and the list of tokens that end a response."""

    capacity: int = 0
    max_tokens: int = 0
    stop_ids: int = 0

    def grown_for(self, jobs: Sequence[Job]) -> "BufferShape":
        """The same shape where the jobs fit; else one that holds them and all that this one holds.

        It never shrinks: training and evaluation alternate, and new buffers mean new CUDA graphs.
        """
        longest = max(job.longest for job in jobs)
        max_tokens = max(job.params.max_tokens for job in jobs)
        stop_ids = max(len(job.stop_ids) for job in jobs)
        if longest <= self.capacity and max_tokens <= self.max_tokens and stop_ids <= self.stop_ids:
            return self
        return BufferShape(
            max(_round_up(longest, _CAPACITY_STEP), self.capacity),
            max(_round_up(max_tokens, _MAX_TOKENS_STEP), self.max_tokens),
            max(_round_up(stop_ids, _STOP_IDS_STEP), self.stop_ids),
        )


class Buffers:
    """Cache and slots of `rows` rows, and the step over them."""

    def __init__(self, model: PreTrainedModel, rows: int, shape: BufferShape) -> None:
        self._model = model
        self.shape = shape
        self.cache = SlotCache(model.config, rows, shape.capacity, model.dtype, model.device)
        self.slots = Slots(rows, shape.max_tokens, shape.stop_ids, model.device)
        self.step = GraphedStep(self._run_step, model.device)

    def _run_step(self, rows: int, length: int, mode: SampleMode) -> None:
        self.slots.step(self._model, self.cache, rows, length, mode)


def check_memory(model: PreTrainedModel, rows: int, shape: BufferShape, old: BufferShape) -> None:
    """Refuse a cache that does not fit on the GPU once the old one is gone.

    Raises:
        UserError: it does not.
    """
    if model.device.type != "cuda":
        return
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    free += _cache_bytes(model, rows, old)
    needed = _cache_bytes(model, rows, shape)
    if needed > free:
        raise UserError(
            f"the key/value cache of {rows} sequences of {shape.capacity} tokens takes {needed / 2**30:.1f} "
            f"GiB; the GPU has {free / 2**30:.1f} GiB free",
            f"lower rollout.batch_size to {max(1, int(rows * 0.9 * free / needed))}",
        )


def _cache_bytes(model: PreTrainedModel, rows: int, shape: BufferShape) -> int:
    elements = torch.Size(cache_shape(model.config, rows, shape.capacity)).numel()
    return elements * model.config.num_hidden_layers * 2 * model.dtype.itemsize


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
