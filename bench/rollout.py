"""Tokens/s of generation through Pentad's vLLM engine, beside vLLM alone on the same prompts.

    python bench/rollout.py --json result.json

A model of Qwen2.5-1.5B's shape with random weights; every prompt is completed with the same number of tokens. vLLM
alone is its offline `LLM` with the same arguments, once without log-probs and once with those of the sampled tokens.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
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


def setup_of(folder: str, tokens: int) -> VllmSetup:
    """The same engine for both."""
    passed = {"kv_cache_memory_bytes": 40 << 30}
    return VllmSetup(Path(folder), None, longest=192 + tokens, batch_size=512, shares_gpu=True, passed=passed)


def through_pentad(folder: str, count: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens/s of each repetition; the first warms up."""
    shapes = expected_shapes(CASES[MODEL])
    begin = time.perf_counter()
    engine = VllmEngine(setup_of(folder, tokens), shapes, torch.cuda.mem_get_info()[1])
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
        await engine.pause(abort=True)
        await engine.resume()
        await engine._core.here(engine._core.llm.reset_prefix_cache())
        return sampled / seconds

    rates = [asyncio.run(run(number)) for number in range(repeats)]
    asyncio.run(engine.close())
    return {"tokens/s": max(rates[1:]), "all": rates, "start_s": started}


def alone(folder: str, count: int, tokens: int, repeats: int, connection: Any) -> None:
    """The same by vLLM's own `LLM`, in a process of its own."""
    setup = setup_of(folder, tokens)
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        CASES[MODEL].save_pretrained(folder)
        case = (folder, arguments.prompts, arguments.tokens, arguments.repeats)
        pentad = through_pentad(*case)
        print(f"through Pentad: {pentad['tokens/s']:.0f} tokens/s; started in {pentad['start_s']:.0f} s", flush=True)
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
