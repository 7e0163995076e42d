"""Megatron's pass-through dictionaries are checked against its dataclasses before anything is built."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ranks import Rank, run_on

from pentad.config.loading.megatron import check_megatron, complete
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.megatron_fields import NEEDS_TRANSFORMER_ENGINE, SETTLED, SUPPORTED
from pentad.errors import UserError
from pentad.layout import Layout


def try_all(rank: Rank, directory: Path, attempts: list[tuple[str, dict[str, Any]]]) -> list[UserError | None]:
    """The refusal of each attempt, None where it is accepted."""
    answers = []
    for section, settings in attempts:
        try:
            rank.trainer(directory, megatron=MegatronSettings(**{section: settings}))
        except UserError as error:
            answers.append(error)
        else:
            answers.append(None)
    return answers


REFUSED = [
    (
        "transformer",
        {"recompute_granularty": "full"},
        "not a field",
        "did you mean megatron.transformer.recompute_granularity",
    ),
    ("transformer", {"zzzzz": 1}, "not a field", "remove megatron.transformer.zzzzz"),
    ("ddp", {"overlap_grad_reduction": True}, "not a field", "did you mean megatron.ddp.overlap_grad_reduce?"),
    (
        "optimizer",
        {"decoupled_weightdecay": True},
        "not a field",
        "megatron.optimizer.decoupled_weight_decay?",
    ),
    ("transformer", {"num_layers": 3}, "settled by model.path", "remove"),
    ("transformer", {"tensor_model_parallel_size": 2}, "settled by allocation", "remove"),
    ("transformer", {"sequence_parallel": False}, "settled by allocation", "remove"),
    ("transformer", {"cp_comm_type": "p2p"}, "settled by the model's heads and the allocation", "remove"),
    ("transformer", {"bf16": True}, "settled by trainer.dtype", "remove"),
    ("transformer", {"calculate_per_token_loss": False}, "settled by", "remove"),
    ("optimizer", {"lr": 1.0}, "settled by trainer.optimizer.lr", "remove"),
    ("optimizer", {"clip_grad": 1.0}, "settled by trainer.optimizer.grad_clip", "remove"),
    # Megatron has them; here they would do nothing, fail in a rank, or train another model.
    ("transformer", {"rotary_interleaved": True}, "is not supported", "remove megatron.transformer.rotary_interleaved"),
    ("transformer", {"hidden_dropout": 0.1}, "is not supported", "remove megatron.transformer.hidden_dropout"),
    ("transformer", {"moe_expert_capacity_factor": 1.0}, "is not supported", "remove"),
    ("transformer", {"cpu_offloading": True}, "is not supported", "what may be set here is deallocate"),
    (
        "transformer",
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "layernorm"]},
        "is not supported",
        "give a list of core_attn, mlp, moe, shared_experts",
    ),
    ("transformer", {"moe_router_load_balancing_type": "sinkhorn"}, "'sinkhorn' is not supported", "none"),
    ("ddp", {"use_megatron_fsdp": True}, "is not supported", "remove megatron.ddp.use_megatron_fsdp"),
    ("ddp", {"num_distributed_optimizer_instances": 2}, "is not supported", "remove"),
    ("optimizer", {"optimizer": "sgd"}, "is not supported", "remove megatron.optimizer.optimizer"),
    ("optimizer", {"loss_scale": 128.0}, "is not supported", "remove megatron.optimizer.loss_scale"),
    ("transformer", {"deterministic_mode": True}, "settled by megatron.use_deterministic_algorithms", "remove"),
    ("transformer", {"fp8": "hybrid"}, "needs Transformer Engine", "remove"),
    ("transformer", {"apply_rope_fusion": True}, "needs Transformer Engine", "remove"),
    ("transformer", {"gradient_accumulation_fusion": True}, "needs Transformer Engine", "remove"),
    ("transformer", {"moe_permute_fusion": True}, "needs Transformer Engine", "remove"),
    ("optimizer", {"use_precision_aware_optimizer": True}, "needs Transformer Engine", "remove"),
    ("transformer", {"recompute_granularity": "sometimes"}, "sometimes", "give full or selective"),
    ("transformer", {"recompute_granularity": "full"}, "recompute", "megatron.transformer"),
    (
        "transformer",
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 99},
        "recompute_num_layers is 99, but the model has 2 layers",
        "to 2 or less",
    ),
    ("transformer", {"moe_z_loss_coeff": 0.1}, "llama has none", "remove megatron.transformer.moe_z_loss_coeff"),
    ("transformer", {"attention_dropout": 0.1}, "settled by Pentad", "remove"),
    ("transformer", {"normalization": "LayerNorm"}, "settled by model.path", "remove"),
    ("transformer", {"window_size": [16, 0]}, "settled by model.path", "remove"),
    # Megatron forgets it unless gradients are reduced while they are computed.
    ("ddp", {"bucket_size": 1000}, "megatron.ddp.bucket_size", "megatron.ddp"),
    ("ddp", {"overlap_grad_reduce": True, "overlap_param_gather": True}, "settled by Pentad", "remove"),
    ("ddp", {"average_in_collective": True}, "is not supported", "megatron.ddp"),
    # It would contradict megatron.ddp.
    ("optimizer", {"use_distributed_optimizer": False}, "settled by megatron.ddp.use_distributed_optimizer", "remove"),
]
ACCEPTED = [
    ("transformer", {}),
    ("transformer", {"apply_rope_fusion": False, "fp8": None}),
    # As it is anyhow.
    ("transformer", {"hidden_dropout": 0.0, "cpu_offloading": False}),
    ("transformer", {"recompute_granularity": "selective"}),
    ("ddp", {"overlap_grad_reduce": True, "bucket_size": 1000}),
    ("optimizer", {"log_num_zeros_in_grad": True}),
]


def test_refusals_name_the_key_and_the_fix(tiny_models):
    attempts = [(section, settings) for section, settings, _, _ in REFUSED]
    (answers,) = run_on(Layout(), try_all, tiny_models("llama").directory, attempts)
    problems = []
    for (section, settings, cause, fix), answer in zip(REFUSED, answers, strict=True):
        if answer is None:
            problems.append(f"accepted: {section} {settings}")
        elif cause not in answer.cause or fix not in answer.fix:
            problems.append(f"{section} {settings}: {answer}")
    assert not problems, "\n".join(problems)


def test_what_is_sound_is_accepted(tiny_models):
    (answers,) = run_on(Layout(), try_all, tiny_models("llama").directory, ACCEPTED)
    assert answers == [None] * len(ACCEPTED)


# Refused for the model or the layout, which the settings alone do not tell.
_OF_THE_MODEL = ("moe_z_loss_coeff", "recompute_num_layers")


def test_what_megatron_refuses_is_refused_without_it():
    """The table that needs no torch refuses all that the trainer refuses, or completes it first."""
    for section, settings, _, _ in REFUSED:
        values = {"megatron": {section: dict(settings)}}
        if complete(values) or set(settings) & set(_OF_THE_MODEL):
            continue
        problems = list(check_megatron(MegatronSettings(**values["megatron"]), str))
        assert problems, f"accepted: {section} {settings}"
        assert any(f"megatron.{section}.{key}" in str(problem) for problem in problems for key in settings)


def megatron_fields(rank: Rank) -> dict[str, set[str]]:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    kinds = {
        "transformer": TransformerConfig,
        "ddp": DistributedDataParallelConfig,
        "optimizer": OptimizerConfig,
    }
    return {part: {field.name for field in fields(kind)} for part, kind in kinds.items()}


def test_the_table_names_fields_of_megatron():
    (known,) = run_on(Layout(), megatron_fields)
    for part in known:
        assert {*SUPPORTED[part], *SETTLED[part]} <= known[part]
        assert not set(SUPPORTED[part]) & set(SETTLED[part])
    assert set(NEEDS_TRANSFORMER_ENGINE) <= known["transformer"] | known["optimizer"]


# Each choice of the table, with what it needs beside it.
CHOICES = [
    ("transformer", {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}),
    ("transformer", {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}),
    *(
        ("transformer", {"recompute_granularity": "selective", "recompute_modules": [module]})
        for module in SUPPORTED["transformer"]["recompute_modules"].choices
    ),
    ("transformer", {"deallocate_pipeline_outputs": True}),
    ("transformer", {"moe_shared_expert_overlap": True}),
    ("transformer", {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}),
    ("transformer", {"moe_router_load_balancing_type": "none", "moe_z_loss_coeff": 0.01}),
    *(("ddp", {name: False}) for name in ("check_for_nan_in_grad", "grad_reduce_in_fp32", "use_distributed_optimizer")),
    ("ddp", {"overlap_grad_reduce": True, "bucket_size": 1000}),
    ("ddp", {"pad_buckets_for_high_nccl_busbw": True}),
    ("optimizer", {"decoupled_weight_decay": False, "log_num_zeros_in_grad": True}),
]


def test_what_the_table_accepts_is_accepted_by_megatron(tiny_models):
    used = {(part, name) for part, settings in CHOICES for name in settings}
    assert used == {(part, name) for part, known in SUPPORTED.items() for name in known}
    for part, settings in CHOICES:
        assert list(check_megatron(MegatronSettings(**{part: settings}), str)) == []
    (answers,) = run_on(Layout(), try_all, tiny_models("qwen2_moe").directory, CHOICES)
    assert answers == [None] * len(CHOICES)
