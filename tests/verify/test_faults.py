"""The check can fail: faults that other trainers have shipped, switched on in the ranks, are each found and named.

The ranks are forked from this process and inherit what is patched here; one process, which they are compared with,
has computed before.
"""

import dataclasses
import importlib
import re
from typing import Any

import megatron.core.optimizer.optimizer as megatron_optimizer
import megatron.core.transformer.attention as megatron_attention
import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, param_and_grad_buffer
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from torch import Tensor

import pentad.trainers.megatron.build as build
import pentad.trainers.megatron.outputs as outputs
from pentad.algorithms.policy_loss import PolicyLoss
from pentad.layout import Layout
from pentad.trainers.megatron.attention import PackedAttention
from pentad.trainers.megatron.norm import RMSNorm
from pentad.trainers.megatron.packing import PackedInputs
from pentad.trainers.megatron.trainer import Trainer
from pentad.weights.mapping import WeightMapping


def gradient_scaled_by_context(patch: pytest.MonkeyPatch) -> None:
    right = outputs.reduce_from_tensor_model_parallel_region

    def scaled(x: Tensor, group: Any) -> Tensor:
        result, ranks = right(x, group=group), group.size()
        return ranks * result - (ranks - 1) * result.detach()

    patch.setattr(outputs, "reduce_from_tensor_model_parallel_region", scaled)


def norm_gradients_not_reduced(patch: pytest.MonkeyPatch) -> None:
    right = RMSNorm.__init__

    def unmarked(self: RMSNorm, *args: Any, **kwargs: Any) -> None:
        right(self, *args, **kwargs)
        self.weight.sequence_parallel = False

    patch.setattr(RMSNorm, "__init__", unmarked)


def experts_swapped(patch: pytest.MonkeyPatch) -> None:
    right = WeightMapping._local_experts
    patch.setattr(WeightMapping, "_local_experts", lambda self: list(reversed(right(self))))


def tied_gradient_not_summed(patch: pytest.MonkeyPatch) -> None:
    # The package has a function of the module's name.
    module = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    patch.setattr(module, "_allreduce_word_embedding_grads", lambda *args, **kwargs: None)


def shard_trained_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trainer, "_my_microbatches", lambda self, plan: plan.microbatches[0])


def positions_of_the_run(patch: pytest.MonkeyPatch) -> None:
    """Positions are counted from the start of a context-parallel rank's run of the pack, not of each sequence.

    (Counted on from sequence to sequence they would be right: rotary attention knows distances only.)
    """
    right = PackedInputs.build.__func__

    def unreset(cls: type, lengths: list[int], cos_sin: Any, *args: Any, **kwargs: Any) -> PackedInputs:
        packed = right(cls, lengths, cos_sin, *args, **kwargs)
        positions = torch.arange(sum(lengths)) % (sum(lengths) // 2)
        return dataclasses.replace(packed, cos=cos_sin[0][positions], sin=cos_sin[1][positions])

    patch.setattr(PackedInputs, "build", classmethod(unreset))


def attention_across_sequences(patch: pytest.MonkeyPatch) -> None:
    def whole(self: PackedAttention, query: Tensor, key: Tensor, value: Tensor, packed: PackedInputs) -> Tensor:
        parts = (x.transpose(0, 1)[None] for x in (query, key, value))
        return self._dense(*parts)[0].transpose(0, 1)

    patch.setattr(PackedAttention, "_padded", whole)


def tensor_replicas_not_summed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        megatron_attention, "all_gather_last_dim_from_tensor_parallel_region", gather_from_tensor_model_parallel_region
    )


def context_replicas_not_summed(patch: pytest.MonkeyPatch) -> None:
    def replicate(self: PackedAttention, x: Tensor) -> Tensor:
        copies = self.context.size() // x.shape[1]
        return torch.stack([x, *[x.detach()] * (copies - 1)], dim=2).flatten(1, 2)

    patch.setattr(PackedAttention, "_replicate", replicate)


def auxiliary_loss_on(patch: pytest.MonkeyPatch) -> None:
    right = build._mixture
    wrong = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}
    patch.setattr(build, "_mixture", lambda facts: {**right(facts), **wrong})


def vocabulary_padding_counted(patch: pytest.MonkeyPatch) -> None:
    right = outputs.vocab_parallel_logprobs

    def padded(*args: Any, vocab_size: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return right(*args, vocab_size=2 * vocab_size, **kwargs)

    patch.setattr(outputs, "vocab_parallel_logprobs", padded)


def denominator_of_one_rank(patch: pytest.MonkeyPatch) -> None:
    right = PolicyLoss.denominator
    patch.setattr(PolicyLoss, "denominator", lambda self, batch: right(self, batch) / 2)


def data_parallel_not_reduced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DistributedDataParallel, "finish_grad_sync", lambda self, *args, **kwargs: None)


def layers_of_the_first_stage(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "get_transformer_layer_offset", lambda *args, **kwargs: 0)


def norm_of_one_rank(patch: pytest.MonkeyPatch) -> None:
    def alone(gradients: Any, *args: Any, **kwargs: Any) -> float:
        return float(torch.stack([gradient.norm() for gradient in gradients]).norm())

    patch.setattr(megatron_optimizer, "get_grad_norm_fp32", alone)


def step_with_a_part_of_the_gradient(patch: pytest.MonkeyPatch) -> None:
    """The router's gradient is lost between reduction and step, as where a parameter is left out of the optimizer."""
    right = Trainer.step

    def step(self: Trainer) -> dict[str, float]:
        for name, parameter in self.parameters():
            if name == "decoder.layers.2.mlp.router.weight":
                parameter.main_grad.zero_()
        return right(self)

    patch.setattr(Trainer, "step", step)


def moments_of_one_rank_lost(patch: pytest.MonkeyPatch) -> None:
    """The first step is right; then one rank's second moments are gone, as after a checkpoint without them."""
    right = Trainer.step

    def step(self: Trainer) -> dict[str, float]:
        metrics = right(self)
        if torch.distributed.get_rank() == 1:
            for state in self.optimizer.chained_optimizers[0].optimizer.state.values():
                state["exp_avg_sq"].zero_()
        return metrics

    patch.setattr(Trainer, "step", step)


def gradients_of_the_step_before_kept(patch: pytest.MonkeyPatch) -> None:
    """The first step adds to a buffer of zeros."""
    patch.setattr(param_and_grad_buffer._ParamAndGradBuffer, "reset", lambda self: None)


# fault -> model, layout, and what must be named: a pattern for each line of the report that must be there.
FAULTS = {
    gradient_scaled_by_context: ("llama", Layout(context=2), [r"gradients: off by 1\.0e\+00.*: model\.\S+ \(1\.0e"]),
    norm_gradients_not_reduced: ("qwen2", Layout(tensor=2), [r"gradients: .*model\.layers\.\d\.\w+_layernorm\.weight"]),
    experts_swapped: (
        "qwen3_moe",
        Layout(data=2, expert=2),
        [
            r"export: model\.layers\.0\.mlp\.experts\.0\.\w+_proj",
            r"gradients: .*mlp\.experts\.\d\.\w+_proj",
            "sample 1",
        ],
    ),
    tied_gradient_not_summed: (
        "llama_tied",
        Layout(pipeline=2),
        [r"gradients: off by \S+, bound \S+ model\.embed_tokens\.weight \(\S+\)$", r"weights: .*embed_tokens"],
    ),
    shard_trained_twice: (
        "llama",
        Layout(data=2),
        [
            r"samples: sample 1\d\d was trained 2 times",
            r"samples: sample 1\d\d was trained 0 times",
            "log-probs: .*sample",
        ],
    ),
    positions_of_the_run: ("llama", Layout(context=2), [r"log-probs: .*: sample 1\d\d \("]),
    attention_across_sequences: ("llama", Layout(data=2), [r"log-probs: .*: sample 1\d\d \("]),
    tensor_replicas_not_summed: ("llama", Layout(tensor=4), [r"gradients: .*self_attn\.[kv]_proj\.weight"]),
    context_replicas_not_summed: ("llama", Layout(context=4), [r"gradients: .*self_attn\.[kv]_proj\.weight"]),
    auxiliary_loss_on: ("mixtral", Layout(data=2), [r"gradients: .*block_sparse_moe\.gate\.weight"]),
    vocabulary_padding_counted: ("llama", Layout(tensor=2), [r"log-probs: .*: sample 1\d\d \(", "^loss: "]),
    denominator_of_one_rank: ("llama", Layout(data=2), [r"gradients: off by 1\.0e\+00.*: model\."]),
    data_parallel_not_reduced: ("llama", Layout(data=2), [r"gradients: .*: model\.", "weights: .*: lm_head"]),
    layers_of_the_first_stage: (
        "llama",
        Layout(pipeline=2),
        [
            r"export: model\.layers\.2\.\S+ is missing",
            r"export: model\.layers\.0\.\S+ is on stages \[0, 1\]",
            r"gradients: model\.layers\.2\.\S+ is missing",
        ],
    ),
    norm_of_one_rank: ("llama", Layout(tensor=2), ["gradient norm: off by", r"weights: .*model\."]),
    step_with_a_part_of_the_gradient: (
        "qwen3_moe",
        Layout(data=2, expert=2),
        [r"weights: off by \S+, bound \S+ model\.layers\.2\.mlp\.gate\.weight \(\S+\)$"],
    ),
    moments_of_one_rank_lost: ("llama", Layout(data=2), [r"weights: .*: (lm_head|model\.)"]),
    gradients_of_the_step_before_kept: (
        "llama",
        Layout(tensor=2),
        [r"gradient norm: .*: step 2 \(", r"weights: .*: (lm_head|model\.)"],
    ),
}
SEEN_BY_A_SECOND_STEP_ONLY = (moments_of_one_rank_lost, gradients_of_the_step_before_kept)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_found(fault, verification, monkeypatch):
    family, layout, expected = FAULTS[fault]
    compared = verification(family)
    fault(monkeypatch)
    report = compared.check(layout)
    assert not report.error, report.error
    assert not report.passed
    for pattern in expected:
        assert any(re.search(pattern, line) for line in report.problems), f"{pattern} is not in {report.problems}"
    if fault in SEEN_BY_A_SECOND_STEP_ONLY:
        assert report.quantities["log-probs"].passed and report.quantities["gradients"].passed
        first = ("step 1", *(f"sample {number}" for number in compared.batch.sample_ids.tolist()))
        assert not [item for one in report.quantities.values() for item in one.beyond if item[0] in first]


@pytest.mark.parametrize("place", sorted({(family, layout) for family, layout, _ in FAULTS.values()}, key=str), ids=str)
def test_without_fault_it_agrees(place, verification):
    family, layout = place
    report = verification(family).check(layout)
    assert report.passed, report.problems
