"""Which adapters vLLM takes beside its weights, what it is given, and how its buffers are judged."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen2MoeConfig

from pentad.config.schema.lora import LoraSettings
from pentad.engines.vllm.arguments import VllmSetup, engine_arguments
from pentad.engines.vllm.lora import HotLora, choose
from pentad.engines.vllm.worker_adapters import AdapterOrder, LoaderNames, TakenAdapters
from pentad.weights.adapters import AdapterReader, peft_scale

CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64, architectures=["LlamaForCausalLM"],
)  # fmt: skip
MIXTURE = Qwen2MoeConfig(
    hidden_size=16, intermediate_size=24, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64, num_experts=4,
)  # fmt: skip
Q, K, V, OUT, DOWN = (f"model.layers.0.{name}" for name in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"))  # fmt: skip
GIB = 2**30


def hot(**changes: Any) -> HotLora:
    found = choose(CONFIG, LoraSettings(**({"rank": 6, "alpha": 10, "rslora": True} | changes)))
    assert isinstance(found, HotLora), found
    return found


def test_dense_models_take_adapters_beside_their_weights():
    lora = hot(targets=["q_proj", "v_proj", "down_proj"])
    arguments = engine_arguments(VllmSetup(Path("/model"), None, lora=lora), GIB, 140 * GIB)
    assert arguments["enable_lora"] is True
    assert arguments["max_lora_rank"] == 8
    assert arguments["max_loras"] == arguments["max_cpu_loras"] == 1
    assert arguments["lora_target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert lora.elements == 2 * 8 * (16 + 16 + 16 + 8 + 24 + 16)
    assert "enable_lora" not in engine_arguments(VllmSetup(Path("/model"), None), GIB, 140 * GIB)


@pytest.mark.parametrize(
    "config, settings, reason",
    [
        (CONFIG, {"rank": 513}, "rank 512 at most"),
        (MIXTURE, {"rank": 8}, "mixtures of experts"),
        (MIXTURE, {"rank": 8, "targets": ["q_proj"]}, "mixtures of experts"),
    ],
    ids=["rank", "experts", "attention of a mixture"],
)
def test_what_vllm_cannot_take_is_merged_and_the_reason_said(config, settings, reason):
    found = choose(config, LoraSettings(**settings))
    assert isinstance(found, str) and reason in found


def taken(lora: HotLora, folder: Path, dtype: torch.dtype = torch.bfloat16) -> TakenAdapters:
    generator = torch.Generator().manual_seed(0)
    found = TakenAdapters(AdapterOrder(lora.rank, lora.scale, lora.shapes, folder))
    for name, shape in lora.shapes.items():
        found.take(name, torch.randn(shape, generator=generator).to(dtype))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_file_has_the_scale_in_b(dtype, tmp_path):
    lora = hot()
    adapters = taken(lora, tmp_path, dtype)
    adapters.write()
    reader = AdapterReader(tmp_path)
    assert reader.config["r"] == 6 and peft_scale(reader.config) == 1
    assert reader.shapes == lora.shapes
    for name, tensor in adapters.tensors.items():
        scale = 1 if "lora_A" in name else 10 / 6**0.5
        assert torch.equal(reader.get(name), (tensor.float() * scale).to(dtype))


@dataclass
class Layer:
    """As vLLM's, with one slot: `[1, 1, rank, in]` and `[1, 1, out, rank]` of each module."""

    tp_rank: int
    tp_size: int
    lora_a_stacked: list[Tensor] = field(default_factory=list)
    lora_b_stacked: list[Tensor] = field(default_factory=list)


class Manager:
    """Buffers of one worker, as vLLM fills them: attention by heads, of which key/value heads may be held twice."""

    def __init__(self, adapters: TakenAdapters, rank: int, ranks: int) -> None:
        self.lora_index_to_id = [7]
        self.packed_modules = {"qkv": [Q, K, V]}
        self.modules = {"qkv": Layer(rank, ranks), OUT: Layer(rank, ranks), DOWN: Layer(rank, ranks)}
        width = 24 // ranks
        heads = range(rank * 4 // ranks, (rank + 1) * 4 // ranks)
        key_heads = sorted({head // 2 for head in heads})
        rows = {Q: [head * 4 + i for head in heads for i in range(4)]}
        rows[K] = rows[V] = [head * 4 + i for head in key_heads for i in range(4)]
        columns = {OUT: rows[Q], DOWN: list(range(rank * width, (rank + 1) * width))}
        for name, layer in self.modules.items():
            for module in self.packed_modules.get(name, [name]):
                a = adapters.tensors.get(f"{module}.lora_A.weight")
                b = adapters.tensors.get(f"{module}.lora_B.weight")
                if a is None or b is None:
                    a, b = torch.zeros(6, 16), torch.zeros(8, 6)
                else:
                    b = (b.float() * adapters.order.scale).to(b.dtype)
                mine_a = a[:, columns[module]] if module in columns else a
                mine_b = b[rows[module]] if module in rows and len(b) > len(rows[module]) else b
                layer.lora_a_stacked.append(torch.nn.functional.pad(mine_a, (0, 0, 0, 2))[None, None])
                layer.lora_b_stacked.append(torch.nn.functional.pad(mine_b, (0, 2))[None, None])


@pytest.fixture(params=[1, 2, 4], ids=lambda ranks: f"t{ranks}")
def held(request, tmp_path) -> tuple[TakenAdapters, list[Manager]]:
    lora = hot(targets=r"model\.layers\.0\..*(q|v|o|down)_proj")
    adapters = taken(lora, tmp_path)
    return adapters, [Manager(adapters, rank, request.param) for rank in range(request.param)]


def test_right_buffers_have_no_problem(held):
    adapters, managers = held
    assert [adapters.problems(manager, 7) for manager in managers] == [[]] * len(managers)
    assert adapters.problems(managers[0], 8) == ["adapter 8 is not in use"]


def _first(buffers: list[Tensor], part: int, *place: int) -> None:
    buffers[part][0, 0][place] += 0.5


FAULTS = {
    "an element of A": (lambda m: _first(m.modules["qkv"].lora_a_stacked, 0, 2, 3), Q + ".lora_A.weight"),
    "an element of B": (lambda m: _first(m.modules[OUT].lora_b_stacked, 0, 2, 3), OUT + ".lora_B.weight"),
    "padding": (lambda m: _first(m.modules["qkv"].lora_b_stacked, 2, 3, 7), V + ".lora_B.weight"),
    "no adapter there": (lambda m: _first(m.modules["qkv"].lora_b_stacked, 1, 0, 0), K + ".lora_B.weight"),
    "swapped": (lambda m: m.modules["qkv"].lora_a_stacked.reverse(), Q + ".lora_A.weight"),
    "lost": (lambda m: m.modules.pop(DOWN), DOWN + ".lora_A.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_buffers_are_named(held, fault):
    adapters, managers = held
    spoil, name = FAULTS[fault]
    spoil(managers[-1])
    assert any(problem.startswith(name) for problem in adapters.problems(managers[-1], 7))


def test_another_workers_part_is_wrong(held):
    adapters, managers = held
    if len(managers) == 1:
        pytest.skip("there is no other worker")
    for layer in managers[0].modules.values():
        layer.tp_rank = len(managers) - 1
    problems = adapters.problems(managers[0], 7)
    assert {problem.split(" ", 1)[0] for problem in problems} >= {Q + ".lora_B.weight", DOWN + ".lora_A.weight"}


def test_the_loader_finds_weights_inside_layers_with_adapters(held):
    class Model:
        lora_manager = held[1][0]

    names = LoaderNames(Model())
    assert names.of(f"{K}.bias") == f"{K}.base_layer.bias"
    assert names.of(f"{DOWN}.weight") == f"{DOWN}.base_layer.weight"
    assert names.of("model.norm.weight") == "model.norm.weight"
    assert LoaderNames(object()).of(f"{K}.weight") == f"{K}.weight"
