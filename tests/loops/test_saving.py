"""Checkpoints and stops of the loop, with a model of one number."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.data.prompts import EncodedExamples
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.errors import UserError
from pentad.loops.loop import Loop, Parts
from pentad.loops.saving import DRIVER_STATE, Saver
from pentad.loops.sources import Examples
from pentad.loops.stopping import StoppedError
from pentad.record.checkpoints import Checkpoints
from pentad.record.manifest import FileRecord, Manifest, record_file
from pentad.samples.batch import Batch
from pentad.trainers.protocol import Trained

ROWS, PER_STEP = 7, 2
FILE = "policy/rank-00000.safetensors"


class Model:
    """Its weight is a hash of everything that it was trained on, in order."""

    def __init__(self) -> None:
        self.weight = 1
        self.not_finite: set[int] = set()  # weights at which the gradient is not finite
        self.fails: Callable[[], None] = lambda: None
        self.on_train: Callable[[], None] = lambda: None
        self._directory: Path | None = None
        self._copy = 0

    async def logprobs(self, batch: Batch, temperature: float, progress: Any) -> Tensor:
        raise NotImplementedError

    async def train(self, minibatch: Batch, loss: Any, temperature: float, progress: Any) -> Trained:
        ids = tuple(minibatch.sample_ids.tolist())
        await asyncio.sleep(0)
        self.on_train()
        if self.weight in self.not_finite:
            self.not_finite.discard(self.weight)
            return Trained({"train/lr": 0.1, "train/skipped_updates": 1.0}, ids, ("model.norm.weight",))
        self.weight = hash((self.weight, tuple(minibatch.tokens.tolist())))
        return Trained({"train/loss": 0.0, "train/lr": 0.1, "train/skipped_updates": 0.0}, ids)

    async def start_save(self, directory: Path) -> Mapping[str, Any]:
        self._directory, self._copy = directory, self.weight
        return {"policy": {"steps": 1}}

    async def finish_save(self) -> list[FileRecord]:
        assert self._directory is not None
        await asyncio.sleep(0.01)  # training goes on meanwhile
        self.fails()
        (self._directory / "policy").mkdir()
        (self._directory / FILE).write_text(json.dumps(self._copy))
        return [record_file(self._directory, FILE)]


class Journal:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.messages: list[str] = []
        self.status = type("Status", (), {"phase": "", "step": 0})()

    def progress(self, name: str, total: int | None = None) -> Any:
        return lambda done: None

    def timed(self, phase: str) -> Any:
        return nullcontext()

    def times(self) -> dict[str, float]:
        return {"time/step": 1.0}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def message(self, text: str) -> None:
        self.messages.append(text)


class World:
    """A run of SFT, from a checkpoint where there is one."""

    def __init__(self, folder: Path, steps: int = 9, **settings: Any) -> None:
        self.checkpoints = Checkpoints(folder)
        self.model, self.journal = Model(), Journal()
        self.settings = TrainerSettings(total_steps=steps, prompts_per_step=PER_STEP, **{"save_freq": 3, **settings})
        algorithm = SFTSettings()
        examples = [(torch.tensor([row, 1]), torch.tensor([row, 2])) for row in range(ROWS)]
        rows = [PromptRow(str(row), "", response="") for row in range(ROWS)]
        data = EncodedExamples(rows, examples, 0)
        manifest = Manifest(0, 0, ("policy",), ())
        self.saver = Saver(self.model, self.checkpoints, manifest, self.settings, self.journal)  # ty: ignore
        self.loop = Loop(
            Parts(
                settings=self.settings,
                algorithm_settings=algorithm,
                algorithm=make_algorithm(algorithm),
                roles={"policy": self.model},
                source=Examples(data, PromptSampler(data, 1), PER_STEP),
                journal=self.journal,  # ty: ignore
                engines=None,
                publication=None,
                evaluation=None,
                temperature=1.0,
                saver=self.saver,
            )
        )
        if (found := self.checkpoints.newest_sound(pytest.fail)) is not None:
            state = torch.load(found.path / DRIVER_STATE, weights_only=True)
            self.loop.load_state_dict(state["loop"])
            self.model.weight = json.loads((found.path / FILE).read_text())
            assert state["trainers"] == {"policy": {"steps": 1}}
            self.saver.saved = found.manifest.step

    def run(self) -> None:
        asyncio.run(self.loop.run())

    def stop_in_step(self, step: int) -> None:
        """Ask for a stop while a step is trained."""
        self.model.on_train = lambda: self.loop.stop() if self.loop.step == step - 1 else None


@pytest.fixture
def whole(tmp_path: Path) -> World:
    world = World(tmp_path / "whole")
    world.run()
    return world


def compared(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("save/")}


def test_checkpoints_are_written_at_their_steps_and_at_the_end(whole):
    assert list(whole.checkpoints.steps()) == [6, 9]
    assert [row for row, metrics in whole.journal.rows if "save/failures" in metrics] == [3, 6, 9]


@pytest.mark.parametrize("step", range(1, 9))
def test_a_stop_finishes_the_step_saves_it_and_a_new_loop_goes_on(whole, tmp_path, step):
    first = World(tmp_path / "stopped")
    first.stop_in_step(step)
    with pytest.raises(StoppedError) as stopped:
        first.run()
    assert stopped.value.saved == step == first.loop.step
    second = World(tmp_path / "stopped")
    second.run()
    assert second.model.weight == whole.model.weight
    rows = [*first.journal.rows, *second.journal.rows]
    assert [(row, compared(metrics)) for row, metrics in rows] == [
        (row, compared(metrics)) for row, metrics in whole.journal.rows
    ]


def test_a_stop_before_the_first_step_saves_nothing(tmp_path):
    world = World(tmp_path)
    world.loop.stop()
    with pytest.raises(StoppedError) as stopped:
        world.run()
    assert stopped.value.saved is None
    assert not world.checkpoints.steps()


def test_a_stop_outside_an_optimizer_step_leaves_the_step(tmp_path):
    """What is taken from the source and not trained on is taken again by the loop that goes on."""
    world = World(tmp_path)
    take = world.loop._parts.source.take

    async def late(*arguments: Any) -> Any:
        batch = await take(*arguments)
        if arguments[0] == 3:
            world.loop.stop()
            await asyncio.sleep(3600)
        return batch

    world.loop._parts.source.take = late
    with pytest.raises(StoppedError) as stopped:
        world.run()
    assert stopped.value.saved == 2
    again, whole = World(tmp_path), World(tmp_path / "whole")
    again.run()
    whole.run()
    assert again.model.weight == whole.model.weight


def test_a_full_disk_is_told_and_training_goes_on(whole, tmp_path):
    world = World(tmp_path / "full")
    saves = iter([None, UserError("the disk is full: cannot write", "free some space"), None])

    def fail() -> None:
        if (error := next(saves)) is not None:
            raise error

    world.model.fails = fail
    world.run()
    assert world.model.weight == whole.model.weight
    assert list(world.checkpoints.steps()) == [3, 9]
    assert world.journal.messages == [
        "the checkpoint of step 6 could not be written: the disk is full: cannot write; "
        "the last one is that of step 3; the run goes on"
    ]
    assert [metrics.get("save/failures") for _, metrics in world.journal.rows][-1] == 1
    assert not [path for path in world.checkpoints.directory.iterdir() if path.name.startswith(".")]


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    world = World(tmp_path / "checkpoints" / "below")
    world.run()
    assert len(world.journal.messages) == 3 and "could not be written: Not a directory; there is none" in str(
        world.journal.messages
    )


def test_skipped_updates_are_counted_and_named(tmp_path):
    world = World(tmp_path, steps=2)
    world.model.not_finite = {1}
    world.run()
    assert [metrics["train/skipped_updates"] for _, metrics in world.journal.rows] == [1, 0]
    assert world.journal.messages == [
        "the gradient of the policy is not finite, first in model.norm.weight; the optimizer step was skipped"
    ]


def test_too_many_skipped_updates_end_the_run(tmp_path):
    world = World(tmp_path, max_skipped_steps=2)

    def again() -> None:
        world.model.not_finite = {1}

    world.model.on_train = again
    with pytest.raises(UserError, match=r"so were the 2 before it \(trainer.max_skipped_steps\)"):
        world.run()
    assert world.loop.step == 2


def test_a_failure_lets_the_checkpoint_be_finished(tmp_path):
    world = World(tmp_path, save_freq=1)

    def fail() -> None:
        if world.loop.step == 4:
            raise RuntimeError("a rank died")

    world.model.on_train = fail
    with pytest.raises(RuntimeError, match="a rank died"):
        world.run()
    assert max(world.checkpoints.steps()) == 4
