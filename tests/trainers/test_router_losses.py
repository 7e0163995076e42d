"""The router's auxiliary losses, off unless asked for; the oracle is their formula on transformers' own logits."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import distance, gradients_of, ragged_batch
from torch import Tensor
from torch.nn.functional import linear

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

LOSSES = {
    "load balancing": {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 2.0},
    "z": {"moe_z_loss_coeff": 0.5},
}
BUDGET = 48


def compute(rank: Rank, directory: Path, batch: Batch) -> list[dict[str, Tensor]]:
    """Gradients without any, and with each of `LOSSES`."""
    answers = []
    for settings in ({}, *LOSSES.values()):
        trainer = rank.trainer(directory, megatron=MegatronSettings(transformer=settings))
        plan = plan_microbatches(batch.lengths, rank.layout.data, BUDGET)
        trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()))
        answers.append(dict(trainer.gradients()))
    return answers


def balancing(logits: Tensor, experts_per_token: int) -> Tensor:
    """Fedus et al., Switch Transformers, https://arxiv.org/abs/2101.03961, eq. 4, for several experts a token."""
    tokens, experts = logits.shape
    chosen = torch.zeros(experts).index_add_(
        0, logits.topk(experts_per_token).indices.flatten(), torch.ones(tokens * experts_per_token)
    )
    return experts * (chosen / (tokens * experts_per_token) * logits.softmax(-1).mean(0)).sum()


def z(logits: Tensor, experts_per_token: int) -> Tensor:
    """Zoph et al., ST-MoE, https://arxiv.org/abs/2202.08906, eq. 5."""
    return logits.logsumexp(-1).square().mean()


def expected(model, batch: Batch, packs: list[tuple[int, ...]], formula, coefficient: float) -> dict[str, Tensor]:
    """Of the mean over packs, weighted by their tokens, of the sum over layers."""
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    inputs: dict[int, list[Tensor]] = {}
    hooks = [
        router.register_forward_pre_hook(lambda _, arguments, number=number: inputs[number].append(arguments[0]))
        for number, router in enumerate(routers)
    ]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    total = torch.zeros(())
    sequences = batch.tokens.split(batch.lengths)
    for pack in packs:
        inputs |= {number: [] for number in range(len(routers))}
        for index in pack:
            model(sequences[index][None], use_cache=False)
        for number, router in enumerate(routers):
            states = torch.cat([part.reshape(-1, part.shape[-1]) for part in inputs[number]])
            share = len(states) / batch.num_tokens
            logits = linear(states.float(), router.weight.float())
            total = total + share * coefficient * formula(logits, model.config.num_experts_per_tok)
    total.backward()
    for hook in hooks:
        hook.remove()
    return gradients_of(model)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("qwen3_moe", Layout()),
        ("qwen3_moe", Layout(data=2)),
        ("qwen3_moe", Layout(data=2, expert=2)),
        # Its dense layer has no router, and takes no part in the sum.
        ("qwen3_moe_dense", Layout()),
    ],
    ids=str,
)
def test_gradients_equal_the_formula(name, layout, tiny_models):
    tiny = tiny_models(name)
    batch = ragged_batch()
    plan = plan_microbatches(batch.lengths, layout.data, BUDGET)
    assert plan.num_microbatches > 1
    packs = [pack for rank in plan.microbatches for pack in rank]
    plain, *answers = run_on(layout, compute, tiny.directory, batch)[0]
    for (loss, settings), formula, answer in zip(LOSSES.items(), (balancing, z), answers, strict=True):
        coefficient = settings.get("moe_aux_loss_coeff") or settings["moe_z_loss_coeff"]
        theory = {
            key: value
            for key, value in expected(tiny.model, batch, packs, formula, coefficient).items()
            if float(value.norm()) > 1e-6
        }
        assert any("gate.weight" in key for key in theory)
        for key, value in theory.items():
            assert distance(answer[key] - plain[key], value) <= 1e-3, f"{loss}: {key}"
