"""Adapters that vLLM takes beside its weights: what it computes with them, and what it refuses."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_oracle import random_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from pentad.config.schema.lora import LoraSettings
from pentad.engines.vllm.arguments import VllmSetup
from pentad.engines.vllm.engine import VllmEngine
from pentad.engines.vllm.lora import HotLora, choose
from pentad.kernels.matmul import mm_float32
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.mapping import expected_shapes
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport.channel import LocalTransport

pytest.importorskip("vllm")
peft = pytest.importorskip("peft")
DEVICE, DTYPE, TRANSPORT = "cuda", torch.bfloat16, "ipc"
MIB = 2**20
# Mean |difference| of log-probs, and of those without any adapter: bfloat16 moves the former by its rounding.
BOUND, MOVED = 0.03, 0.1
# Of SmolLM2-135M, with fewer layers and tokens. A scale that is no power of two, and not all of a fused layer.
CONFIG = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=8192, max_position_embeddings=1024, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
)  # fmt: skip
LORA = LoraSettings(
    rank=6, alpha=10, rslora=True, targets=["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
QUERY, VALUE = (f"model.layers.1.self_attn.{name}.lora_A.weight" for name in ("q_proj", "v_proj"))


class Trainer:
    """A transformers model with PEFT's adapters, and what a trainer of both would publish."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        with torch.device(DEVICE):
            self.base = AutoModelForCausalLM.from_config(CONFIG, dtype=DTYPE, attn_implementation="sdpa").eval()
        self.weights = {name: tensor.detach().clone() for name, tensor in self.base.named_parameters()}
        self.transport = LocalTransport(TRANSPORT, DTYPE, 100 * MIB, deadline_s=60)
        self.folder, self.version = folder, 0
        self.model: Any = None

    def adapt(self, seed: int) -> dict[str, Tensor]:
        """New adapters; returns them as they are sent."""
        folder = self.folder / str(seed)
        folder.mkdir(exist_ok=True)
        found = random_adapter(CONFIG, LORA, folder, seed)
        rounded = {name: tensor.to(DTYPE) for name, tensor in found.items()}
        if self.model is None:
            self.model = peft.PeftModel.from_pretrained(self.base, folder, autocast_adapter_dtype=False).eval()
        held = dict(self.model.named_parameters())
        for name, tensor in rounded.items():
            parameter = held["base_model.model." + name.replace(".weight", ".default.weight")]
            parameter.data = tensor.to(DEVICE)
        return {name: tensor.to(DEVICE) for name, tensor in rounded.items()}

    def publish(self, engine: VllmEngine, tensors: Iterable[tuple[str, Tensor]]) -> None:
        async def publish() -> None:
            channel = self.transport.open(self.version)
            sending = asyncio.create_task(asyncio.to_thread(channel.send, tensors))
            try:
                held = await engine.load_weights(channel, self.version)
            finally:
                sent = (await asyncio.gather(sending, return_exceptions=True))[0]
            assert held == sent

        self.version += 1
        asyncio.run(publish())

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, *, adapted: bool = True) -> Tensor:
        """Of all tokens but the first, with a float32 output layer."""
        tokens = tokens.to(DEVICE)
        inner = self.model.base_model.model

        def compute() -> Tensor:
            hidden = inner.model(input_ids=tokens[None]).last_hidden_state[0]
            logits = mm_float32(hidden, inner.get_output_embeddings().weight.t())
            return logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0].cpu()

        if adapted:
            return compute()
        with self.model.disable_adapter():
            return compute()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Iterator[Trainer]:
    made = Trainer(tmp_path_factory.mktemp("adapters"))
    yield made
    made.transport.close()


@pytest.fixture(scope="module")
def engine(trainer: Trainer, tmp_path_factory) -> Iterator[VllmEngine]:
    directory: Path = tmp_path_factory.mktemp("model")
    CONFIG.save_pretrained(directory)
    lora = choose(CONFIG, LORA)
    assert isinstance(lora, HotLora)
    setup = VllmSetup(
        directory, None, longest=512, batch_size=16, seed=3, shares_gpu=True, sleeps=True, lora=lora,
        passed={"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "max_num_batched_tokens": 1024},
    )  # fmt: skip
    total = torch.cuda.mem_get_info()[1]
    made = VllmEngine(setup, expected_shapes(CONFIG), total, deadline_s=120)
    yield made
    asyncio.run(made.close())


def sample(engine: VllmEngine, tag: str) -> list[tuple[Tensor, Completion]]:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1000, (length,), generator=generator) for length in range(4, 20)]
    wanted = [GenerateRequest(prompt, f"{tag}-{i}", SamplingParams(max_tokens=16)) for i, prompt in enumerate(prompts)]

    async def all_at_once() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(request) for request in wanted)))

    return list(zip(prompts, asyncio.run(all_at_once()), strict=True))


def check(engine: VllmEngine, trainer: Trainer, tag: str) -> None:
    """Sampled tokens and scores have the log-probs of the adapted model, and not those of the base."""
    assert engine.version == trainer.version
    off, scored, base = [], [], []
    for prompt, completion in sample(engine, tag):
        tokens = torch.cat([prompt, completion.response_tokens])
        expected = trainer.logprobs(tokens)
        off.append(expected[len(prompt) - 1 :] - completion.response_logprobs)
        (scores,) = asyncio.run(engine.logprobs([tokens]))
        scored.append(expected - scores[1:])
        base.append(expected - trainer.logprobs(tokens, adapted=False))
    figures = [float(torch.cat(part).abs().mean()) for part in (off, scored, base)]
    print(f"{tag}: sampled {figures[0]:.2e}, scored {figures[1]:.2e}, adapters move {figures[2]:.2e}")
    assert figures[0] < BOUND and figures[1] < BOUND and figures[2] > MOVED


def test_computes_with_the_newest_adapters(engine, trainer):
    assert engine.features.adapters
    with pytest.raises(WeightMismatchError, match=r"model.embed_tokens.weight did not arrive"):
        trainer.publish(engine, trainer.adapt(1).items())
    trainer.publish(engine, (trainer.weights | trainer.adapt(1)).items())
    check(engine, trainer, "first")
    trainer.publish(engine, trainer.adapt(2).items())
    check(engine, trainer, "second")
    trainer.publish(engine, (trainer.weights | trainer.adapt(3)).items())
    check(engine, trainer, "all again")


def test_sleep_keeps_the_weights(engine, trainer):
    asyncio.run(engine.sleep())
    asyncio.run(engine.wake())
    trainer.publish(engine, trainer.adapt(4).items())
    check(engine, trainer, "slept")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda sent: {k: v for k, v in sent.items() if k != QUERY}, f"{QUERY} did not arrive"),
        (lambda sent: sent | {QUERY: sent[QUERY][:-1]}, f"{QUERY} arrived as"),
        (lambda sent: sent | {QUERY.replace("1", "9"): sent[QUERY]}, "the model has no such tensor"),
    ],
    ids=["missing", "misshapen", "unknown"],
)
def test_what_is_sent_wrong_is_refused_by_name(engine, trainer, change, message):
    with pytest.raises(WeightMismatchError, match=message):
        trainer.publish(engine, change(trainer.adapt(5)).items())
    assert engine.version == -1
    with pytest.raises(RuntimeError, match="no complete set of weights"):
        sample(engine, "refused")


def _swapped(held: dict[str, Tensor]) -> None:
    query, value = "base_model.model." + QUERY, "base_model.model." + VALUE
    held[query], held[value] = held[value], held[query]


def _one_bit(held: dict[str, Tensor]) -> None:
    name = "base_model.model.model.layers.3.mlp.down_proj.lora_B.weight"
    held[name][5, 2] *= 1.01


def _lost(held: dict[str, Tensor]) -> None:
    for name in [name for name in held if "layers.2.mlp.up_proj" in name]:
        del held[name]


@pytest.mark.parametrize(
    "spoil, name",
    [(_swapped, "layers.1.self_attn.q_proj.lora_A"), (_one_bit, "down_proj.lora_B"), (_lost, "layers.2.mlp.up_proj")],
    ids=["swapped", "one element", "lost"],
)
def test_what_vllm_holds_wrong_is_refused_by_name(engine, trainer, monkeypatch, spoil: Callable, name):
    """The fault is planted in the file from which vLLM takes what the workers have received."""
    llm = engine._core.llm
    add = llm.add_lora

    async def spoilt(request: Any) -> Any:
        path = Path(request.lora_path) / "adapter_model.safetensors"
        held = load_file(path)
        spoil(held)
        save_file({key: tensor.clone() for key, tensor in held.items()}, path, metadata={"format": "pt"})
        return await add(request)

    monkeypatch.setattr(llm, "add_lora", spoilt)
    with pytest.raises(WeightMismatchError, match=f"{name}.* is not what was sent"):
        trainer.publish(engine, trainer.adapt(6).items())
    assert engine.version == -1
    monkeypatch.undo()
    trainer.publish(engine, trainer.adapt(7).items())
    check(engine, trainer, f"after {name}")
