"""Writing a model that is spread over the trainer's ranks as a Hugging Face directory.

Invariant: the driver writes while the ranks send, a bucket at a time; a failure on either side ends both, and what is
raised is the first cause. The directory is complete or not there.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.weights.adapters import write_adapter_directory
from pentad.weights.hf_files import write_checkpoint
from pentad.weights.source import companion_files
from pentad.weights.transport.protocol import WeightChannel

# Ranks take that long to be found dead.
_GRACE_S = 5.0


async def write_export(
    channel: WeightChannel,
    sending: Awaitable[Any],
    source: Path,
    target: Path,
    lora: LoraSettings | None = None,
    config_json: str | None = None,
) -> None:
    """Receive all tensors of a channel and write them.

    Args:
        sending: the call by which the ranks send.
        source: the directory that training started from, for everything beside the weights.
        target: must not exist yet.
        lora: what comes are adapters, which are written as PEFT does.
        config_json: text of config.json; None: that of the source.

    Raises:
        UserError: the target exists, or cannot be written.
        RunFailedError: see `pentad.cluster.processes.Processes.wait`.
    """
    ranks = asyncio.ensure_future(sending)
    writer = asyncio.ensure_future(asyncio.to_thread(_write, _copies(channel), source, target, lora, config_json))
    try:
        await asyncio.wait({ranks, writer}, return_when=asyncio.FIRST_EXCEPTION)
        if writer.done() and writer.exception() is not None and not isinstance(writer.exception(), UserError):
            # It may have failed only because a rank did.
            await asyncio.wait({ranks}, timeout=_GRACE_S)
        for part in (ranks, writer):
            if part.done():
                part.result()
    finally:
        ranks.cancel()
        channel.close("the export has ended")
        await asyncio.wait({ranks, writer})
        for part in (ranks, writer):
            if not part.cancelled():
                part.exception()


def _write(
    tensors: Iterator[tuple[str, Tensor]],
    source: Path,
    target: Path,
    lora: LoraSettings | None,
    config_json: str | None,
) -> None:
    if lora is None:
        config_json = config_json or (source / "config.json").read_text()
        write_checkpoint(tensors, target, companion_files(source), config_json)
    else:
        write_adapter_directory(tensors, target, lora, source, companion_files(source))


def _copies(channel: WeightChannel) -> Iterator[tuple[str, Tensor]]:
    # A file of weights holds the tensors of many buckets.
    for name, tensor in channel.receive():
        copy = tensor.clone()
        del tensor  # its bucket may be given back while the next is waited for
        yield name, copy
