"""Proof that an engine holds the trainer's weights, and computes with them what the trainer computes.

Invariant: a synchronisation that did not deliver every tensor, bit for bit, ends the run; it never passes as garbage
that merely reads fluently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class WeightMismatchError(RuntimeError):
    """The weights that arrived are not the weights that the model needs. The message names the tensors."""


class SyncError(RuntimeError):
    """Engine and trainer are not the same model: weights, or what is computed with them. The message says what."""


def check_checksums(sent: Mapping[str, int], held: Mapping[str, int], engine: str) -> None:
    """Compare what left the trainer with what an engine holds.

    Args:
        sent, held: checksum by Hugging Face name.
        engine: how the engine is called in the error.

    Raises:
        SyncError: names differ, or a tensor's bits do.
    """
    problems = [f"{name} was not sent" for name in sorted(held.keys() - sent.keys())]
    problems += [f"{name} did not arrive" for name in sorted(sent.keys() - held.keys())]
    problems += [f"{name} arrived changed" for name in sorted(sent.keys() & held.keys()) if sent[name] != held[name]]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SyncError(f"weight synchronisation to {engine} failed: {', '.join(problems[:5])}{more}")


@dataclass(frozen=True)
class Bounds:
    """What two sides may differ by that compute the same in one precision.

    Attributes:
        probe: of the probe, in units of rounding; see `rounding_units`.
        refused: of a step's divergence, in nats a sampled token at temperature 1 or above.
        warned: from here on a run warns.
    """

    probe: float
    refused: float
    warned: float


# By the coarser of the two precisions. Units of rounding, measured between the trainer and transformers:
# float32: 0.2 to 1.6 over the built-in models and random ones with large weights, 3 for SmolLM2-135M. Planted faults
# are above 100, but for a wrong epsilon where activations are large; `pentad.weights.constants` finds that.
# bfloat16: 0.2 to 0.5 over the built-in models, 1.1 to 1.6 in random dense models with large weights, and up to 5.7 in
# mixtures of these, where rounding sends tokens to other experts; built-in mixtures choose clearly. Exchanged layers or
# experts and rolled key heads are above 4 where layers contribute as much as the built-in ones do in tests.
# A step's divergence is 3e-11 in float32 and 0.0014 in bfloat16 for SmolLM2-135M. Ten times the latter is unusual. At
# 0.1 nats importance ratios are off by some 45% a token. In float32 there is room for larger models and other orders of
# summation, not for products in TF32 (by estimate 2e-5).
BOUNDS = {
    torch.float32: Bounds(probe=16.0, refused=1e-6, warned=1e-8),
    torch.bfloat16: Bounds(probe=3.0, refused=0.1, warned=0.015),
}


def rounding_units(trainer: Tensor, engine: Tensor, dtype: torch.dtype, layers: int) -> float:
    """Root-mean-square difference of log-probs over what rounding makes of it, about 1 for two right computations.

    Each layer rounds activations to the machine epsilon of `dtype`, independently of the others, so logits are off by
    about `epsilon * sqrt(layers)` of their spread. The log-softmax is computed in float32 and adds its own rounding.

    Args:
        trainer, engine: float32 `[n]`, log-probs of the same tokens.
        layers: decoder layers of the model.
    """
    one, other = trainer.double(), engine.double()
    size = one.square().mean()
    # Few or equal tokens say little of the spread.
    spread = torch.maximum(one.var(correction=0), 0.01 * size)
    unit = layers * torch.finfo(dtype).eps ** 2 * spread + torch.finfo(torch.float32).eps ** 2 * size
    return float(((one - other).square().mean() / unit.clamp(min=1e-30)).sqrt())


def check_probe(
    trainer: Sequence[Tensor], engine: Sequence[Tensor], dtype: torch.dtype, layers: int, name: str
) -> float:
    """Compare the log-probs that trainer and engine give to the same tokens.

    In float32 this finds every fault that matters. In bfloat16 it finds what changes log-probs by more than rounding
    does: wrong weights, not constants that are slightly wrong, nor one wrong expert of very many.

    Args:
        trainer, engine: float32 `[L]` for each probe sequence; the first token's is not compared.
        dtype: the coarser precision of the two.
        layers: decoder layers of the model.
        name: how the engine is called in the error.

    Returns:
        the difference in units of rounding.

    Raises:
        SyncError: they differ by more than rounding.
    """
    one, other = (torch.cat([sequence[1:] for sequence in side]) for side in (trainer, engine))
    units = rounding_units(one, other, dtype, layers)
    if not units <= BOUNDS[dtype].probe:
        difference = (one - other).abs()
        raise SyncError(
            f"after weight synchronisation {name} and the trainer disagree on the log-probs of the same {len(one)} "
            f"tokens: {units:.3g} times what rounding to {_name(dtype)} explains, where {BOUNDS[dtype].probe:g} is "
            f"allowed (mean difference {float(difference.mean()):.3g} nats, largest {float(difference.max()):.3g}, "
            f"divergence {divergence(other, one):.3g} nats a token); all tensors arrived, so the two compute "
            "differently: another rotary base, epsilon or order of weights, or lower precision than "
            f"{_name(dtype)} in the engine"
        )
    return units


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def divergence(sampler: Tensor, other: Tensor) -> float:
    """Mean k3 estimate of KL(sampler || other) over tokens that the sampler drew, in nats a token.

    http://joschu.net/blog/kl-approx.html: r - 1 - log r with r = other / sampler; for small differences half the mean
    of their squares.

    Args:
        sampler, other: float32 `[n]`, log-probs of the same tokens.
    """
    log_ratio = (other.double() - sampler.double()).clamp(-20, 20)
    return float((log_ratio.expm1() - log_ratio).mean())
