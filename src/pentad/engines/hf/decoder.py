"""Which job sits in which row, from prefill to the last token.

Invariant: every job is answered once. Rows that finish are refilled while anything waits; afterwards the rows that
remain move together, so that a long tail does not pay for empty rows. What is sampled depends on the jobs and the order
in which they were added, never on time.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pentad.engines.hf.buffers import Buffers, BufferShape, check_memory
from pentad.engines.hf.job import Job
from pentad.engines.hf.prefill import prefill
from pentad.engines.hf.sampling import SampleMode, uniforms
from pentad.engines.hf.stopping import find_stop
from pentad.errors import UserError
from pentad.samples.completion import Completion

_SMALLEST_GRAPH_ROWS = 8

Answer = tuple[Job, Completion | UserError]
"""A job that is done, and its completion or why there is none."""


@dataclass(frozen=True)
class DecoderLimits:
    """Trade-offs that differ between devices.

    Args:
        steps_per_look: decode steps between two looks of the host at which rows have finished.
        length_step: attention covers a multiple of this (above 1024 tokens: of an eighth of the power of two below).
        prefill_tokens: padded prompt tokens of one prefill pass, unless one prompt alone is longer.
        shaped_rows: decode only with numbers of rows from a short list (each is a CUDA graph).
    """

    steps_per_look: int
    length_step: int
    prefill_tokens: int
    shaped_rows: bool

    @classmethod
    def of(cls, device: torch.device) -> "DecoderLimits":
        """The measured choice for a device."""
        if device.type == "cuda":
            return cls(steps_per_look=16, length_step=128, prefill_tokens=16384, shaped_rows=True)
        return cls(steps_per_look=2, length_step=16, prefill_tokens=2048, shaped_rows=False)

    def rows_for(self, rows: int, most: int) -> int:
        """The number of rows to decode when so many are wanted, of `most` that there are."""
        if not self.shaped_rows:
            return rows
        shape = most
        while shape // 2 >= max(rows, _SMALLEST_GRAPH_ROWS):
            shape //= 2
        return shape

    def length_for(self, length: int, capacity: int) -> int:
        """The length to attend over when the longest row will have so many tokens."""
        step = max(self.length_step, 1 << max(0, length.bit_length() - 4))
        return min(capacity, -(-length // step) * step)


class Decoder:
    """Decodes jobs with one set of weights, a few steps at a time. All calls come from one thread.

    Args:
        model: transformers causal language model, in evaluation mode.
        tokenizer: decodes text for stop strings; None where no request has any.
        rows: sequences decoded at once.
        seed: goes into every random number.
        limits: trade-offs; by default those of the model's device.

    Attributes:
        version: of the weights that sample; change it only when no job is in a row.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        rows: int,
        seed: int,
        limits: DecoderLimits | None = None,
    ) -> None:
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._limits = limits or DecoderLimits.of(model.device)
        self._max_rows = rows
        self._held: Buffers | None = None
        self._waiting: deque[Job] = deque()
        self._rows: list[Job | None] = []
        self.version = -1

    @property
    def busy(self) -> bool:
        """Whether any job is not answered yet."""
        return bool(self._waiting) or any(self._rows)

    def add(self, jobs: Sequence[Job]) -> None:
        """Take in jobs, behind those that wait already."""
        self._waiting.extend(jobs)

    @torch.no_grad()
    def advance(self) -> list[Answer]:
        """A few steps for the jobs in rows, after refilling these; returns what has been answered by that."""
        self._drop_cancelled()
        if not any(self._rows):
            self._rows = []
        refused = self._make_room()
        if not self.busy:
            return refused
        self._fill()
        live = [job for job in self._rows if job]
        steps = min(self._limits.steps_per_look, max(job.limit - job.count for job in live))
        longest = max(min(job.count + steps, job.limit) + job.prefix_length for job in live) - 1
        length = self._limits.length_for(longest, self._buffers.shape.capacity)
        mode = _mode(live)
        for _ in range(steps):
            self._buffers.step(len(self._rows), length, mode)
        return [*refused, *self._harvest()]

    def suspend(self) -> None:
        """Take all jobs out of their rows, with what they have; `advance` computes their keys and values anew."""
        occupied = [(row, job) for row, job in enumerate(self._rows) if job]
        self._rows = []
        if not occupied:
            return
        rows = [row for row, _ in occupied]
        self._buffers.slots.stop(rows)
        tokens, logprobs = self._buffers.slots.sampled(rows, max(job.count for _, job in occupied))
        for (_, job), row_tokens, row_logprobs in zip(occupied, tokens, logprobs, strict=True):
            job.leave_row(row_tokens[: job.count], row_logprobs[: job.count], self.version)
        self._waiting.extendleft(job for _, job in reversed(occupied))

    def withdraw(self) -> list[Job]:
        """Take all jobs back, answered with what they have or not at all."""
        self.suspend()
        jobs = list(self._waiting)
        self._waiting.clear()
        return jobs

    def discard(self) -> list[Job]:
        """Take all jobs back after a failure, without what the rows had sampled."""
        jobs = [*(job for job in self._rows if job), *self._waiting]
        self._rows = []
        self._waiting.clear()
        self._held = None
        return jobs

    def release(self) -> None:
        """Let the device memory go until the next `advance`."""
        self.suspend()
        self._held = None

    @property
    def _buffers(self) -> Buffers:
        assert self._held is not None, "no job was given room"
        return self._held

    def _drop_cancelled(self) -> None:
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        rows = [row for row, job in enumerate(self._rows) if job and job.cancelled]
        if rows:
            self._buffers.slots.stop(rows)
            for row in rows:
                self._rows[row] = None

    def _make_room(self) -> list[Answer]:
        """Longer buffers, where those that wait need them. Where the device has no room, such jobs are refused."""
        if not self._waiting:
            return []
        old = self._held.shape if self._held else BufferShape()
        shape = old.grown_for(self._waiting)
        if shape == old:
            return []
        try:
            check_memory(self._model, self._max_rows, shape, old)
        except UserError as error:
            refused = [job for job in self._waiting if old.grown_for([job]) != old]
            self._waiting = deque(job for job in self._waiting if old.grown_for([job]) == old)
            return [(job, error) for job in refused]
        self.release()
        self._held = Buffers(self._model, self._max_rows, shape)
        return []

    def _fill(self) -> None:
        """Refill free rows, or move the last rows together."""
        if self._waiting:
            wanted = sum(job is not None for job in self._rows) + len(self._waiting)
            rows = self._limits.rows_for(min(wanted, self._max_rows), self._max_rows)
            self._rows += [None] * (rows - len(self._rows))
        free = [row for row, job in enumerate(self._rows) if job is None]
        if self._waiting:
            # A prefill of one or two rows costs nearly as much as one of many.
            if len(free) >= max(1, len(self._rows) // 8):
                self._admit(free)
            return
        rows = self._limits.rows_for(len(self._rows) - len(free), self._max_rows)
        if rows > 0.75 * len(self._rows):
            return
        # Some free rows may have to come along, where the number of rows is one of a short list.
        kept = sorted(sorted(range(len(self._rows)), key=lambda row: self._rows[row] is None)[:rows])
        index = torch.tensor(kept, dtype=torch.int64, device=self._model.device)
        self._buffers.cache.keep(index)
        self._buffers.slots.keep(index)
        self._rows = [self._rows[row] for row in kept]

    def _admit(self, free: Sequence[int]) -> None:
        """Put the first of those that wait into free rows."""
        rows = list(free[: len(self._waiting)])
        new = [self._waiting.popleft() for _ in rows]
        for row, job in zip(rows, new, strict=True):
            self._rows[row] = job
        prefixes = [job.prefix for job in new]
        # The last token of a prefix is the input of the first step.
        prefill(
            self._model, self._buffers.cache, rows, [prefix[:-1] for prefix in prefixes], self._limits.prefill_tokens
        )
        self._buffers.slots.admit(
            rows,
            last_token=[int(prefix[-1]) for prefix in prefixes],
            position=[len(prefix) - 1 for prefix in prefixes],
            limit=[job.limit for job in new],
            temperature=[job.params.temperature for job in new],
            top_p=[job.params.top_p for job in new],
            stop_ids=[job.stop_ids for job in new],
            uniforms=[
                uniforms(
                    self._seed + job.params.seed, job.request.request_id, job.request.sample, job.params.max_tokens
                )[len(job.tokens) :]
                for job in new
            ],
        )

    def _harvest(self) -> list[Answer]:
        """Take out what has finished, and free its rows."""
        status = self._buffers.slots.status(len(self._rows))
        stop_at = self._stop_strings(status.count)
        if stop_at:
            self._buffers.slots.stop(list(stop_at))
        done: list[tuple[int, Job]] = []
        for row, job in enumerate(self._rows):
            if job is None:
                continue
            job.count = status.count[row]
            if not status.active[row] or row in stop_at:
                done.append((row, job))
                self._rows[row] = None
        if not done:
            return []
        tokens, logprobs = self._buffers.slots.sampled([row for row, _ in done], max(job.count for _, job in done))
        answers: list[Answer] = []
        for (row, job), row_tokens, row_logprobs in zip(done, tokens, logprobs, strict=True):
            kept = stop_at.get(row, job.count)
            job.leave_row(row_tokens[:kept], row_logprobs[:kept], self.version)
            answers.append((job, job.completion("stop" if row in stop_at or status.stopped[row] else "length")))
        return answers

    def _stop_strings(self, counts: Sequence[int]) -> dict[int, int]:
        """Row -> tokens of it to keep, for the rows in which a stop string has appeared."""
        looked_for = [(row, job) for row, job in enumerate(self._rows) if job is not None and job.params.stop]
        if not looked_for:
            return {}
        assert self._tokenizer is not None
        rows = [row for row, _ in looked_for]
        tokens, _ = self._buffers.slots.sampled(rows, max(counts[row] for row in rows))
        found = {}
        for (row, job), row_tokens in zip(looked_for, tokens, strict=True):
            earlier = len(job.tokens)
            response = torch.cat([job.tokens, row_tokens[: counts[row]]]).tolist()
            keep = find_stop(self._tokenizer, response, earlier + job.count, job.params.stop)
            if keep is not None:
                found[row] = keep - earlier
        return found


def _mode(jobs: Sequence[Job]) -> SampleMode:
    sampled = [job.params for job in jobs if job.params.temperature > 0]
    if not sampled:
        return "greedy"
    return "nucleus" if any(params.top_p < 1 for params in sampled) else "full"
