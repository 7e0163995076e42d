"""Which completion sits in which row, from prefill to the last token.

Invariant: every sample of every request is admitted once and harvested once. Rows that finish are refilled while
anything waits; afterwards the rows that remain move together, so that a long tail does not pay for empty rows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pentad.engines.hf.cache import SlotCache
from pentad.engines.hf.graphs import GraphedStep
from pentad.engines.hf.sampling import SampleMode, uniforms
from pentad.engines.hf.slots import Slots
from pentad.engines.hf.stopping import find_stop
from pentad.engines.protocol import Progress
from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest

_SMALLEST_GRAPH_ROWS = 8


@dataclass
class _Occupant:
    request: int
    sample: int
    prompt_tokens: int
    limit: int
    count: int = 0


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


class Decoder:
    """Decodes requests over a cache and its slots, which it owns.

    Args:
        model: transformers causal language model, in evaluation mode.
        tokenizer: decodes text for stop strings; None where no request has any.
        rows: sequences decoded at once.
        capacity: longest sequence, prompt and response.
        max_tokens: longest response.
        stop_ids: most stop tokens of a request.
        seed: goes into every random number.
        limits: trade-offs; by default those of the model's device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        rows: int,
        capacity: int,
        max_tokens: int,
        stop_ids: int,
        seed: int,
        limits: DecoderLimits | None = None,
    ) -> None:
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._device = model.device
        self._limits = limits or DecoderLimits.of(self._device)
        self._rows = rows
        self._cache = SlotCache(model.config, rows, capacity, model.dtype, self._device)
        self._slots = Slots(rows, max_tokens, stop_ids, self._device)
        self._step = GraphedStep(self._run_step, self._device)
        self.capacity, self.max_tokens, self.stop_ids = capacity, max_tokens, stop_ids

    def _run_step(self, rows: int, length: int, mode: SampleMode) -> None:
        self._slots.step(self._model, self._cache, rows, length, mode)

    @torch.no_grad()
    def run(
        self,
        requests: Sequence[GenerateRequest],
        stop_ids: Sequence[Sequence[int]],
        version: int,
        progress: Progress | None,
    ) -> list[list[Completion]]:
        """Complete all requests; `stop_ids[i]` are all tokens that end a response to `requests[i]`."""
        results: list[list[Completion | None]] = [[None] * request.params.n for request in requests]
        waiting = deque((i, sample) for i, request in enumerate(requests) for sample in range(request.params.n))
        total, finished = len(waiting), 0
        mode = _mode(requests)
        occupants: list[_Occupant | None] = [None] * self._shape(min(len(waiting), self._rows))
        while waiting or any(occupants):
            occupants = self._fill(occupants, waiting, requests, stop_ids)
            live = [occupant for occupant in occupants if occupant]
            steps = min(self._limits.steps_per_look, max(o.limit - o.count for o in live))
            length = self._bound(max(min(o.count + steps, o.limit) + o.prompt_tokens for o in live) - 1)
            for _ in range(steps):
                self._step(len(occupants), length, mode)
            harvest = self._harvest(occupants, requests, version)
            for occupant, completion in harvest:
                results[occupant.request][occupant.sample] = completion
            finished += len(harvest)
            if harvest and progress is not None:
                progress(finished, total)
        return [[_present(completion) for completion in group] for group in results]

    def _fill(
        self,
        occupants: list[_Occupant | None],
        waiting: deque[tuple[int, int]],
        requests: Sequence[GenerateRequest],
        stop_ids: Sequence[Sequence[int]],
    ) -> list[_Occupant | None]:
        """Refill free rows, or move the last rows together; returns the occupants of the rows in use."""
        free = [row for row, occupant in enumerate(occupants) if occupant is None]
        if waiting:
            # A prefill of one or two rows costs nearly as much as one of many.
            if len(free) >= max(1, len(occupants) // 8):
                self._admit(occupants, free, waiting, requests, stop_ids)
            return occupants
        rows = self._shape(len(occupants) - len(free))
        if rows > 0.75 * len(occupants):
            return occupants
        # Some free rows may have to come along, where the number of rows is one of a short list.
        kept = sorted(sorted(range(len(occupants)), key=lambda row: occupants[row] is None)[:rows])
        index = torch.tensor(kept, device=self._device)
        self._cache.keep(index)
        self._slots.keep(index)
        return [occupants[row] for row in kept]

    def _admit(
        self,
        occupants: list[_Occupant | None],
        free: Sequence[int],
        waiting: deque[tuple[int, int]],
        requests: Sequence[GenerateRequest],
        stop_ids: Sequence[Sequence[int]],
    ) -> None:
        rows: list[int] = []
        new: list[_Occupant] = []
        for row in free[: len(waiting)]:
            index, sample = waiting.popleft()
            request = requests[index]
            occupant = _Occupant(index, sample, len(request.prompt_tokens), request.params.max_tokens)
            occupants[row] = occupant
            rows.append(row)
            new.append(occupant)
        self._prefill(rows, new, requests)
        params = [requests[occupant.request].params for occupant in new]
        self._slots.admit(
            rows,
            last_token=[int(requests[occupant.request].prompt_tokens[-1]) for occupant in new],
            position=[occupant.prompt_tokens - 1 for occupant in new],
            limit=[occupant.limit for occupant in new],
            temperature=[p.temperature for p in params],
            top_p=[p.top_p for p in params],
            stop_ids=[stop_ids[occupant.request] for occupant in new],
            uniforms=[
                uniforms(self._seed + p.seed, requests[o.request].request_id, o.sample, o.limit)
                for o, p in zip(new, params, strict=True)
            ],
        )

    def _prefill(self, rows: Sequence[int], new: Sequence[_Occupant], requests: Sequence[GenerateRequest]) -> None:
        """Put all but the last token of each prompt into the cache; the last is the input of the first step."""
        rows_of: dict[int, list[int]] = {}
        for row, occupant in zip(rows, new, strict=True):
            rows_of.setdefault(occupant.request, []).append(row)
        prompts = [(requests[index].prompt_tokens[:-1], slots) for index, slots in rows_of.items()]
        prompts = sorted((prompt for prompt in prompts if len(prompt[0])), key=lambda prompt: len(prompt[0]))
        while prompts:
            # Longest first, so that the width is known; prompts of like length share a pass.
            width = len(prompts[-1][0])
            batch = prompts[-max(1, self._limits.prefill_tokens // width) :]
            del prompts[-len(batch) :]
            tokens = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, (prompt, _) in zip(tokens, batch, strict=True):
                row[: len(prompt)] = prompt
            # Padding is on the right, where causal attention never looks, and decoding overwrites it.
            self._cache.prefill(
                slots=torch.tensor([slot for _, slots in batch for slot in slots], device=self._device),
                source=torch.tensor([i for i, (_, slots) in enumerate(batch) for _ in slots], device=self._device),
            )
            self._model.base_model(
                input_ids=tokens.to(self._device),
                position_ids=torch.arange(width, device=self._device)[None].expand(len(batch), -1),
                past_key_values=self._cache,
                use_cache=True,
            )

    def _harvest(
        self, occupants: list[_Occupant | None], requests: Sequence[GenerateRequest], version: int
    ) -> list[tuple[_Occupant, Completion]]:
        """Take out what has finished, and free its rows."""
        status = self._slots.status(len(occupants))
        stop_at = self._stop_strings(occupants, requests, status.count)
        if stop_at:
            self._slots.stop(list(stop_at))
        done: list[tuple[int, _Occupant]] = []
        for row, occupant in enumerate(occupants):
            if occupant is None:
                continue
            occupant.count = status.count[row]
            if not status.active[row] or row in stop_at:
                done.append((row, occupant))
                occupants[row] = None
        if not done:
            return []
        tokens, logprobs = self._slots.sampled([row for row, _ in done], max(status.count[row] for row, _ in done))
        harvest = []
        for (row, occupant), row_tokens, row_logprobs in zip(done, tokens, logprobs, strict=True):
            count = stop_at.get(row, occupant.count)
            stopped = row in stop_at or status.stopped[row]
            completion = Completion(
                prompt_tokens=requests[occupant.request].prompt_tokens,
                response_tokens=row_tokens[:count].clone(),
                response_logprobs=row_logprobs[:count].clone(),
                weight_version=version,
                finish_reason="stop" if stopped else "length",
            )
            harvest.append((occupant, completion))
        return harvest

    def _stop_strings(
        self, occupants: Sequence[_Occupant | None], requests: Sequence[GenerateRequest], counts: Sequence[int]
    ) -> dict[int, int]:
        """Row -> tokens to keep, for the rows in which a stop string has appeared."""
        looked_for = [
            (row, occupant)
            for row, occupant in enumerate(occupants)
            if occupant is not None and requests[occupant.request].params.stop
        ]
        if not looked_for:
            return {}
        assert self._tokenizer is not None
        tokens, _ = self._slots.sampled([row for row, _ in looked_for], max(counts[row] for row, _ in looked_for))
        found = {}
        for (row, occupant), row_tokens in zip(looked_for, tokens.tolist(), strict=True):
            stops = requests[occupant.request].params.stop
            keep = find_stop(self._tokenizer, row_tokens[: counts[row]], occupant.count, stops)
            if keep is not None:
                found[row] = keep
        return found

    def _shape(self, rows: int) -> int:
        """The number of rows to decode when so many are wanted."""
        if not self._limits.shaped_rows:
            return rows
        shape = self._rows
        while shape // 2 >= max(rows, _SMALLEST_GRAPH_ROWS):
            shape //= 2
        return shape

    def _bound(self, length: int) -> int:
        """The length to attend over when the longest row will have so many tokens."""
        step = max(self._limits.length_step, 1 << max(0, length.bit_length() - 4))
        return min(self.capacity, -(-length // step) * step)


def _present(completion: Completion | None) -> Completion:
    assert completion is not None, "a sample was never harvested"
    return completion


def _mode(requests: Sequence[GenerateRequest]) -> SampleMode:
    sampled = [request.params for request in requests if request.params.temperature > 0]
    if not sampled:
        return "greedy"
    return "nucleus" if any(params.top_p < 1 for params in sampled) else "full"
