"""The rollout engines as the driver sees them: one object, however many engines.

Invariant: completions come back in the order of the requests, whichever engine made them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pentad.cluster.cluster import Cluster
from pentad.cluster.engine_actor import EngineActor
from pentad.cluster.gang import Call, Progress
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest


class Engines:
    """All engines of a run.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory.
        tokenizer: an absolute directory or a hub id.
        cluster: where they are placed.
        threads: CPU threads of each engine.
    """

    def __init__(self, settings: RunSettings, directory: Path, tokenizer: str, cluster: Cluster, threads: int) -> None:
        component = cluster.allocation.rollout
        if component is None:
            raise UserError(f"allocation {cluster.allocation} has no rollout engines")
        self._gang = cluster.spawn(EngineActor, "rollout engine", component, settings.trainer.deadline_s)
        self._sleeps = settings.rollout.sleep
        self._arguments = (
            directory,
            tokenizer,
            settings.rollout,
            settings.experiment.seed,
            threads,
        )
        self.dtype = torch.float32

    def build(self) -> Call:
        """Have the engines made, without weights, once their processes run; `built` takes the answers."""
        return self._gang.start("build", *self._arguments)

    def built(self, answers: list[Any]) -> None:
        """Take the answers of `build`."""
        self.dtype = answers[0]

    def load_weights(self, refs: Sequence[Any], version: int) -> None:
        """Give every engine all weights, checked."""
        self._gang.call("load_weights", refs, version, phase="weight synchronisation")

    def generate(self, requests: Sequence[GenerateRequest], progress: Progress) -> list[Completion]:
        """Complete all requests."""
        engines = len(self._gang)
        # Dealt out in turn, so that groups of long prompts do not meet on one engine.
        shares = [(list(requests[rank::engines]),) for rank in range(engines)]
        answers = self._gang.finish(self._gang.start_each("generate", shares), "rollout", progress)
        results: list[Completion | None] = [None] * len(requests)
        for rank, answer in enumerate(answers):
            results[rank::engines] = answer
        return [completion for completion in results if completion is not None]

    def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[list[Tensor]]:
        """What each engine thinks of given tokens: float32 `[L]` for each sequence."""
        return self._gang.call("logprobs", sequences, temperature, phase="probing the engines")

    def rest(self) -> None:
        """Release the engines' memory for the trainer, where `rollout.sleep` asks for it."""
        if self._sleeps:
            self._gang.call("sleep", phase="releasing the engines' memory")

    def resume(self) -> None:
        """Take the memory back."""
        if self._sleeps:
            self._gang.call("wake", phase="waking the engines")
