"""Every layout agrees with one process, and one process with transformers; export is bit-equal from every layout.

`make verify` runs all small layouts of every family. Here every pair of dimensions that layouts can have together, each
dimension alone, and each at size 4, run for one dense family and for one mixture; every family runs each dimension.
"""

from itertools import combinations

import pytest
import torch

from pentad.config.schema.megatron import MegatronSettings
from pentad.errors import UserError
from pentad.families.builtin import builtin_models
from pentad.families.hf_config import facts_from_config
from pentad.layout import Layout
from pentad.layout.layout import LETTERS
from pentad.verify import rank
from pentad.verify.layouts import small_layouts
from pentad.verify.models import tiny_config, write_random_model
from pentad.verify.verification import Verification

DENSE = ("llama_tied", "qwen2", "qwen3")
MIXTURES = ("qwen3_moe", "qwen2_moe", "mixtral")
MOST_RANKS = 8
Case = tuple[str, Layout]


def layouts_of(family: str) -> list[Layout]:
    return small_layouts(facts_from_config(tiny_config(family).to_dict()), MOST_RANKS)


ALL = {family: layouts_of(family) for family in (*DENSE, *MIXTURES)}
# Dense layers among those with experts: stages and chunks that have only the one, only the other, or both.
DENSE_AMONG = [
    Layout(pipeline=2, data=2, expert=2),
    Layout(pipeline=2, virtual=2),
    Layout(pipeline=4),
    Layout(tensor=2, context=2, expert=2),
    Layout(tensor=2, expert_tensor=2),
]


def dimensions(layout: Layout) -> list[str]:
    """Letters of what is above 1, in their order."""
    return [letter for letter, name in LETTERS.items() if getattr(layout, name) > 1]


def shows(family: str, layout: Layout) -> set[tuple[str, ...]]:
    """What a case is needed for: dimensions of its family; pairs of them; being without a second dimension."""
    letters, kind = dimensions(layout), "dense" if family in DENSE else "mixture"
    found = {(kind, *pair) for pair in combinations(letters, 2)} | {(family, letter) for letter in letters}
    # Virtual stages always come with stages.
    if len(letters) == 1 or letters == ["p", "v"]:
        found.add((kind, str(layout)))
    return found


def choose() -> list[Case]:
    """Few cases of few ranks that show everything: again and again the one that shows most for its processes."""
    cases = [(family, layout) for family, layouts in ALL.items() for layout in layouts]
    missing = set().union(*(shows(*case) for case in cases))
    chosen: list[Case] = []
    while missing:
        chosen.append(max(cases, key=lambda case: len(shows(*case) & missing) / (1 + case[1].world)))
        missing -= shows(*chosen[-1])
    return sorted(chosen, key=lambda case: list(ALL).index(case[0]))


CHOSEN = choose()


def test_the_matrix_is_whole():
    assert {family: len(layouts) for family, layouts in ALL.items()} == {
        **dict.fromkeys(DENSE, 25),
        **dict.fromkeys(MIXTURES, 74),
    }
    for family, layouts in ALL.items():
        large = {"t4", "p4", "c4", "d4", "p2v2"} | ({"d4e4"} if family in MIXTURES else set())
        assert large <= {str(layout) for layout in layouts}
        assert max(layout.world for layout in layouts) == MOST_RANKS


def test_every_dimension_is_chosen_for_every_family_and_every_pair_for_each_kind():
    for kind, letters in ((DENSE, set(LETTERS) - {"e", "x"}), (MIXTURES, set(LETTERS))):
        for family in kind:
            mine = [set(dimensions(layout)) for name, layout in CHOSEN if name == family]
            assert set().union(*mine) == set().union(*map(dimensions, ALL[family])) == letters
        together = [set(dimensions(layout)) for name, layout in CHOSEN if name in kind]
        for pair in combinations(sorted(letters), 2):
            assert any(set(pair) <= some for some in together), pair


@pytest.mark.parametrize("kind", [DENSE, MIXTURES])
def test_every_dimension_is_chosen_alone_and_large(kind):
    mine = {str(layout) for family, layout in CHOSEN if family in kind}
    assert {f"{letter}{size}" for letter in "tpcd" for size in (2, 4)} | {"p2v2"} <= mine
    assert len(CHOSEN) < sum(map(len, ALL.values())) / 5


@pytest.mark.parametrize(("family", "layout"), CHOSEN, ids=[f"{family}-{layout}" for family, layout in CHOSEN])
def test_layout_agrees_with_one_process(family, layout, verification):
    report = verification(family).check(layout)
    assert report.passed, report.problems


@pytest.mark.parametrize("layout", DENSE_AMONG, ids=str)
def test_dense_layers_among_others(layout, verification):
    assert layout in layouts_of("qwen3_moe_dense")
    report = verification("qwen3_moe_dense").check(layout)
    assert report.passed, report.problems


@pytest.mark.parametrize("family", builtin_models())
def test_one_process_agrees_with_transformers(family, verification):
    report = verification(family).check_transformers()
    assert report.passed, report.problems
    assert set(report.quantities) == {"log-probs", "loss", "gradient norm", "gradients"}


@pytest.mark.parametrize(("layers", "layout"), [(5, Layout(pipeline=2)), (7, Layout(pipeline=2, virtual=2))], ids=str)
@pytest.mark.parametrize("family", ["llama_tied", "qwen3_moe"])
def test_layers_that_stages_do_not_divide(family, layers, layout, tmp_path):
    import torch

    write_random_model(tiny_config(family, layers=layers), tmp_path / family, torch.float32)
    with Verification(tmp_path / family) as verification:
        report = verification.check(layout)
    assert report.passed, report.problems


_STAGES = Layout(pipeline=2, virtual=2, data=2)
_SPLIT = Layout(tensor=2, expert=2)
_SPLIT_TWICE = Layout(tensor=2, context=2, expert=2)
# Setting -> its value, and the layouts on which it does something of its own.
SETTINGS = {
    "full recompute": (
        MegatronSettings(
            transformer={"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        ),
        (_SPLIT_TWICE, _STAGES),
    ),
    "selective recompute": (
        MegatronSettings(transformer={"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}),
        (_SPLIT_TWICE, _STAGES),
    ),
    "recompute of experts": (
        MegatronSettings(
            transformer={"recompute_granularity": "selective", "recompute_modules": ["moe", "shared_experts"]}
        ),
        (_SPLIT, _STAGES),
    ),
    "shared expert beside": (MegatronSettings(transformer={"moe_shared_expert_overlap": True}), (_SPLIT, _STAGES)),
    "outputs freed": (MegatronSettings(transformer={"deallocate_pipeline_outputs": True}), (_STAGES,)),
    "deterministic": (MegatronSettings(use_deterministic_algorithms=True), (_SPLIT, _STAGES)),
    "buckets": (
        MegatronSettings(
            ddp={"overlap_grad_reduce": True, "bucket_size": 1000, "pad_buckets_for_high_nccl_busbw": True}
        ),
        (_STAGES, Layout(data=2, expert=2)),
    ),
    "gradients as weights are": (
        MegatronSettings(ddp={"grad_reduce_in_fp32": False, "check_for_nan_in_grad": True}),
        (_STAGES, Layout(context=2, expert=2)),
    ),
}


@pytest.mark.parametrize(
    ("what", "layout"), [(what, layout) for what, (_, layouts) in SETTINGS.items() for layout in layouts], ids=str
)
def test_settings_that_change_no_result(what, layout, verification, monkeypatch):
    plain = verification("qwen2_moe")
    monkeypatch.setattr(plain, "megatron", SETTINGS[what][0])
    report = plain.check(layout)
    assert report.passed, report.problems


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_bf16(family, tmp_path):
    import torch

    write_random_model(tiny_config(family), tmp_path / family, torch.bfloat16)
    with Verification(tmp_path / family, dtype="bf16") as verification:
        reports = [verification.check_transformers()]
        reports += [verification.check(layout) for layout in (Layout(tensor=2), Layout(context=2), Layout(data=2))]
    for report in reports:
        assert report.passed, (report.subject, report.problems)


def test_a_padding_token_is_like_any_other(tmp_path):
    """The batch has every token of a small vocabulary, the one that the tokenizer pads with among them."""
    config = tiny_config("llama_tied", layers=1)
    config.pad_token_id = 3
    write_random_model(config, tmp_path / "model", torch.float32)
    with Verification(tmp_path / "model") as verification:
        assert 3 in verification.batch.tokens
        report = verification.check_transformers()
    assert report.passed, report.problems


def test_what_is_refused_on_a_layout_is_that_layouts_own(tmp_path, monkeypatch):
    right = rank.make_groups

    def make_groups(layout: Layout, *arguments: object) -> object:
        if layout.tensor > 1:
            raise UserError("Megatron refuses this configuration", "change megatron.transformer")
        return right(layout, *arguments)

    monkeypatch.setattr(rank, "make_groups", make_groups)
    write_random_model(tiny_config("llama", layers=1), tmp_path / "model", torch.float32)
    with Verification(tmp_path / "model") as verification:
        refused = verification.check(Layout(tensor=2))
        assert not refused.passed and "Megatron refuses this configuration" in refused.problems[0]
        assert verification.check(Layout(data=2)).passed


def test_router_losses_cannot_be_verified(checkpoint):
    settings = MegatronSettings(transformer={"moe_z_loss_coeff": 1e-3})
    with pytest.raises(UserError, match="moe_z_loss_coeff cannot be verified"):
        Verification(checkpoint("qwen3_moe"), megatron=settings)
