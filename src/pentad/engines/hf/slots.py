"""The rows in flight, as tensors on the device, and the step that gives each of them one more token.

Invariant: a step reads and writes fixed memory and never waits for the host, so it can be captured as a CUDA graph.
A row that has finished is not changed by further steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pentad.engines.hf.cache import SlotCache
from pentad.engines.hf.sampling import SampleMode, sample

NO_TOKEN = -1


@dataclass(frozen=True)
class SlotStatus:
    """What the host needs to know of the rows after some steps: tokens sampled, still going, ended by a stop token."""

    count: list[int]
    active: list[bool]
    stopped: list[bool]


class Slots:
    """State of `rows` rows, each of at most `max_tokens` sampled tokens and `stop_ids` stop tokens."""

    def __init__(self, rows: int, max_tokens: int, stop_ids: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self.device = device
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)  # the next input
        self.position = torch.zeros_like(self.token)  # of the next input
        self.count = torch.zeros_like(self.token)  # tokens sampled so far
        self.limit = torch.zeros_like(self.token)  # tokens that may be sampled
        self.active = torch.zeros(rows, dtype=torch.bool, device=device)
        self.stopped = torch.zeros_like(self.active)
        self.greedy = torch.zeros_like(self.active)
        self.temperature = torch.ones(rows, dtype=torch.float32, device=device)
        self.top_p = torch.ones_like(self.temperature)
        self.stop_ids = torch.full((rows, stop_ids), NO_TOKEN, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(rows, max_tokens, dtype=torch.float64, device=device)
        # One column more than is ever read takes what finished rows would write.
        self.tokens = torch.zeros(rows, max_tokens + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, max_tokens + 1, dtype=torch.float32, device=device)

    def admit(
        self,
        rows: Sequence[int],
        *,
        last_token: Sequence[int],
        position: Sequence[int],
        limit: Sequence[int],
        temperature: Sequence[float],
        top_p: Sequence[float],
        stop_ids: Sequence[Sequence[int]],
        uniforms: Sequence[np.ndarray],
    ) -> None:
        """Start new sequences in the given rows. A step then feeds `last_token`, the prompt's last, at `position`."""
        width = self.stop_ids.shape[1]
        padded_stops = [[*ids, *[NO_TOKEN] * (width - len(ids))] for ids in stop_ids]
        padded_uniforms = np.zeros((len(rows), self.max_tokens))
        for row, values in zip(padded_uniforms, uniforms, strict=True):
            row[: len(values)] = values
        index = torch.tensor(rows, device=self.device)
        for target, values in (
            (self.token, torch.tensor(last_token)),
            (self.position, torch.tensor(position)),
            (self.limit, torch.tensor(limit)),
            (self.greedy, torch.tensor([value == 0 for value in temperature])),
            (self.temperature, torch.tensor([value or 1.0 for value in temperature], dtype=torch.float32)),
            (self.top_p, torch.tensor(top_p, dtype=torch.float32)),
            (self.stop_ids, torch.tensor(padded_stops, dtype=torch.int64)),
            (self.uniforms, torch.from_numpy(padded_uniforms)),
        ):
            target[index] = values.to(self.device)
        self.count[index] = 0
        self.active[index] = True
        self.stopped[index] = False

    def stop(self, rows: Sequence[int]) -> None:
        """End the given rows."""
        self.active[torch.tensor(rows, device=self.device)] = False

    def keep(self, rows: Tensor) -> None:
        """Move the given rows, ascending, to the front; the rest of the old rows is inactive."""
        for name in ("token", "position", "count", "limit", "active", "stopped", "greedy", "temperature", "top_p"):
            state = getattr(self, name)
            state[: len(rows)] = state[rows]
        for state in (self.stop_ids, self.uniforms, self.tokens, self.logprobs):
            state[: len(rows)] = state[rows]
        self.active[len(rows) :] = False

    def status(self, rows: int) -> SlotStatus:
        """Of the first rows; waits for the device."""
        state = torch.stack([self.count[:rows], self.active[:rows].long(), self.stopped[:rows].long()])
        count, active, stopped = state.tolist()
        return SlotStatus(count, [bool(value) for value in active], [bool(value) for value in stopped])

    def sampled(self, rows: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs `[len(rows), width]` on the host."""
        index = torch.tensor(rows, device=self.device)
        return self.tokens[index, :width].cpu(), self.logprobs[index, :width].cpu()

    def step(self, model: PreTrainedModel, cache: SlotCache, rows: int, length: int, mode: SampleMode) -> None:
        """Sample one token for each of the first `rows` rows, whose positions are all below `length`."""
        position, active, count = self.position[:rows], self.active[:rows], self.count[:rows]
        cache.decode(position, length)
        visible = torch.arange(length, device=self.device) <= position[:, None]
        hidden = torch.finfo(model.dtype).min
        mask = torch.zeros(rows, length, dtype=model.dtype, device=self.device).masked_fill_(~visible, hidden)
        logits = model(
            input_ids=self.token[:rows, None],
            position_ids=position[:, None],
            attention_mask=mask[:, None, None, :],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        uniform = self.uniforms[:rows].gather(1, count.clamp_max(self.max_tokens - 1)[:, None])[:, 0]
        tokens, logprobs = sample(
            logits.float(), self.temperature[:rows], self.greedy[:rows], self.top_p[:rows], uniform, mode
        )
        column = torch.where(active, count, self.max_tokens)[:, None]
        self.tokens[:rows].scatter_(1, column, tokens[:, None])
        self.logprobs[:rows].scatter_(1, column, logprobs[:, None])
        hit = (tokens[:, None] == self.stop_ids[:rows]).any(dim=1) & active
        self.stopped[:rows].logical_or_(hit)
        self.token[:rows].copy_(torch.where(active, tokens, self.token[:rows]))
        position.add_(active)
        count.add_(active)
        active.logical_and_(~hit & (count < self.limit[:rows]))
