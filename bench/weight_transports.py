"""Weights from one process of this machine to another, by each transport that works without a GPU, side by side.

    python bench/weight_transports.py                        # SmolLM2-135M in float32, and 1 GB in 16 tensors
    python bench/weight_transports.py --cases 135m --rounds 9 --json result.json

Random weights; the processes are Ray actors, as in a run. Each round is one publication by each transport in turn:
cast, packed, summed up at the sender and copied into tensors that the receiver holds. The receiver's own sums are the
same for all and left out. GB/s counts the weights' bytes once. Beside them the rate of a plain copy in one process.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
from transformers import LlamaConfig

from pentad.cluster.mailbox import Mailbox
from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.weights.mapping import expected_shapes
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import WeightChannel

Shapes = Mapping[str, tuple[int, ...]]
SMOLLM2 = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
)  # fmt: skip
CASES: dict[str, Shapes] = {
    "135m": {name: tuple(shape) for name, shape in expected_shapes(SMOLLM2).items()},
    "1gb": {f"layer{number}": (4096, 4096) for number in range(16)},
}


@ray.remote
class Side:
    """Holds a whole set of weights, random at first."""

    def __init__(self, shapes: Shapes) -> None:
        torch.set_num_threads(1)
        self._held = {name: torch.randn(shape) for name, shape in shapes.items()}

    def size(self) -> int:
        return sum(tensor.nbytes for tensor in self._held.values())

    def copy_seconds(self) -> float:
        """Of a copy of all that is held."""
        copies = {name: torch.zeros_like(tensor) for name, tensor in self._held.items()}
        begin = time.perf_counter()
        for name, tensor in self._held.items():
            copies[name].copy_(tensor)
        return time.perf_counter() - begin

    def send(self, channel: WeightChannel) -> None:
        channel.send(self._held.items())

    def receive(self, channel: WeightChannel) -> None:
        for name, tensor in channel.receive():
            self._held[name].copy_(tensor)


def measure(shapes: Shapes, rounds: int) -> dict[str, float]:
    """One case: seconds of each transport, and of a copy."""
    sender, receiver = Side.remote(shapes), Side.remote(shapes)
    mailbox = Mailbox.remote(0, 1)
    size = ray.get(sender.size.remote())
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    transports = (
        StoreTransport(ObjectStore(mailbox, 600.0), 1, 1, torch.float32),
        LocalTransport("shared", torch.float32, max(64 << 20, largest)),
    )
    seconds: dict[str, list[float]] = {transport.name: [] for transport in transports}
    for version in range(rounds + 1):
        for transport in transports:
            channel = transport.open(version)
            begin = time.perf_counter()
            ray.get([receiver.receive.remote(channel), sender.send.remote(channel)])
            seconds[transport.name].append(time.perf_counter() - begin)
            channel.close("the publication has ended")
    found = {f"{name}_s": median(times[1:]) for name, times in seconds.items()}
    found["copy_s"] = median(ray.get(sender.copy_seconds.remote()) for _ in range(3))
    for actor in (sender, receiver, mailbox):
        ray.kill(actor)
    return {"GB": size / 1e9, **found}


def main() -> None:
    """Run the cases, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    results: dict[str, Any] = {}
    for name in arguments.cases:
        results[name] = found = measure(CASES[name], arguments.rounds)
        rates = {key: found["GB"] / found[f"{key}_s"] for key in ("store", "shared", "copy")}
        print(
            f"{name}: {found['GB']:.2f} GB in {len(CASES[name])} tensors; object store {found['store_s']:.2f} s "
            f"({rates['store']:.2f} GB/s), shared memory {found['shared_s']:.2f} s ({rates['shared']:.2f} GB/s), "
            f"{found['store_s'] / found['shared_s']:.1f} times as fast; a copy {rates['copy']:.2f} GB/s",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
