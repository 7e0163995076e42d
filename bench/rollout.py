"""Tokens/s of generation through Pentad's vLLM engine, beside vLLM alone on the same prompts.

    python bench/rollout.py --json result.json

A model of Qwen2.5-1.5B's shape with random weights; every prompt is completed with the same number of tokens. vLLM
alone is the same core, asked through vLLM's own `AsyncLLM` without Pentad; with `--offline` also its offline `LLM` with
the same arguments, in a process of its own, without log-probs and with those of the sampled tokens.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from weight_sync import CASES, publish

from pentad.engines.vllm.arguments import VllmSetup, engine_arguments, environment
from pentad.engines.vllm.engine import VllmEngine
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.mapping import expected_shapes
from pentad.weights.transport.channel import LocalTransport

MODEL = "1.5b"


def prompts(count: int) -> list[list[int]]:
    """Random prompts of 64 to 192 tokens, no two with a common beginning."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(64, 193, (count,), generator=generator).tolist()
    return [torch.randint(1000, 150_000, (length,), generator=generator).tolist() for length in lengths]


def setup_of(folder: str, tokens: int, eager: bool) -> VllmSetup:
    """The same engine for all."""
    passed = {"kv_cache_memory_bytes": 40 << 30, "enforce_eager": eager}
    return VllmSetup(Path(folder), None, longest=192 + tokens, batch_size=512, shares_gpu=True, passed=passed)


async def raw(llm: Any, number: int, count: int, tokens: int) -> float:
    """Tokens/s of vLLM's own client."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    async def one(index: int, prompt: list[int]) -> int:
        params = VllmSamplingParams(
            max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0, flat_logprobs=True, seed=index,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        last: Any = None
        async for output in llm.generate(TokensPrompt(prompt_token_ids=prompt), params, f"raw-{number}-{index}"):
            last = output
        return len(last.outputs[0].token_ids)

    wanted = prompts(count)
    begin = time.perf_counter()
    sampled = sum(await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(wanted))))
    rate = sampled / (time.perf_counter() - begin)
    await llm.reset_prefix_cache()
    return rate


def through_pentad(folder: str, count: int, tokens: int, repeats: int, eager: bool) -> dict[str, Any]:
    """Tokens/s of each repetition, through Pentad and without it; the first warms up."""
    shapes = expected_shapes(CASES[MODEL])
    begin = time.perf_counter()
    engine = VllmEngine(setup_of(folder, tokens, eager), shapes, torch.cuda.mem_get_info()[1])
    started = time.perf_counter() - begin
    weights = {name: 0.02 * torch.randn(s, device="cuda", dtype=torch.bfloat16) for name, s in shapes.items()}
    transport = LocalTransport("ipc", torch.bfloat16, 1 << 30)
    asyncio.run(publish(engine, transport, weights, 1))
    transport.close()
    params = SamplingParams(max_tokens=tokens)

    async def run(number: int) -> float:
        requests = [
            GenerateRequest(torch.tensor(prompt), f"{number}-{i}", params) for i, prompt in enumerate(prompts(count))
        ]
        begin = time.perf_counter()
        found = await asyncio.gather(*(engine.generate(request) for request in requests))
        seconds = time.perf_counter() - begin
        sampled = sum(len(completion.response_tokens) for completion in found)
        assert sampled == count * tokens
        # Nothing may be found in the cache of the run before.
        await engine._core.here(engine._core.llm.reset_prefix_cache())
        return sampled / seconds

    rates, plain = [], []
    for number in range(repeats):
        rates.append(asyncio.run(run(number)))
        plain.append(engine._core.wait(raw(engine._core.llm, number, count, tokens)))
    asyncio.run(engine.close())
    return {
        "tokens/s": median(rates[1:]), "all": rates, "AsyncLLM tokens/s": median(plain[1:]), "all AsyncLLM": plain,
        "start_s": started,
    }  # fmt: skip


def alone(folder: str, count: int, tokens: int, repeats: int, eager: bool, connection: Any) -> None:
    """The same by vLLM's own `LLM`, in a process of its own."""
    setup = setup_of(folder, tokens, eager)
    os.environ.update(environment(setup))
    from vllm import LLM
    from vllm import SamplingParams as VllmSamplingParams

    arguments = engine_arguments(setup, 0, torch.cuda.get_device_properties(0).total_memory)
    del arguments["worker_extension_cls"]
    llm = LLM(**arguments)
    wanted = [{"prompt_token_ids": prompt} for prompt in prompts(count)]
    result: dict[str, Any] = {}
    for key, logprobs in (("tokens/s", None), ("tokens/s with log-probs", 0)):
        rates = []
        for _ in range(repeats):
            params = VllmSamplingParams(
                max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=logprobs, flat_logprobs=True
            )
            begin = time.perf_counter()
            found = llm.generate(wanted, params, use_tqdm=False)
            rates.append(sum(len(one.outputs[0].token_ids) for one in found) / (time.perf_counter() - begin))
            llm.reset_prefix_cache()
        result[key], result[f"all {key}"] = max(rates[1:]), rates
    connection.send(result)


def main() -> None:
    """Run both, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--eager", action="store_true", help="without compilation and CUDA graphs")
    parser.add_argument("--offline", action="store_true", help="measure vLLM's offline LLM too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        CASES[MODEL].save_pretrained(folder)
        case = (folder, arguments.prompts, arguments.tokens, arguments.repeats, arguments.eager)
        pentad = through_pentad(*case)
        share = pentad["tokens/s"] / pentad["AsyncLLM tokens/s"]
        print(
            f"through Pentad: {pentad['tokens/s']:.0f} tokens/s, vLLM's AsyncLLM alone "
            f"{pentad['AsyncLLM tokens/s']:.0f} ({share:.0%}); started in {pentad['start_s']:.0f} s",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps({"pentad": pentad}, indent=1))
        if not arguments.offline:
            return
        torch.cuda.empty_cache()
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=alone, args=(*case, theirs))
        process.start()
        theirs.close()
        vllm = ours.recv()
        process.join()
    if arguments.json:
        arguments.json.write_text(json.dumps({"pentad": pentad, "vllm": vllm}, indent=1))
    for key, what in (("tokens/s", "without"), ("tokens/s with log-probs", "with")):
        share = pentad["tokens/s"] / vllm[key]
        print(f"vLLM alone, {what} log-probs: {vllm[key]:.0f} tokens/s; through Pentad {share:.0%} of that")


if __name__ == "__main__":
    main()
