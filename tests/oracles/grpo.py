"""GRPO in one process on recorded completions: a transformers model, torch's AdamW, float32. Nothing of Pentad.

    python grpo.py MODEL RECORDING.jsonl '{"lr": 1e-3, "kl_coef": 0.1, "optimizer_steps": 2}'

prints one JSON object a step: `step`, `loss` and `grad_norm` (means over its optimizer steps), and `updates`, a pair of
loss and gradient norm (before clipping) for each optimizer step.

A recording has one sample a line, in the order of training::

    {"step": 1, "group": 0, "prompt": [5, 3], "response": [7], "reward": 1.0}

Tokens are ids, and samples of one prompt have the group's number in common. Other keys are not read, so that an engine
may replay the same file.

Invariant: old log-probs are those of the policy before the first optimizer step of their step; reference log-probs are
those of the model before all steps.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import losses
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What is trained with; the learning rate is constant."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.1
    kl_estimator: str = "k3"
    loss_mean: str = "token"
    advantage_std: bool = True
    optimizer_steps: int = 2


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt."""

    step: int
    group: int
    prompt: list[int]
    response: list[int]
    reward: float


@dataclass(frozen=True)
class Step:
    """What one step reports."""

    step: int
    loss: float
    grad_norm: float
    updates: list[tuple[float, float]]


def read(recording: Path) -> list[Sample]:
    rows = [json.loads(line) for line in recording.read_text().splitlines()]
    return [Sample(**{field.name: row[field.name] for field in fields(Sample)}) for row in rows]


def write(samples: Sequence[Sample], recording: Path) -> None:
    recording.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))


def train(model: nn.Module, samples: Sequence[Sample], recipe: Recipe) -> list[Step]:
    """Every step of a recording; the model is changed.

    Args:
        model: called as a causal transformers model is.
    """
    reference = copy.deepcopy(model)
    optimizer = make_optimizer(model, recipe)
    done = []
    for step in sorted({sample.step for sample in samples}):
        batch = [sample for sample in samples if sample.step == step]
        with torch.no_grad():
            old = [logprobs(model, sample, recipe.temperature) for sample in batch]
            wanted = [logprobs(reference, sample, recipe.temperature) for sample in batch]
        credit = losses.advantages(
            [sample.reward for sample in batch],
            [sample.group for sample in batch],
            divide_by_std=recipe.advantage_std,
        )
        updates = []
        for part in minibatches(batch, recipe.optimizer_steps):
            loss = losses.grpo(
                [logprobs(model, batch[index], recipe.temperature) for index in part],
                [old[index] for index in part],
                [credit[index] for index in part],
                low=recipe.clip_low,
                high=recipe.clip_high,
                reference=[wanted[index] for index in part],
                kl_coef=recipe.kl_coef,
                estimator=recipe.kl_estimator,
                over=recipe.loss_mean,
            )
            updates.append((loss.item(), update(model, optimizer, loss, recipe.grad_clip)))
        done.append(Step(step, fmean(one for one, _ in updates), fmean(norm for _, norm in updates), updates))
    return done


def logprobs(model: nn.Module, sample: Sample, temperature: float) -> Tensor:
    """Float32 `[R]`, of the response's tokens at a temperature."""
    tokens = torch.tensor([sample.prompt + sample.response])
    logits = model(input_ids=tokens, use_cache=False).logits[0].float() / temperature
    first = len(sample.prompt)
    rows = torch.log_softmax(logits[first - 1 : -1], dim=-1)
    return rows.gather(1, tokens[0, first:, None])[:, 0]


def minibatches(batch: Sequence[Sample], parts: int) -> list[list[int]]:
    """Indices of the samples of each optimizer step: whole groups in their order, equally many in each.

    Raises:
        ValueError: the groups cannot be divided equally.
    """
    groups = list(dict.fromkeys(sample.group for sample in batch))
    if len(groups) % parts:
        raise ValueError(f"{len(groups)} groups cannot be divided equally by {parts} optimizer steps")
    each = len(groups) // parts
    chosen = [groups[part * each : (part + 1) * each] for part in range(parts)]
    return [[index for index, sample in enumerate(batch) if sample.group in some] for some in chosen]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW as Megatron sets it up: vectors (norms and biases) do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float) -> float:
    """One optimizer step; returns the norm of the gradient before it is clipped (0: it is not)."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    return float(norm)


def load(directory: Path) -> nn.Module:
    """A model in float32, by the plainest implementation that transformers has."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    # transformers gives the embedding of a padding token no gradient; here it is a token as any other.
    model.get_input_embeddings().padding_idx = None
    return model.eval()


def main(directory: str, recording: str, recipe: str) -> None:
    for step in train(load(Path(directory)), read(Path(recording)), Recipe(**json.loads(recipe))):
        print(json.dumps(asdict(step)))


if __name__ == "__main__":
    main(*sys.argv[1:])
