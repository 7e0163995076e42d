"""An engine of the user's by `rollout.engine: module:Class` keeps the contract; one that does not fit is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import LONG, LONG_TOKENS, SHORT, EngineContract, Subject
from engine_calls import generate, load
from recording import REPLAY, record
from rollout_models import CONFIGS, checkpoint, endless, reference_model

from pentad.config.schema.rollout import RolloutSettings
from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.load import make_engine
from pentad.engines.protocol import EngineSpec
from pentad.errors import UserError


def spec(directory: Path, engine: str | None, **options: Any) -> EngineSpec:
    settings = RolloutSettings(engine=engine, engine_options=options)
    return EngineSpec(directory, str(directory), settings, torch.float32, torch.device("cpu"), 0, 0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("model")
    model, other = (reference_model(endless(CONFIGS["qwen3"]), seed) for seed in (0, 1))
    model.save_pretrained(directory)
    embedded = EmbeddedEngine(model.config)
    load(embedded, checkpoint(model).items(), 0)
    # A short request asks for the beginning of a long response: prompts overlap.
    requests = [*LONG, *SHORT[len(LONG) :]]
    recording = record(directory / "recording.jsonl", requests, generate(embedded, requests))
    made = spec(directory, f"{REPLAY}:ReplayEngine", recording=str(recording))
    weights, others = (list(checkpoint(each).items()) for each in (model, other))
    return Subject(lambda: make_engine("hf", made, Path.cwd()), weights, others)


class TestReplayEngine(EngineContract):
    """The engine of tests/outside/replay.py."""


def test_the_recording_serves_both_kinds_of_request() -> None:
    assert torch.equal(SHORT[0].prompt_tokens, LONG[0].prompt_tokens)
    assert LONG[0].params.max_tokens == LONG_TOKENS


_ENGINES = """
class Takes:
    def __init__(self, spec, *, depth): ...
class Raises:
    def __init__(self, spec): raise OSError("no such accelerator")
class Lacks:
    version, features = -1, None
    def __init__(self, spec): ...
    async def generate(self, request): ...
    def pause(self, *, abort): ...
number = 3
"""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Takse", {}, "has no 'Takse'"),
        ("number", {}, "of type int"),
        ("Takes", {}, "missing a required keyword-only argument: 'depth'"),
        ("Takes", {"depth": 1, "width": 2}, "unexpected keyword argument 'width'"),
        ("Raises", {}, r"OSError: no such accelerator \(.*own_engines.*\.py:5\)"),
        ("Lacks", {}, "lacks logprobs, pause, resume, load_weights, sleep, wake, close"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / f"own_engines_{tmp_path.name}.py").write_text(_ENGINES)
    with pytest.raises(UserError, match=message):
        make_engine("hf", spec(tmp_path, f"own_engines_{tmp_path.name}:{name}", **options), tmp_path)
