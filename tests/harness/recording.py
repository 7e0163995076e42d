"""Recorded completions, for the engine that replays them."""

import json
from collections.abc import Sequence
from pathlib import Path

from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest

REPLAY = Path(__file__).parents[1] / "outside" / "replay.py"


def record(file: Path, requests: Sequence[GenerateRequest], completions: Sequence[Completion]) -> Path:
    """Write what tests/outside/replay.py reads."""
    with file.open("w") as lines:
        for request, completion in zip(requests, completions, strict=True):
            line = {
                "prompt": request.prompt_tokens.tolist(),
                "sample": request.sample,
                "response": completion.response_tokens.tolist(),
                "logprobs": completion.response_logprobs.tolist(),
            }
            lines.write(json.dumps(line) + "\n")
    return file
