"""Adapters as files: PEFT to Megatron and back bit for bit, merged models, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_oracle import merge_into, random_adapter
from ranks import Rank, run_on
from tiny import TinyModel, ragged_batch, transformers_logprobs
from torch import Tensor
from transformers import AutoModelForCausalLM

from pentad.cli.main import main
from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.layout import Layout
from pentad.weights.adapters import AdapterReader, InitialAdapter, write_adapter_directory
from pentad.weights.hf_files import CheckpointReader
from pentad.weights.merging import merge_adapter
from pentad.weights.table import WeightTable

EVERYTHING = r".*(_proj|\.gate)"
LAYOUTS = {
    "qwen2": [Layout(tensor=4), Layout(pipeline=2)],
    "qwen3_moe": [Layout(tensor=2, expert_tensor=2), Layout(data=2, expert=2)],
}


def send(rank: Rank, directory: Path, lora: LoraSettings) -> dict[str, Tensor]:
    trainer = rank.trainer(directory, lora=lora)
    return {name: tensor.clone() for name, tensor in trainer.weights("adapters")}


@pytest.mark.parametrize("case", [(name, one) for name, some in LAYOUTS.items() for one in some], ids=str)
def test_an_adapter_goes_through_megatron_unchanged(case, tiny_models: Callable[[str], TinyModel], tmp_path: Path):
    name, layout = case
    tiny = tiny_models(name)
    lora = LoraSettings(rank=4, targets=EVERYTHING, adapter=tmp_path / "in")
    lora.adapter.mkdir()
    before = random_adapter(tiny.model.config, lora, lora.adapter)
    found = {}
    for part in run_on(layout, send, tiny.directory, lora):
        found |= part
    write_adapter_directory(found.items(), tmp_path / "out", lora, tiny.directory, [])
    after = AdapterReader(tmp_path / "out")
    assert set(after.shapes) == set(before)
    for key, value in before.items():
        assert torch.equal(after.get(key), value), key


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_peft_loads_what_is_written(name, tiny_models, tmp_path):
    peft = pytest.importorskip("peft")
    tiny = tiny_models(name)
    lora = LoraSettings(rank=4, alpha=8)
    matrices = random_adapter(tiny.model.config, lora, tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tiny.directory)
    merge_into(ours, matrices, lora.scale)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.directory), tmp_path)
    batch = ragged_batch()
    with torch.no_grad():
        one, other = (transformers_logprobs(model.eval(), batch)[0] for model in (ours, theirs))
    assert float((one - other).abs().max()) < 1e-5
    assert float((one - transformers_logprobs(tiny.model, batch)[0]).abs().max()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_model_is_that_of_peft(dtype, tiny_models, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    tiny = tiny_models("llama")
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny.directory, dtype=dtype).save_pretrained(base)
    lora = LoraSettings(rank=4, alpha=8, rslora=True, exclude=["k_proj"])
    adapter = tmp_path / "run" / "model"
    adapter.mkdir(parents=True)
    random_adapter(tiny.model.config, lora, adapter)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    expected = WeightTable(theirs.merge_and_unload()).tensors
    arguments = ["--merge", "--model", str(base), "--out", str(tmp_path / "merged")]
    assert main(["export", str(tmp_path / "run"), *arguments]) == 0
    assert "12 modules" in capsys.readouterr().out
    found = CheckpointReader(tmp_path / "merged")
    for name, value in expected.items():
        # One rounding, of the larger of what is added.
        close = value.float().abs().clamp(min=0.1) * torch.finfo(dtype).eps
        assert bool(((found.get(name).float() - value.float()).abs() <= close).all()), name
    assert torch.equal(
        found.get("model.layers.0.self_attn.k_proj.weight"),
        CheckpointReader(base).get("model.layers.0.self_attn.k_proj.weight"),
    )


def test_merged_experts_are_the_oracles(tiny_models, tmp_path):
    tiny = tiny_models("qwen3_moe")
    lora = LoraSettings(rank=4, targets=EVERYTHING)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    matrices = random_adapter(tiny.model.config, lora, adapter)
    merge_adapter(adapter, tiny.directory, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tiny.directory)
    merge_into(model, matrices, lora.scale)
    found = CheckpointReader(tmp_path / "merged")
    for name, value in WeightTable(model).tensors.items():
        torch.testing.assert_close(found.get(name), value, rtol=1e-6, atol=1e-6)


def test_what_is_begun_with_is_that_of_torch_and_peft():
    shapes = {"m.lora_A.weight": (8, 4096), "m.lora_B.weight": (16, 8), "n.lora_A.weight": (8, 4096)}
    for init, deviation in (("kaiming", (1 / 3 / 4096) ** 0.5), ("gaussian", 1 / 8)):
        start = InitialAdapter(shapes, LoraSettings(rank=8, init=init), seed=1)
        a = start.get("m.lora_A.weight")
        assert float(a.std()) == pytest.approx(deviation, rel=0.02)
        assert torch.equal(a, start.get("m.lora_A.weight"))
        assert not torch.equal(a, start.get("n.lora_A.weight"))
        assert not start.get("m.lora_B.weight").any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora is True, which Pentad does not compute"),
        ({"r": 8}, "has rank 8 and scale 0.5"),
        ({"lora_alpha": 16}, "has rank 4 and scale 4"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(changes, said, tmp_path):
    lora = LoraSettings(rank=4, alpha=4)
    write_adapter_directory([("m.lora_A.weight", torch.zeros(4, 8))], tmp_path / "a", lora, tmp_path, [])
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(UserError, match=said):
        AdapterReader(tmp_path / "a").check(lora, {"m.lora_A.weight": (4, 8)})
