"""The adapters of one engine: from its workers, who received them, into vLLM, and proven there.

Invariant: `use` returns only where every worker has received what the trainer sent and computes with it. vLLM holds one
adapter at a time; no request is in flight while it changes.
"""

import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.core import VllmCore
from pentad.engines.vllm.lora import HotLora
from pentad.engines.vllm.worker import Holding
from pentad.engines.vllm.worker_adapters import AdapterOrder
from pentad.families.lora import is_adapter

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_MEMORY = Path("/dev/shm")


class Adapters:
    """The adapters that requests use.

    Args:
        core: of the engine.
        lora: what they are.

    Attributes:
        request: what vLLM calls those in use; None before the first ones, and where some were refused.
    """

    def __init__(self, core: VllmCore, lora: HotLora) -> None:
        self.request: LoRARequest | None = None
        self._core, self._lora = core, lora
        self._certificate = Certificate(lora.shapes, core.name)
        # vLLM warms up with adapters of its own, numbered from 1.
        self._numbers = itertools.count(1000)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def order(self) -> AdapterOrder:
        """What a publication has to bring; it is written to a new folder in memory."""
        self._forget_files()
        # In float32 at most; containers often have little of it.
        needed = 4 * sum(rows * columns for rows, columns in self._lora.shapes.values())
        where = _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * needed else None
        self._folder = tempfile.TemporaryDirectory(prefix="pentad-adapters-", dir=where)
        return AdapterOrder(self._lora.rank, self._lora.scale, self._lora.shapes, Path(self._folder.name))

    async def use(self, holdings: Sequence[Holding], certify: bool) -> Mapping[str, int]:
        """Have vLLM take what the workers have received; on the core's loop.

        Args:
            certify: checksums were taken.

        Returns:
            checksum of each matrix as it was sent, received and taken; empty without `certify`.

        Raises:
            WeightMismatchError: a matrix is missing, unknown, repeated, misshapen or changed.
            EngineFailedError: the core died.
        """
        try:
            self._check_received(holdings, certify)
            await self._exchange()
        finally:
            self._forget_files()
        return dict(holdings[0].adapters)

    def _check_received(self, holdings: Sequence[Holding], certify: bool) -> None:
        for rank, holding in enumerate(holdings):
            sent = {name: shape for name, shape in holding.sent.items() if is_adapter(name)}
            self._certificate.check_names(sent, [name for name in holding.repeated if is_adapter(name)])
            if certify:
                self._certificate.refuse(
                    f"{name} arrived changed at worker {rank}"
                    for name, value in holding.adapters.items()
                    if holding.checksums.get(name) != value
                )

    async def _exchange(self) -> None:
        from vllm.lora.request import LoRARequest

        llm, old = self._core.llm, self.request
        self.request = None
        if old is not None:
            await self._core.call(llm.remove_lora(old.lora_int_id), "removing the old adapters")
        number = next(self._numbers)
        if self._folder is None:
            raise AssertionError("adapters were not ordered")
        new = LoRARequest(f"pentad-{number}", number, self._folder.name)
        await self._core.call(llm.add_lora(new), "adding adapters")
        answers = await self._core.workers("checking adapters", "pentad_adapter_problems", number)
        self._certificate.refuse(problem for problems in answers for problem in problems)
        self.request = new

    def _forget_files(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
