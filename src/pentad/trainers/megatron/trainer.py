"""One rank of training: a model, its gradients and its optimizer.

Invariant: every rank is handed the same batch and the same plan and takes its own share of them, by its Megatron
process groups. Denominators are counted over the whole minibatch before the first backward, so neither the layout
nor the packing can change a gradient. The verbs know nothing of any algorithm.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from transformers import PreTrainedConfig

from pentad.algorithms.protocol import Loss, Mean
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.errors import UserError
from pentad.families.lora import Targets, base_of
from pentad.kernels.selection import select_kernels
from pentad.layout import Layout
from pentad.layout.context import context_method
from pentad.platform.device import Platform
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan
from pentad.trainers.megatron.build import build_chunks, transformer_config
from pentad.trainers.megatron.expert_load import expert_load, reset_expert_load
from pentad.trainers.megatron.gradients import finalize, not_finite, reduced_gradients
from pentad.trainers.megatron.last_stage import as_pairs, is_last_stage, send_from_last_stage, sum_over_microbatches
from pentad.trainers.megatron.lora import Adapter, adapters_off, attach, published, seed_dropout
from pentad.trainers.megatron.microbatch import Microbatch, make_microbatch
from pentad.trainers.megatron.optimizer import (
    make_optimizer,
    make_schedule,
    wrap_data_parallel,
)
from pentad.trainers.megatron.outputs import as_outputs, logprobs_of, place, values_of
from pentad.trainers.megatron.rotary import RotaryTable
from pentad.trainers.megatron.stepping import fused_step, plain_step
from pentad.trainers.protocol import Published
from pentad.weights.hf_files import TensorSource
from pentad.weights.mapping import WeightMapping

Progress = Callable[[int], None]


def _no_progress(done: int) -> None:
    pass


class Trainer:
    """The policy, the reference or the critic on one rank.

    Args:
        config: the model's Hugging Face configuration.
        layout: how the model is split.
        groups: Megatron's process groups for that layout.
        platform: where this rank computes.
        settings, megatron: as configured.
        optimizer_steps: of the whole run, for the schedule; None for a model that is never trained.
        lora: which adapters are trained, instead of the model; None: the model itself.
        seed: of what adapters begin with, and of their dropout.

    Attributes:
        is_critic: this model gives values, and no log-probs.
        adapters: by the Megatron names of the weights that they stand beside.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layout: Layout,
        groups: ProcessGroupCollection,
        platform: Platform,
        settings: TrainerSettings,
        megatron: MegatronSettings,
        optimizer_steps: int | None,
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.groups = groups
        self.platform = platform
        self.settings = settings
        self.dtype = platform.dtype(settings.dtype)
        self.lora, self.seed = lora, seed
        self.mapping = WeightMapping(config, groups, lora and Targets(lora.targets, lora.exclude))
        self.is_critic = self.mapping.facts.value_head
        self.context_method = context_method(self.mapping.facts, layout)
        self.megatron = transformer_config(config, layout, self.dtype, megatron)
        self.kernels = select_kernels(
            platform.device, self.dtype, settings.kernels, deterministic=megatron.use_deterministic_algorithms
        )
        self.chunks = build_chunks(config, self.megatron, layout, groups, self.kernels)
        for chunk in self.chunks:
            chunk.module.to(platform.device)
        self.adapters: dict[str, Adapter] = {}
        if lora is not None:
            dtype = self.dtype if lora.dtype == "auto" else platform.dtype(lora.dtype)
            self.adapters = attach(self.chunks, self.mapping, lora, groups, dtype)
        self.rotary = RotaryTable(config, platform.device)
        self._schedule_function = get_forward_backward_func()
        self.optimizer = self.schedule = None
        self.trained_samples: list[int] = []
        self.not_finite: list[str] = []
        self._differentiates_entropy = False
        self.models: list[Any] = [chunk.module for chunk in self.chunks]
        if optimizer_steps is not None:
            self.models = wrap_data_parallel(self.models, self.megatron, megatron.ddp, groups)
            self.optimizer = make_optimizer(
                self.models, settings.optimizer, settings.schedule, self.dtype, megatron.optimizer, self.kernels
            )
            self.schedule = make_schedule(self.optimizer, settings.optimizer, settings.schedule, optimizer_steps)
            self.megatron.finalize_model_grads_func = partial(finalize, self.adapters, groups)
            # Overlapped reduction must wait for the last microbatch, whatever their number was in the step before.
            waits = [model.no_sync for model in self.models]
            self.megatron.no_sync_func = waits if len(waits) > 1 else waits[0]
            self.megatron.grad_scale_func = self.optimizer.scale_loss
        else:
            for chunk in self.chunks:
                chunk.module.requires_grad_(False)

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This rank's parameters under their Megatron names in the whole model."""
        for chunk in self.chunks:
            yield from self.mapping.parameters(chunk.module, chunk.layer_offset)

    def load(self, reader: TensorSource, adapter: TensorSource | None = None) -> None:
        """Take the weights of a checkpoint; masters and moments start anew from them.

        Args:
            adapter: has the matrices of adapters; needed where there are adapters.
        """
        parameters = list(self.parameters())
        self.mapping.load([one for one in parameters if base_of(one[0]) is None], reader)
        if adapter is not None:
            self.mapping.load([one for one in parameters if base_of(one[0]) is not None], adapter)
        if self.optimizer is not None:
            self.optimizer.reload_model_params()

    def weights(self, what: Published = "all") -> Iterator[tuple[str, Tensor]]:
        """Whole Hugging Face tensors of this pipeline stage, one at a time; see `WeightMapping.export`.

        Args:
            what: `all` parameters; the `base` or the `adapters` alone; or the model with adapters `merged` into it.
        """
        return self.mapping.export(published(self.parameters(), self.adapters, what))

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside it, this is the model that training began from: the reference."""
        return adapters_off(self.adapters.values())

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole float32 gradients under Hugging Face names, of this pipeline stage; after `forward_backward`.

        A collective as `weights` is, and of the data-parallel ranks, too. Nothing changes; see `reduced_gradients`.
        """
        names = {parameter: name for name, parameter in self.parameters()}
        return self.mapping.export((names[parameter], value) for parameter, value in reduced_gradients(self.models))

    @torch.no_grad()
    def logprobs(
        self, batch: Batch, plan: Plan, temperature: float, progress: Progress = _no_progress
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the tokens in the loss mask.

        Args:
            batch: the whole batch, the same on every rank.
            plan: how it is packed and shared out.
            temperature: divides the logits.

        Returns:
            float32 `[T]` each, on the CPU, the same on every rank; 0 outside the loss mask.
        """
        if self.is_critic:
            raise ValueError("a critic has no log-probs")
        both = self._score(batch, plan, temperature, progress, rows=2)
        return both[0], both[1]

    @torch.no_grad()
    def values(self, batch: Batch, plan: Plan, progress: Progress = _no_progress) -> Tensor:
        """A critic's values of the tokens in the loss mask, each predicted from the tokens before it.

        Returns:
            float32 `[T]`, on the CPU, the same on every rank; 0 outside the loss mask.
        """
        if not self.is_critic:
            raise ValueError("only a critic has values")
        return self._score(batch, plan, 1.0, progress, rows=1)[0]

    def _score(self, batch: Batch, plan: Plan, temperature: float, progress: Progress, rows: int) -> Tensor:
        """What `_outputs` gives of a whole batch, without gradients: float32 `[rows, T]`, on the CPU."""
        for chunk in self.chunks:
            chunk.module.eval()
        found = torch.zeros(rows, batch.num_tokens, device=self.platform.device)
        mine = self._my_microbatches(plan)

        def collect(outputs: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            nothing = outputs.new_zeros((), dtype=torch.int)
            return outputs.sum() * 0, nothing, {"found": outputs.detach()}

        results = self._run(batch, mine, temperature, collect, progress, forward_only=True)
        for indices, result in zip(mine, results, strict=is_last_stage(self.groups)):
            place(result["found"], indices, batch, found)
        torch.distributed.all_reduce(found, group=self.groups.dp)
        send_from_last_stage(found, self.groups)
        return found.cpu()

    def forward_backward(
        self, batch: Batch, plan: Plan, loss: Loss, temperature: float = 1.0, progress: Progress = _no_progress
    ) -> dict[str, float]:
        """Gradients of a loss over one minibatch, ready for `step`.

        Args:
            batch: the whole minibatch, the same on every rank.
            plan: how it is packed and shared out.

        Returns:
            `train/loss` and the loss's metrics, over the whole minibatch, the same on every rank.

        `trained_samples` then says which samples this rank answers for.
        """
        for chunk, model in zip(self.chunks, self.models, strict=True):
            chunk.module.train()
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        seed_dropout(self.lora, self.seed, self.schedule.num_steps)
        denominator = loss.denominator(batch)
        if not denominator > 0:
            raise UserError(
                f"the denominator of the loss is {denominator!r}; it must be above 0",
                "give at least 1 where nothing is trained on",
            )
        self._differentiates_entropy = loss.differentiates_entropy
        # Megatron weighs a router's auxiliary losses by the tokens of their microbatch.
        self.megatron.moe_grad_scale_func = lambda: self.optimizer.scale_loss(
            torch.full((1,), 1 / batch.num_tokens, device=self.platform.device)
        )
        reset_expert_load(self._modules)
        self.trained_samples = []
        # Ranks of one tensor- or context-parallel group compute the same loss.
        is_reporting_rank = self.groups.tp.rank() == 0 and self.groups.cp.rank() == 0

        def reduce(outputs: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            if is_reporting_rank:
                self.trained_samples += microbatch.sample_ids
            made = as_outputs(outputs)
            loss_sum, means = loss(made, microbatch.batch)
            means = {**means, "train/loss": Mean(loss_sum.detach(), 0.0)}
            if not self.is_critic:
                tokens = microbatch.batch.loss_mask.sum()
                means["train/entropy"] = Mean(made.entropies.detach().sum(), tokens)
            # Megatron would divide gradients by the sum of the second value; see `_finalize`.
            nothing = outputs.new_zeros((), dtype=torch.int)
            return loss_sum / denominator, nothing, as_pairs(means)

        mine = self._my_microbatches(plan)
        results = self._run(batch, mine, temperature, reduce, progress, forward_only=False)
        self._differentiates_entropy = False
        if self.kernels.optimizer == "fused":
            # Takes the host a few milliseconds, while the GPU still works.
            self.optimizer.prepare_grads()
        sums = sum_over_microbatches(results, self.groups, self.platform.device)
        sums["train/loss"] = (sums["train/loss"][0], denominator)
        metrics = {name: total / divisor if divisor else 0.0 for name, (total, divisor) in sums.items()}
        if experts := self.mapping.facts.num_experts:
            metrics |= expert_load(self._modules, self.groups, experts)
        return metrics

    def step(self) -> dict[str, float]:
        """Clip, update, move the schedule.

        A gradient that is not finite changes nothing: weights, moments and schedule stay, `train/skipped_updates` is 1,
        and `not_finite` names this rank's tensors.
        """
        self.not_finite = []
        take = fused_step if self.kernels.optimizer == "fused" else plain_step
        counted = take(self.optimizer, self.schedule, self.settings.optimizer.grad_clip)
        skipped = not math.isfinite(counted["train/grad_norm"])
        if skipped:
            self.not_finite = not_finite(self.parameters(), self.mapping)
            del counted["train/grad_norm"]
        rate = self.optimizer.param_groups[0]["lr"]
        return {**counted, "train/lr": rate, "train/skipped_updates": float(skipped)}

    @property
    def _modules(self) -> list[GPTModel]:
        return [chunk.module for chunk in self.chunks]

    def _my_microbatches(self, plan: Plan) -> tuple[tuple[int, ...], ...]:
        if len(plan.microbatches) != self.groups.dp.size():
            raise ValueError(f"a plan for {len(plan.microbatches)} ranks on {self.groups.dp.size()}")
        return plan.microbatches[self.groups.dp.rank()]

    def _run(
        self,
        batch: Batch,
        indices: Sequence[tuple[int, ...]],
        temperature: float,
        finish: Callable[[Tensor, Microbatch], tuple[Tensor, Tensor, dict[str, Tensor]]],
        progress: Progress,
        *,
        forward_only: bool,
    ) -> list[dict[str, Tensor]]:
        """Megatron's schedule over this rank's microbatches; `finish` turns log-probs into a loss."""
        # Every virtual stage has an iterator of its own over the same microbatches; the last virtual stage frees
        # the microbatch.
        made: dict[int, tuple[Microbatch, int]] = {}
        done = 0

        def microbatches() -> Iterator[Microbatch]:
            for number, chosen in enumerate(indices):
                microbatch, asked = made.pop(number, (None, 0))
                if microbatch is None:
                    microbatch = make_microbatch(
                        batch,
                        chosen,
                        tensor_ranks=self.groups.tp.size(),
                        context=(self.groups.cp.rank(), self.groups.cp.size()),
                        method=self.context_method,
                        rotary=self.rotary,
                        device=self.platform.device,
                        dtype=self.dtype,
                    )
                if asked + 1 < len(self.models):
                    made[number] = (microbatch, asked + 1)
                yield microbatch

        def forward_step(iterator: Iterator[Microbatch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
            nonlocal done
            microbatch = next(iterator)
            output = model(
                input_ids=microbatch.tokens,
                position_ids=None,
                attention_mask=None,
                packed_seq_params=microbatch.packed,
                output_processor=self._outputs,
                output_processor_context=(microbatch, temperature),
            )
            done += 1
            progress(done // len(self.models))
            return output, lambda outputs: finish(outputs, microbatch)

        several = len(self.models) > 1
        return self._schedule_function(
            forward_step_func=forward_step,
            data_iterator=[microbatches() for _ in self.models] if several else microbatches(),
            model=self.models,
            num_microbatches=len(indices),
            # The real lengths travel with the activations (variable_seq_lengths).
            seq_length=self.groups.tp.size() * self.groups.cp.size(),
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _outputs(self, *, hidden_states: Tensor, output_weight: Tensor | None, **rest: Any) -> Tensor:
        """Megatron's output hook: what the loss is a function of, for all tokens of the microbatch."""
        microbatch, temperature = rest["context"]
        parallel = self.megatron.sequence_parallel
        if self.is_critic:
            return values_of(hidden_states, rest["output_layer"], microbatch, self.groups, sequence_parallel=parallel)
        return logprobs_of(
            hidden_states,
            output_weight if output_weight is not None else rest["output_layer"].weight,
            microbatch,
            self.groups,
            self.kernels,
            sequence_parallel=parallel,
            temperature=temperature,
            vocab_size=self.mapping.facts.vocab_size,
            differentiates_entropy=self._differentiates_entropy,
        )
