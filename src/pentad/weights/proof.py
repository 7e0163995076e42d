"""Proof that an engine holds the trainer's weights.

Invariant: a synchronisation that did not deliver every tensor, bit for bit, ends the run; it never passes as garbage
that merely reads fluently.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class WeightMismatchError(RuntimeError):
    """The weights that arrived are not the weights that the model needs. The message names the tensors."""


class SyncError(RuntimeError):
    """The engine's weights are not the trainer's. The message names the tensors."""


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


# Largest |difference| of one token's log-prob that rounding alone explains, by the coarser of the two precisions. In
# bfloat16 a small model's log-probs are off by 0.04 to 0.14 in the mean and up to 0.8 (SmolLM2-135M, transformers
# against itself in float32); that the bits arrived is shown by the checksums, this finds models that compute
# something else with them.
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2.0}
# The mean tells a wrong model from rounding long before the largest difference does.
PROBE_MEAN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}


def check_probe(trainer: Sequence[Tensor], engine: Sequence[Tensor], dtype: torch.dtype, name: str) -> float:
    """Compare the log-probs that trainer and engine give to the same tokens.

    Args:
        trainer, engine: float32 `[L]` for each probe sequence.
        dtype: the coarser precision of the two.
        name: how the engine is called in the error.

    Returns:
        the largest absolute difference.

    Raises:
        SyncError: they differ by more than rounding.
    """
    differences = torch.cat([(a - b).abs() for a, b in zip(trainer, engine, strict=True)])
    largest, mean = float(differences.max()), float(differences.mean())
    if not (largest <= PROBE_TOLERANCE[dtype] and mean <= PROBE_MEAN_TOLERANCE[dtype]):
        raise SyncError(
            f"after weight synchronisation {name} and the trainer disagree on the log-probs of the same tokens: "
            f"largest difference {largest:.3g}, mean {mean:.3g}; all tensors arrived, so the two compute differently"
        )
    return largest


def divergence(sampler: Tensor, other: Tensor) -> float:
    """Mean k3 estimate of KL(sampler || other) over tokens that the sampler drew, in nats a token.

    http://joschu.net/blog/kl-approx.html: r - 1 - log r with r = other / sampler; for small differences half the mean
    of their squares.

    Args:
        sampler, other: float32 `[n]`, log-probs of the same tokens.
    """
    log_ratio = (other.double() - sampler.double()).clamp(-20, 20)
    return float((log_ratio.expm1() - log_ratio).mean())
