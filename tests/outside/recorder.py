"""An engine of a user's: the embedded engine, which also writes down what it answers.

It is used as `rollout.engine: path/to/recorder.py:RecordingEngine` with `rollout.engine_options: {folder: FOLDER}`.
Each replica writes a file there, with a line of JSON for each completion: `request`, `sample`, `prompt` and `response`.
"""

import json
from pathlib import Path

from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.protocol import EngineSpec
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.source import load_tokenizer


class RecordingEngine(EmbeddedEngine):
    """Writes down every completion.

    Args:
        folder: takes the files.
    """

    def __init__(self, spec: EngineSpec, *, folder: str) -> None:
        super().__init__(
            spec.directory,
            dtype=spec.dtype,
            device=spec.device,
            batch_size=spec.settings.batch_size,
            seed=spec.seed,
            tokenizer=load_tokenizer(spec.tokenizer),
        )
        self._file = Path(folder) / f"{spec.replica}.jsonl"

    async def generate(self, request: GenerateRequest) -> Completion:
        completion = await super().generate(request)
        line = {
            "request": request.request_id,
            "sample": request.sample,
            "prompt": request.prompt_tokens.tolist(),
            "response": completion.response_tokens.tolist(),
        }
        with self._file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return completion
