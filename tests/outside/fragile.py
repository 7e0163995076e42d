"""The embedded engine, which says once that it is lost: when it is asked for the `after`th response."""

from pathlib import Path

from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.protocol import EngineFailedError, EngineSpec
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.source import load_tokenizer


class Fragile(EmbeddedEngine):
    """Args: `after` responses; `mark`: a file that is there once it has been lost."""

    def __init__(self, spec: EngineSpec, after: int, mark: str) -> None:
        super().__init__(
            spec.directory,
            dtype=spec.dtype,
            device=spec.device,
            batch_size=spec.settings.batch_size,
            seed=spec.seed,
            tokenizer=load_tokenizer(spec.tokenizer),
        )
        self._left, self._mark, self._lost = after, Path(mark), False

    async def generate(self, request: GenerateRequest) -> Completion:
        self._left -= 1
        if self._left < 0 and not self._mark.exists():
            self._mark.touch()
            self._lost = True
        if self._lost:
            raise EngineFailedError("its core died")
        return await super().generate(request)
