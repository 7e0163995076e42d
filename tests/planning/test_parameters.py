"""Parameters of each rank: by arithmetic over all ranks, and as Megatron holds them."""

from typing import Any

import pytest
from ranks import Rank, run_on

from pentad.families.facts import ModelFacts
from pentad.families.hf_config import facts_from_config
from pentad.families.known_models import known_models
from pentad.layout import Layout
from pentad.layout.validate import check_layout
from pentad.planning.parameters import (
    flops_per_token,
    layer_parameters,
    model_parameters,
    stage_parameters,
)

LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(data=2, tensor=2, pipeline=4, context=2),
    Layout(pipeline=2, virtual=2),
    Layout(data=2, tensor=2, expert=2, expert_tensor=2, pipeline=2),
    Layout(data=4, tensor=2, expert=4),
]


def replicated(facts: ModelFacts) -> int:
    """Parameters that every tensor-parallel rank holds whole."""
    parts = layer_parameters(facts, facts.num_layers - 1, Layout())
    shared = facts.hidden_size if facts.shared_ffn_hidden_size else 0
    return facts.num_layers * (parts["norms"] + parts.get("router", 0) + shared) + facts.hidden_size


LEGAL = [
    (name, layout) for name, facts in known_models().items() for layout in LAYOUTS if not check_layout(facts, layout)
]


@pytest.mark.parametrize(("name", "layout"), LEGAL, ids=str)
def test_ranks_add_up_to_the_model(name: str, layout: Layout) -> None:
    facts = known_models()[name]
    stages = stage_parameters(facts, layout)
    dense = sum(rank.dense for rank in stages) * layout.tensor
    experts = sum(rank.expert for rank in stages) * layout.expert * layout.expert_tensor
    expected = model_parameters(facts) + (layout.tensor - 1) * replicated(facts)
    tables = 1 if facts.tied and layout.pipeline == 1 else 2
    expected += tables * (facts.padded_vocab(layout.tensor) - facts.vocab_size) * facts.hidden_size
    if facts.tied and layout.pipeline > 1:
        expected += facts.vocab_size * facts.hidden_size
    assert dense + experts == expected
    assert layout.expert_data * layout.expert * layout.expert_tensor * layout.pipeline == layout.world


def test_operations_of_a_token() -> None:
    facts = known_models()["Qwen/Qwen2.5-3B"]
    # Attention adds 6 * layers * width * sequence to the 6 of each parameter.
    assert flops_per_token(facts, 838) == pytest.approx(6 * 3_085_938_688 + 6 * 36 * 2048 * 838)
    untied = known_models()["meta-llama/Llama-3.1-8B"]
    assert flops_per_token(untied, 1) < 6 * (8_030_261_248 - 128_256 * 4096) + 6 * 32 * 4096 + 1


_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 128,
}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
TINY = {
    "llama": {"model_type": "llama", **_TINY},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True, **_TINY},
    "qwen3": {"model_type": "qwen3", **_TINY},
    "qwen3_moe": {"model_type": "qwen3_moe", **_TINY, **_MIXTURE},
    "qwen2_moe": {"model_type": "qwen2_moe", **_TINY, **_MIXTURE, "shared_expert_intermediate_size": 24},
    "mixtral": {"model_type": "mixtral", **_TINY, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def count(rank: Rank, configs: list[dict[str, Any]]) -> list[int]:
    from transformers import AutoConfig

    from pentad.config.schema.megatron import MegatronSettings
    from pentad.config.schema.trainer import TrainerSettings
    from pentad.trainers.megatron.trainer import Trainer

    counts = []
    for values in configs:
        settings = TrainerSettings(total_steps=1)
        config = AutoConfig.for_model(**values)
        trainer = Trainer(config, rank.layout, rank.groups, rank.platform, settings, MegatronSettings(), None)
        counts.append(sum(parameter.numel() for _, parameter in trainer.parameters()))
    return counts


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (Layout(tensor=2), list(TINY)),
        (Layout(pipeline=2), list(TINY)),
        (Layout(data=2, expert=2), ["qwen3_moe", "qwen2_moe", "mixtral"]),
        (Layout(tensor=2, expert_tensor=2), ["qwen3_moe", "qwen2_moe"]),
    ],
    ids=str,
)
def test_as_megatron_holds_them(layout: Layout, names: list[str]) -> None:
    found = run_on(layout, count, [TINY[name] for name in names])
    size = layout.world // layout.pipeline
    for number, name in enumerate(names):
        stages = stage_parameters(facts_from_config(TINY[name]), layout)
        held = [counts[number] for counts in found]
        assert held == [stages[rank // size].total for rank in range(layout.world)], name
