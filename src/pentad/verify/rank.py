"""What one rank does: load, export, score, take two optimizer steps, and compare each with the reference.

Invariant: the rank uses the trainer as training does, with nothing switched off; the distributed optimizer is on.
"""

import gc
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from torch import Tensor
from transformers import PreTrainedConfig

from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.families.lora import is_adapter
from pentad.layout import Layout
from pentad.platform.deterministic import make_deterministic
from pentad.platform.device import DTypeName, Platform, enter_platform
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan, plan_microbatches
from pentad.trainers.megatron.parallel import join_ranks, make_groups
from pentad.trainers.megatron.trainer import Trainer
from pentad.verify.batch import STEPS, TOKENS_PER_MICROBATCH, make_batch
from pentad.verify.findings import RankFindings
from pentad.verify.objective import differentiate, score
from pentad.verify.reference import Reference, relative_number
from pentad.weights.adapters import AdapterReader
from pentad.weights.hf_files import CheckpointReader
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config

_SEED = 1
# A step that is seen against every weight.
_LEARNING_RATE = 1e-2
# Below the norm of the gradient, so that clipping by the global norm is part of what is compared.
_GRAD_CLIP = 0.1


@dataclass(frozen=True)
class Job:
    """What the ranks of one layout are told.

    Attributes:
        checkpoint: the Hugging Face directory.
        reference: where one process left its results, or leaves them.
        writes: this is that process.
        deadline_s: longest time of a collective.
        lora: adapters, and where those are that are begun from; None trains the model.
    """

    layout: Layout
    checkpoint: Path
    reference: Path
    writes: bool
    dtype: DTypeName
    megatron: MegatronSettings
    deadline_s: float
    lora: LoraSettings | None = None


def warm_up(rank: int, meeting: str) -> None:
    """Have everything imported."""


def compute(rank: int, meeting: str, job: Job) -> RankFindings:
    """Everything of one rank, from joining the others to leaving them."""
    watch = _Stopwatch()
    platform = enter_platform(rank)
    if not platform.is_cuda:
        torch.set_num_threads(1)
    if job.megatron.use_deterministic_algorithms:
        make_deterministic()
    join_ranks(platform, rank, job.layout.world, meeting, job.deadline_s)
    groups = make_groups(job.layout, _SEED, job.deadline_s)
    watch.lap("join")
    config = load_config(job.checkpoint)
    adapter = AdapterReader(job.lora.adapter) if job.lora is not None and job.lora.adapter is not None else None
    settings = _settings(expected_shapes(config) if adapter is None else adapter.shapes, job.dtype)
    trainer = Trainer(config, job.layout, groups, platform, settings, job.megatron, STEPS, job.lora)
    watch.lap("build")
    reader = _Checkpoint(CheckpointReader(job.checkpoint), adapter)
    trainer.load(reader, reader)
    watch.lap("load")
    findings = _write(trainer, job, config, watch) if job.writes else _compare(trainer, job, config, reader, watch)
    _leave(platform, trainer)
    watch.lap("leave")
    findings.seconds = watch.seconds
    return findings


class _Stopwatch:
    """Seconds by phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = time.monotonic()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now


class _Checkpoint:
    """The tensors of a model, and of its adapter if there is one."""

    def __init__(self, model: CheckpointReader, adapter: AdapterReader | None) -> None:
        self._model, self._adapter = model, adapter
        self.shapes = {**model.shapes, **(adapter.shapes if adapter is not None else {})}

    def get(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, in its stored dtype."""
        if self._adapter is not None and is_adapter(name):
            return self._adapter.get(name)
        return self._model.get(name)


def _settings(trained: Mapping[str, tuple[int, ...]], dtype: DTypeName) -> TrainerSettings:
    """Adam divides by the size of the gradient, and so makes noise of elements that are nearly zero into full steps.

    An `eps` as large as the usual (clipped) element keeps the step a smooth function of the gradient.

    Args:
        trained: shapes of what is trained.
    """
    elements = sum(math.prod(shape) for shape in trained.values())
    optimizer = OptimizerSettings(
        lr=_LEARNING_RATE, eps=_GRAD_CLIP / math.sqrt(elements), weight_decay=0.1, grad_clip=_GRAD_CLIP
    )
    return TrainerSettings(total_steps=STEPS, dtype=dtype, optimizer=optimizer)


def _plan(batch: Batch, layout: Layout) -> Plan:
    rounds = layout.pipeline if layout.virtual > 1 else 1
    budget = max(TOKENS_PER_MICROBATCH, *batch.lengths)
    return plan_microbatches(batch.lengths, layout.data, budget, multiple=rounds)


def _write(trainer: Trainer, job: Job, config: PreTrainedConfig, watch: _Stopwatch) -> RankFindings:
    """Leave everything that other layouts are compared with."""
    reference, batch = Reference(job.reference), make_batch(config.vocab_size)
    logprobs = score(trainer, batch, _plan(batch, job.layout))
    reference.write_logprobs(1, logprobs)
    watch.lap("log-probs")
    loss = differentiate(trainer, batch, _plan(batch, job.layout), logprobs)
    trained = trainer.trained_samples
    watch.lap("gradients")
    reference.write_tensors("gradients", trainer.gradients())
    losses, norms = [loss], [_step(trainer)]
    for step in range(2, STEPS + 1):
        batch = make_batch(config.vocab_size, step)
        logprobs = score(trainer, batch, _plan(batch, job.layout))
        reference.write_logprobs(step, logprobs)
        losses.append(differentiate(trainer, batch, _plan(batch, job.layout), logprobs))
        norms.append(_step(trainer))
    watch.lap("later steps")
    reference.write_tensors("weights", trainer.weights())
    reference.write_numbers(losses, norms)
    watch.lap("write")
    return RankFindings(stage=0, trained=trained)


def _step(trainer: Trainer) -> float:
    """One optimizer step; returns the norm of the gradient.

    Raises:
        FloatingPointError: the gradient is not finite.
    """
    metrics = trainer.step()
    if metrics["train/skipped_updates"]:
        raise FloatingPointError(f"the gradient is not finite: {', '.join(trainer.not_finite) or 'its norm overflows'}")
    return metrics["train/grad_norm"]


def _compare(
    trainer: Trainer, job: Job, config: PreTrainedConfig, reader: _Checkpoint, watch: _Stopwatch
) -> RankFindings:
    """Log-probs, loss and gradients of the first step, and the weights after the last."""
    reference, batch = Reference(job.reference), make_batch(config.vocab_size)
    found = RankFindings(stage=trainer.groups.pp.rank())
    found.exported = {name: _is_exact(tensor, reader, name) for name, tensor in trainer.weights()}
    watch.lap("export")
    logprobs = score(trainer, batch, _plan(batch, job.layout))
    expected = reference.logprobs(1)
    found.logprobs = by_sample(batch, logprobs, expected)
    watch.lap("log-probs")
    losses = [differentiate(trainer, batch, _plan(batch, job.layout), expected)]
    found.trained = trainer.trained_samples
    watch.lap("gradients")
    found.gradients = reference.gradient_differences(trainer.gradients())
    norms = [_step(trainer)]
    watch.lap("compare")
    for step in range(2, STEPS + 1):
        batch = make_batch(config.vocab_size, step)
        losses.append(differentiate(trainer, batch, _plan(batch, job.layout), reference.logprobs(step)))
        norms.append(_step(trainer))
    watch.lap("later steps")
    found.losses = by_step(losses, reference.losses)
    found.grad_norms = by_step(norms, reference.grad_norms)
    found.weights = reference.weight_differences(trainer.weights())
    if job.lora is not None:
        found.frozen = {name: _is_exact(weight, reader, name) for name, weight in trainer.weights("base")}
    watch.lap("weights")
    return found


def by_step(numbers: list[float], expected: list[float]) -> dict[int, float]:
    """Relative difference of one number a step, by step."""
    pairs = zip(numbers, expected, strict=True)
    return {step: relative_number(one, other) for step, (one, other) in enumerate(pairs, start=1)}


def by_sample(batch: Batch, logprobs: Tensor, expected: Tensor) -> dict[int, float]:
    """Largest difference of a token's log-prob, by sample id."""
    parts: Iterable[Tensor] = (logprobs - expected).abs().split(batch.lengths)
    return {sample: float(part.max()) for sample, part in zip(batch.sample_ids.tolist(), parts, strict=True)}


def _is_exact(tensor: Tensor, reader: _Checkpoint, name: str) -> bool:
    """Whether an exported tensor is the checkpoint's, in the precision that is trained in."""
    if name not in reader.shapes or reader.shapes[name] != tuple(tensor.shape):
        return False
    return torch.equal(tensor, reader.get(name).to(tensor.device, tensor.dtype))


def _leave(platform: Platform, trainer: Trainer) -> None:
    """Make this process ready for another layout."""
    torch.distributed.barrier()
    platform.synchronize()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    trainer.models.clear()
    trainer.chunks.clear()
    trainer.optimizer = None
    if platform.is_cuda:
        # Megatron's modules and their hooks refer to each other.
        gc.collect()
        torch.cuda.empty_cache()
