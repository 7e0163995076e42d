"""From the sums of slices to proof that an engine holds the trainer's tensors, whole and in the right places.

Invariant: `check` returns only where every expected tensor was sent once, is held once (or as replicas that are all
equal) by the workers, and sums up to what the trainer's tensor sums up to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pentad.weights.proof import WeightMismatchError
from pentad.weights.slice_sums import unsigned
from pentad.weights.slices import Slice, tiling_problem

_SHOWN = 5


@dataclass(frozen=True)
class HeldSlice:
    """A part of the tensor `name` that a worker holds."""

    name: str
    part: Slice


class Certificate:
    """What the workers of one engine hold, and where.

    Args:
        expected: shape of every tensor of the checkpoint, by its name.
        engine: how the engine is called in errors.
    """

    def __init__(self, expected: Mapping[str, Sequence[int]], engine: str) -> None:
        self.engine = engine
        self._expected = {name: tuple(shape) for name, shape in expected.items()}
        self._held: list[Sequence[HeldSlice]] = []

    @property
    def is_learnt(self) -> bool:
        """Whether `learn` has been called, and did not raise."""
        return bool(self._held)

    def forget(self) -> None:
        """What the workers hold is no longer known."""
        self._held = []

    def learn(self, held: Sequence[Sequence[HeldSlice]], problems: Iterable[str] = ()) -> None:
        """Take what each worker holds.

        Args:
            problems: what the workers found wrong with their parameters, each by name.

        Raises:
            WeightMismatchError: a tensor is not held by the workers, in part or as a whole, or overlaps itself.
        """
        parts: dict[str, set[Slice]] = {name: set() for name in self._expected}
        problems = list(problems)
        for slices in held:
            for slice_ in slices:
                if slice_.name in parts:
                    parts[slice_.name].add(slice_.part)
                else:
                    problems.append(f"{slice_.name} is held, but the model has no such tensor")
        for name, shape in self._expected.items():
            problem = tiling_problem(int(np.prod(shape, dtype=np.int64)), list(parts[name]))
            if problem:
                problems.append(f"{name}: {problem}")
        self.refuse(problems)
        self._held = list(held)

    def check_names(self, sent: Mapping[str, Sequence[int]], repeated: Iterable[str] = ()) -> None:
        """Compare what arrived with what the model needs.

        Args:
            sent: shape of every tensor that arrived, by name.
            repeated: names that arrived more than once.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        problems = [f"{name} arrived twice" for name in repeated]
        problems += [f"{name} did not arrive" for name in self._expected if name not in sent]
        for name, shape in sent.items():
            wanted = self._expected.get(name)
            if wanted is None:
                problems.append(f"{name} arrived, but the model has no such tensor")
            elif wanted != tuple(shape):
                problems.append(f"{name} arrived as {list(shape)}; the model needs {list(wanted)}")
        self.refuse(problems)

    def check(self, sums: Sequence[np.ndarray], sent: Mapping[str, int]) -> dict[str, int]:
        """Compare what the workers hold with what the trainer sent.

        Args:
            sums: int64 `[slices]` of each worker, in the order of `learn`.
            sent: checksum of every tensor as the trainer holds it.

        Returns:
            checksum of every tensor as the workers hold it.

        Raises:
            WeightMismatchError: replicas differ, or a tensor is not the trainer's.
        """
        seen: dict[tuple[str, Slice], int] = {}
        total = dict.fromkeys(self._expected, 0)
        problems: list[str] = []
        for worker, (slices, values) in enumerate(zip(self._held, sums, strict=True)):
            for slice_, value in zip(slices, values.tolist(), strict=True):
                key = (slice_.name, slice_.part)
                if key not in seen:
                    seen[key] = value
                    total[slice_.name] += value
                elif seen[key] != value:
                    problems.append(f"{slice_.name} of worker {worker} differs from another worker's replica")
        held = {name: unsigned(value) for name, value in total.items()}
        unequal = [name for name in held if held[name] != sent.get(name)]
        doubted = {problem.split(" ", 1)[0] for problem in problems}
        problems += [f"{name} arrived changed" for name in unequal if name not in doubted]
        self.refuse(problems)
        return held

    def refuse(self, problems: Iterable[str]) -> None:
        """
        Raises:
            WeightMismatchError: there is a problem; it names the first ones.
        """
        found = list(problems)
        if found:
            more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise WeightMismatchError(
                f"weight synchronisation to {self.engine} failed: {', '.join(found[:_SHOWN])}{more}"
            )
