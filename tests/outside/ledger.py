"""An algorithm of a user's: GRPO that writes down which groups each step is trained on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pentad.algorithms.grpo import GRPO
from pentad.algorithms.protocol import Loss
from pentad.config.schema.algorithms import GRPOSettings
from pentad.config.schema.algorithms.base import Role
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


class Ledger:
    """One line a step: its number, its groups, and the oldest weights of each sample. It counts the steps itself."""

    columns = frozenset({"old_logprobs"})

    def __init__(self, file: str) -> None:
        self._file, self._inner, self._steps = Path(file), GRPO(GRPOSettings()), 0

    def admit(self, group: Sequence[Trajectory]) -> bool:
        return self._inner.admit(group)

    def credit(self, batch: Batch) -> Batch:
        self._steps += 1
        groups = batch.per_sequence["group_ids"].tolist()
        line = {"step": self._steps, "groups": groups, "versions": batch.per_sequence["weight_versions"].tolist()}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return self._inner.credit(batch)

    def losses(self) -> Mapping[Role, Loss]:
        return self._inner.losses()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
