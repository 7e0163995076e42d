"""Adapters are counted as Megatron holds them."""

import pytest
from ranks import Rank, run_on

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.families.hf_config import facts_from_config
from pentad.layout import Layout
from pentad.layout.pipeline import pipeline_chunks
from pentad.planning.adapters import adapter_parameters, adapter_work, trained_parameters
from pentad.planning.memory import Workload, predict_memory

SETTINGS = [
    LoraSettings(rank=4),
    LoraSettings(rank=2, targets=["q_proj", "v_proj", "gate", "up_proj"]),
    LoraSettings(rank=3, exclude=r".*\.experts\..*"),
]


def count(rank: Rank, directory, settings: list[LoraSettings]) -> list[tuple[int, int, int]]:
    """Stage, and elements of dense and of experts' adapters that have gradients."""
    found = []
    for one in settings:
        trained = [p for _, p in rank.trainer(directory, lora=one).parameters() if p.requires_grad]
        expert = sum(p.numel() for p in trained if not getattr(p, "allreduce", True))
        found.append((rank.groups.pp.rank(), sum(p.numel() for p in trained) - expert, expert))
    return found


@pytest.mark.parametrize("layout", [Layout(tensor=2, expert_tensor=2), Layout(data=2, expert=2, pipeline=2)], ids=str)
def test_each_rank_holds_what_is_planned(layout, tiny_models):
    tiny = tiny_models("qwen2_moe_dense")
    facts = facts_from_config(tiny.model.config.to_dict())
    for answer in run_on(layout, count, tiny.directory, SETTINGS):
        for settings, (stage, dense, expert) in zip(SETTINGS, answer, strict=True):
            work = adapter_work(settings, facts, layout)
            planned = adapter_parameters(facts, layout, pipeline_chunks(facts, layout)[stage], work)
            assert (planned.dense, planned.expert) == (dense, expert)


def test_frozen_weights_need_no_gradients_and_no_reference(tiny_models):
    facts = facts_from_config(tiny_models("qwen3").model.config.to_dict())
    layout, work = Layout(), adapter_work(LoraSettings(rank=2), facts, Layout())
    (full,) = predict_memory(facts, layout, Workload(64, reference=True))
    (adapted,) = predict_memory(facts, layout, Workload(64, reference=True, adapters=work))
    trained = trained_parameters(facts, work)
    assert adapted.components["gradients"] == 4 * trained
    assert adapted.components["optimizer"] == 12 * trained
    assert adapted.components["reference"] == 0 < full.components["reference"]
    assert adapted.components["weights"] == full.components["weights"] + 2 * trained
    assert adapted.components["activations"] >= full.components["activations"]


@pytest.mark.parametrize(
    ("settings", "layout", "said"),
    [
        (LoraSettings(rank=2, targets=["lm_head"]), Layout(), "no module that can be adapted is called lm_head"),
        (LoraSettings(rank=2, targets="q_proj"), Layout(), "no module that can be adapted is called q_proj"),
        (LoraSettings(rank=2, exclude=r".*"), Layout(), "exclude leaves nothing to adapt"),
        (LoraSettings(rank=2, targets="("), Layout(), "no regular expression"),
        (LoraSettings(rank=2, targets=["q_proj"]), Layout(tensor=4), "adapts some of q, k and v"),
    ],
)
def test_what_cannot_be_adapted_is_refused(settings, layout, said, tiny_models):
    facts = facts_from_config(tiny_models("qwen3").model.config.to_dict())
    with pytest.raises(UserError, match=said):
        adapter_work(settings, facts, layout)
