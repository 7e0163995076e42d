"""The contract of a rollout engine, kept by vLLM; weights come from this process through CUDA IPC."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from pentad.engines.protocol import EngineFailedError
from pentad.engines.vllm.arguments import VllmSetup
from pentad.engines.vllm.engine import VllmEngine
from pentad.kernels.matmul import mm_float32
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.mapping import expected_shapes
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport import sockets
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import TransportError

pytest.importorskip("vllm")
MIB = 2**20
LONGEST = 2048


class Trainer:
    """Weights of a transformers model on this process's GPU, to be sent to an engine."""

    def __init__(self, model: torch.nn.Module, transport: LocalTransport) -> None:
        self.model, self.transport, self.version = model, transport, 0

    def tensors(self) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(self.model, {k: v.data for k, v in self.model.named_parameters()})
        return dict(state)

    def publish(self, engine: VllmEngine, tensors: Iterable[tuple[str, Tensor]] | None = None) -> dict[str, int]:
        return asyncio.run(self._publish(engine, self.tensors().items() if tensors is None else tensors))

    async def _publish(self, engine: VllmEngine, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
        self.version += 1
        channel = self.transport.open(self.version)
        sending = asyncio.create_task(asyncio.to_thread(channel.send, tensors))
        try:
            held = await engine.load_weights(channel, self.version)
        finally:
            sent = (await asyncio.gather(sending, return_exceptions=True))[0]
        if isinstance(sent, BaseException):
            raise sent
        assert held == sent
        return dict(held)

    @torch.no_grad()
    def logprobs(self, prompt: Tensor, response: Tensor) -> Tensor:
        """Of the response, by transformers with a float32 output layer."""
        tokens = torch.cat([prompt, response]).cuda()
        hidden = self.model.model(input_ids=tokens[None]).last_hidden_state[0]
        logits = mm_float32(hidden, self.model.get_output_embeddings().weight.t())
        scores = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
        return scores[len(prompt) - 1 :].cpu()


@pytest.fixture(scope="module", params=["dense", "mixture"])
def trainer(request, tmp_path_factory) -> Iterator[Trainer]:
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3MoeConfig

    configs = {
        "dense": Qwen2Config(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=6, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"],
        ),
        "mixture": Qwen3MoeConfig(
            hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=2, num_attention_heads=32,
            num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
            vocab_size=151936, tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
            architectures=["Qwen3MoeForCausalLM"],
        ),
    }  # fmt: skip
    config = configs[request.param]
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    transport = LocalTransport("ipc", torch.bfloat16, 700 * MIB, deadline_s=60)
    yield Trainer(model, transport)
    transport.close()


@pytest.fixture(scope="module")
def engine(trainer: Trainer, tmp_path_factory) -> Iterator[VllmEngine]:
    directory: Path = tmp_path_factory.mktemp("model")
    trainer.model.config.save_pretrained(directory)
    setup = VllmSetup(
        directory, None, longest=LONGEST, batch_size=256, seed=3, shares_gpu=True, sleeps=True,
        is_mixture="Moe" in type(trainer.model).__name__,
        passed={"enforce_eager": True, "kv_cache_memory_bytes": 4 << 30},
    )  # fmt: skip
    total = torch.cuda.mem_get_info()[1]
    made = VllmEngine(setup, expected_shapes(trainer.model.config), total, deadline_s=120)
    yield made
    asyncio.run(made.close())


def requests(count: int, tokens: int = 32, tag: str = "r", **params) -> list[GenerateRequest]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(4, 60, (count,), generator=generator)
    prompts = [torch.randint(1000, (int(n),), generator=generator) for n in lengths]
    chosen = SamplingParams(max_tokens=tokens, **params)
    return [GenerateRequest(prompt, f"{tag}-{i}", chosen) for i, prompt in enumerate(prompts)]


def generate(engine: VllmEngine, wanted: list[GenerateRequest]) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(request) for request in wanted)))

    return asyncio.run(all_at_once())


def test_nothing_is_generated_without_weights(engine):
    assert engine.version == -1
    with pytest.raises(RuntimeError, match="no complete set of weights"):
        generate(engine, requests(1))


def test_samples_with_the_trainers_log_probs(engine, trainer):
    trainer.publish(engine)
    assert engine.version == trainer.version
    wanted = requests(256)
    found = generate(engine, wanted)
    differences = []
    for request, completion in zip(wanted, found, strict=True):
        assert len(completion.response_tokens) == 32 and completion.finish_reason == "length"
        assert set(completion.versions.tolist()) == {trainer.version}
        expected = trainer.logprobs(request.prompt_tokens, completion.response_tokens)
        differences.append(expected - completion.response_logprobs)
    ratio = torch.cat(differences)
    k3 = float((ratio.exp() - 1 - ratio).mean())
    print(f"k3 {k3:.2e} over {len(ratio)} tokens, mean |difference| {float(ratio.abs().mean()):.2e}")
    assert k3 <= 1e-3
    again = generate(engine, wanted[:4])
    assert len({tuple(completion.response_tokens.tolist()) for completion in found}) == len(found)
    assert len(again) == 4


def test_log_probs_at_another_temperature_are_of_the_scaled_distribution(engine, trainer):
    wanted = requests(32, tag="hot", temperature=0.7)
    for request, completion in zip(wanted, generate(engine, wanted), strict=True):
        tokens = torch.cat([request.prompt_tokens, completion.response_tokens]).cuda()
        with torch.no_grad():
            hidden = trainer.model.model(input_ids=tokens[None]).last_hidden_state[0]
            logits = mm_float32(hidden, trainer.model.get_output_embeddings().weight.t()) / 0.7
        scores = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0].cpu()
        expected = scores[len(request.prompt_tokens) - 1 :]
        assert float((expected - completion.response_logprobs).abs().mean()) < 0.05


def test_stop_tokens_end_a_response_and_stay_in_it(engine):
    (first,) = generate(engine, requests(1, tag="stop", temperature=0.0))
    stop = int(first.response_tokens[5])
    length = first.response_tokens.tolist().index(stop) + 1
    (second,) = generate(engine, requests(1, tag="stop", temperature=0.0, stop_token_ids=(stop,)))
    assert second.response_tokens.tolist() == first.response_tokens[:length].tolist()
    assert second.finish_reason == "stop"


def test_scores_given_tokens(engine, trainer):
    sequences = [request.prompt_tokens for request in requests(16)]
    for sequence, found in zip(sequences, asyncio.run(engine.logprobs(sequences)), strict=True):
        expected = torch.cat([torch.zeros(1), trainer.logprobs(sequence[:1], sequence[1:])])
        assert found[0] == 0
        assert float((found - expected).abs().mean()) < 0.05
    with pytest.raises(ValueError, match="at temperature 1 only"):
        asyncio.run(engine.logprobs(sequences, 0.5))


def test_abort_returns_what_there_is(engine):
    async def run() -> tuple[list[Completion], list[Completion]]:
        tasks = [asyncio.create_task(engine.generate(request)) for request in requests(64, 1500, "abort")]
        # One that is as far as the others began, so most have some tokens by then, and none has all.
        await engine.generate(requests(1, 64, "beside")[0])
        await engine.pause(abort=True)
        stopped = await asyncio.gather(*tasks)
        late = [asyncio.create_task(engine.generate(request)) for request in requests(4, 8, "late")]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in late)
        await engine.resume()
        return stopped, await asyncio.gather(*late)

    stopped, late = asyncio.run(run())
    assert all(completion.finish_reason == "abort" for completion in stopped)
    assert sum(0 < len(completion.response_tokens) < 1500 for completion in stopped) > 32
    assert all(completion.finish_reason == "length" for completion in late)


def test_requests_go_on_under_new_weights(engine, trainer):
    async def run() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate(request)) for request in requests(32, 1000, "hold")]
        await asyncio.sleep(1.0)
        await engine.pause(abort=False)
        await trainer._publish(engine, trainer.tensors().items())
        await engine.resume()
        return list(await asyncio.gather(*tasks))

    found = asyncio.run(run())
    assert all(len(completion.response_tokens) == 1000 and completion.finish_reason == "length" for completion in found)
    for completion in found:
        versions = completion.versions.tolist()
        assert versions == sorted(versions)
        assert set(versions) <= {trainer.version - 1, trainer.version}
    assert any(len(set(completion.versions.tolist())) == 2 for completion in found)


def _missing(tensors: dict[str, Tensor], name: str) -> list[tuple[str, Tensor]]:
    return [(key, tensor) for key, tensor in tensors.items() if key != name]


def test_what_is_sent_wrong_is_refused_by_name(engine, trainer):
    tensors = trainer.tensors()
    norm, query = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    for sent, message in (
        (_missing(tensors, norm), f"{norm} did not arrive"),
        (_missing(tensors, head), f"{head} did not arrive"),
        ([*tensors.items(), (query, tensors[query] + 1)], f"{query} arrived twice"),
        ([*tensors.items(), ("model.extra", tensors[norm])], "model.extra arrived, but the model has no such tensor"),
        ((tensors | {query: tensors[query][:-1]}).items(), f"{query} arrived as"),
    ):
        with pytest.raises(WeightMismatchError, match=message):
            trainer.publish(engine, sent)
        assert engine.version == -1
        with pytest.raises(RuntimeError, match="no complete set of weights"):
            generate(engine, requests(1))
    trainer.publish(engine)
    assert engine.version == trainer.version


def _exchanged(first: str, second: str) -> Callable[[list[sockets.Entry], Tensor], list[sockets.Entry]]:
    """Two tensors change places on the way, after their checksums were taken."""

    def change(entries: list[sockets.Entry], data: Tensor) -> list[sockets.Entry]:
        offsets = {entry.name: entry.offset for entry in entries}
        if first in offsets and second in offsets:
            offsets[first], offsets[second] = offsets[second], offsets[first]
        return [sockets.Entry(e.name, e.dtype, e.shape, offsets[e.name]) for e in entries]

    return change


def _shifted(name: str) -> Callable[[list[sockets.Entry], Tensor], list[sockets.Entry]]:
    """A tensor's rows are moved by one on the way."""

    def change(entries: list[sockets.Entry], data: Tensor) -> list[sockets.Entry]:
        for entry in entries:
            if entry.name == name:
                entry.view(data).copy_(entry.view(data).roll(1, 0))
        return entries

    return change


def test_what_changes_on_the_way_is_refused_by_name(engine, trainer, monkeypatch):
    key = "model.layers.1.self_attn.k_proj.weight"
    mixed = [name for name in trainer.tensors() if "mlp.experts" in name and "layers.1" in name and "up_proj" in name]
    pair = mixed[:2] or [key, key.replace("k_proj", "v_proj")]
    bits = trainer.tensors()
    assert not torch.equal(bits[pair[0]], bits[pair[1]])
    dispatch = sockets.BucketSender._dispatch
    for change, message in ((_exchanged(*pair), pair[0]), (_shifted(key), key)):

        def faulty(self, connections, number, bucket, names, sums, change=change):
            names += [entry.name for entry in bucket.entries]
            sums.append(bucket.sums())
            self._certify = False
            bucket.entries = change(bucket.entries, bucket._buffer)
            dispatch(self, connections, number, bucket, names, sums)

        with monkeypatch.context() as patched:
            patched.setattr(sockets.BucketSender, "_dispatch", faulty)
            with pytest.raises(WeightMismatchError, match=f"{message}.* arrived changed"):
                trainer.publish(engine)
    trainer.publish(engine)


def test_a_bucket_that_is_cut_short_is_refused_by_name(engine, trainer, monkeypatch):
    dispatch = sockets.BucketSender._dispatch

    def faulty(self, connections, number, bucket, names, sums):
        last = bucket.entries[-1]
        bucket.entries[-1] = sockets.Entry(last.name, last.dtype, last.shape, self._bytes - last.bytes + 512)
        self._certify = False
        dispatch(self, connections, number, bucket, names, sums)

    with monkeypatch.context() as patched:
        patched.setattr(sockets.BucketSender, "_dispatch", faulty)
        with pytest.raises(Exception, match="the bucket ends before"):
            trainer.publish(engine)
    assert engine.version == -1
    trainer.publish(engine)


def test_sleep_releases_memory_and_new_weights_bring_the_engine_back(engine, trainer):
    (before,) = generate(engine, requests(1, tag="nap", temperature=0.0))
    left = []
    for _ in range(3):
        awake = torch.cuda.mem_get_info()[0]
        asyncio.run(engine.sleep())
        assert engine.version == -1
        asleep = torch.cuda.mem_get_info()[0]
        left.append(asleep)
        assert asleep - awake > (4 << 30)
        asyncio.run(engine.wake())
        trainer.publish(engine)
        (after,) = generate(engine, requests(1, tag="nap", temperature=0.0))
        assert after.response_tokens.tolist() == before.response_tokens.tolist()
    print(f"asleep: {(left[0] - awake) / 2**30:.2f} GiB released, later {(left[0] - left[-1]) / MIB:.0f} MiB less")
    assert left[0] - left[-1] < 64 * MIB


def test_the_death_of_the_core_is_noticed(engine, trainer):
    cores = [child for child in psutil.Process().children() if "VLLM" in " ".join(child.cmdline())]

    async def run() -> float:
        tasks = [asyncio.create_task(engine.generate(request)) for request in requests(16, 1500, "killed")]
        await asyncio.sleep(1.0)
        for core in cores:
            os.kill(core.pid, signal.SIGKILL)
        begin = time.monotonic()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, EngineFailedError) for answer in answers), answers[:2]
        return time.monotonic() - begin

    assert cores, [child.cmdline() for child in psutil.Process().children()]
    assert asyncio.run(run()) < 10
    with pytest.raises((EngineFailedError, TransportError)):
        asyncio.run(engine.load_weights(trainer.transport.open(99), 99))
