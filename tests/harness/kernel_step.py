"""One training step of a model on a GPU, by a given version of each operation; a module of its own, to be spawned."""

from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.kernels.selection import Kernels

_SHAPE = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2000,
    "max_position_embeddings": 4096,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "dense": Qwen2Config(**_SHAPE, intermediate_size=768, tie_word_embeddings=True),
    "mixture": Qwen3MoeConfig(
        **_SHAPE, intermediate_size=512, moe_intermediate_size=128, head_dim=64, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
    ),
}  # fmt: skip
LENGTHS = [400, 37, 1, 250, 600, 128]


def step(rank: int, meeting: str, name: str, dtype: Any, kernels: Kernels) -> dict[str, torch.Tensor]:
    """Log-probs, gradients by name, the norm and the weights after a clipped step, in float32 on the host."""
    from pentad.algorithms.sft import SFTLoss
    from pentad.config.schema.algorithms import SFTSettings
    from pentad.config.schema.megatron import MegatronSettings
    from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
    from pentad.layout import Layout
    from pentad.platform.device import enter_platform
    from pentad.samples.batch import Batch
    from pentad.samples.packing import Plan
    from pentad.trainers.megatron import trainer as trainer_module
    from pentad.trainers.megatron.parallel import join_ranks, make_groups

    trainer_module.select_kernels = lambda *_, **__: kernels
    platform = enter_platform(rank)
    join_ranks(platform, rank, 1, meeting, 120)
    try:
        settings = TrainerSettings(total_steps=1, dtype=dtype, optimizer=OptimizerSettings(lr=1e-2, grad_clip=0.01))
        layout = Layout()
        trainer = trainer_module.Trainer(
            CONFIGS[name], layout, make_groups(layout, 1), platform, settings, MegatronSettings(), 1
        )
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter_name, parameter in trainer.parameters():
                scale = 0.1 if parameter.dim() > 1 or "bias" in parameter_name else 1.0
                values = torch.randn(parameter.shape, generator=random) * scale
                # The same weights in every dtype.
                parameter.copy_(values.bfloat16())
        trainer.optimizer.reload_model_params()
        sequences = [torch.randint(2000, (length + 1,), generator=random) for length in LENGTHS]
        batch = Batch.from_sequences([(tokens[:1], tokens[1:]) for tokens in sequences])
        plan = Plan(microbatches=(((0, 1, 2), (3, 4, 5)),), max_tokens_used=2000, balance=1.0)
        found = {"logprobs": trainer.logprobs(batch, plan, 0.9)[0]}
        trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()), 0.9)
        found |= {f"gradient of {key}": value.cpu() for key, value in trainer.gradients()}
        found["norm"] = torch.tensor([trainer.step()["train/grad_norm"]])
        return found | {key: value.float().cpu() for key, value in trainer.weights()}
    finally:
        torch.distributed.destroy_process_group()
