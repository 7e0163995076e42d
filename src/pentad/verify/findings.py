"""What was compared on a layout, and whether it is near enough.

Invariant: what could not be compared (missing, not a number) counts as infinitely far off, never as equal.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMED = 4


@dataclass(frozen=True)
class Bounds:
    """Largest differences that are put down to rounding.

    Attributes:
        logprobs: of a token's log-prob, or of a critic's value, absolute.
        loss: relative.
        grad_norm: relative.
        gradients: of a parameter, norm of the difference over norm.
        weights: of an element after the last step, absolute, or relative to one that is above 1. A step moves most
            elements by about 0.01.
    """

    logprobs: float
    loss: float
    grad_norm: float
    gradients: float
    weights: float


BOUNDS = {
    # Megatron sums the squares of the norm in float32: on a CPU, over many millions of elements, that is good to 5e-5.
    "fp32": Bounds(logprobs=1e-4, loss=1e-6, grad_norm=1e-4, gradients=1e-4, weights=1e-5),
    # 8 bits of mantissa. A log-prob is a sum over layers of roundings; a step in the other direction is seen.
    "bf16": Bounds(logprobs=0.05, loss=1e-2, grad_norm=1e-2, gradients=2e-2, weights=1e-2),
}


@dataclass
class RankFindings:
    """How one rank differs from the reference. A quantity that a rank does not have is left empty.

    Attributes:
        stage: its pipeline stage.
        exported: checkpoint tensor -> whether the export before the first step is equal to it bit for bit.
        logprobs: sample id -> largest difference of a token (its log-prob, or a critic's value) before the first step.
        losses: step -> relative difference.
        grad_norms: step -> relative difference.
        gradients: parameter -> norm of the difference over norm, in the first step.
        weights: parameter -> largest difference of an element after the last step.
        frozen: parameter that is not trained -> whether it is bit-equal to the checkpoint after the last step.
        trained: ids of the samples that this rank alone answers for in the first step.
        seconds: by phase.
    """

    stage: int
    exported: dict[str, bool] = field(default_factory=dict)
    logprobs: dict[int, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    grad_norms: dict[int, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    frozen: dict[str, bool] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """One quantity of a layout.

    Attributes:
        value: the largest difference.
        where: the sample or parameter with it; empty for what is a single number.
        bound: the largest difference allowed.
        beyond: every sample or parameter that passes the bound, with its difference, the worst first.
    """

    value: float
    where: str
    bound: float
    beyond: tuple[tuple[str, float], ...] = ()

    @property
    def passed(self) -> bool:
        return self.value <= self.bound

    @classmethod
    def of(cls, differences: Mapping[str, float], bound: float) -> "Quantity":
        """The worst of some differences by name; not a number is infinitely bad."""
        ordered = sorted(
            ((name, math.inf if math.isnan(value) else value) for name, value in differences.items()),
            key=lambda item: -item[1],
        )
        if not ordered:
            return cls(math.inf, "nothing was compared", bound)
        where, value = ordered[0]
        return cls(value, where, bound, tuple(item for item in ordered if not item[1] <= bound))


@dataclass(frozen=True)
class Report:
    """The comparison of one layout.

    Attributes:
        subject: the layout, as the user writes it.
        ranks: processes that computed it.
        seconds: that it took.
        quantities: what was compared, by name.
        faults: what is wrong besides quantities: tensors, samples.
        error: why it could not be computed; empty otherwise.
        phases: seconds of rank 0, by phase.
    """

    subject: str
    ranks: int
    seconds: float
    quantities: dict[str, Quantity] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    error: str = ""
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not (self.error or self.faults) and all(item.passed for item in self.quantities.values())

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, one line each, with the worst parameters or samples by name."""
        lines = [self.error] if self.error else []
        lines += self.faults
        for name, item in self.quantities.items():
            if item.passed:
                continue
            named = ", ".join(f"{where} ({value:.1e})" for where, value in item.beyond[:_NAMED] if where)
            more = f", and {len(item.beyond) - _NAMED} more" if len(item.beyond) > _NAMED else ""
            lines.append(
                f"{name}: off by {item.value:.1e}, bound {item.bound:.0e}" + (f": {named}{more}" if named else "")
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values; an infinite difference is written as text, which JSON has no number for."""

        def number(value: float) -> float | str:
            return value if math.isfinite(value) else str(value)

        return {
            "layout": self.subject,
            "ranks": self.ranks,
            "seconds": round(self.seconds, 3),
            "phases": self.phases,
            "passed": self.passed,
            "quantities": {
                name: {
                    "value": number(item.value),
                    "where": item.where,
                    "bound": item.bound,
                    "beyond": [[where, number(value)] for where, value in item.beyond],
                }
                for name, item in self.quantities.items()
            },
            "problems": self.problems,
        }


def judge(
    subject: str,
    seconds: float,
    ranks: Sequence[RankFindings],
    bounds: Bounds,
    *,
    parameters: Iterable[str],
    samples: Iterable[int],
    trained: Iterable[str] | None = None,
    scored: str = "log-probs",
) -> Report:
    """All ranks of a layout together: of each quantity the worst rank counts.

    Args:
        parameters: Hugging Face names that the stages together must have, each of them on one stage.
        samples: ids of the samples that must be trained, each once.
        trained: parameters that must have gradients; None: all.
        scored: what a model gives for tokens.
    """
    quantities = {
        scored: Quantity.of(_worst(named("sample", rank.logprobs) for rank in ranks), bounds.logprobs),
        "loss": Quantity.of(_worst(named("step", rank.losses) for rank in ranks), bounds.loss),
        "gradient norm": Quantity.of(_worst(named("step", rank.grad_norms) for rank in ranks), bounds.grad_norm),
        "gradients": Quantity.of(_worst(rank.gradients for rank in ranks), bounds.gradients),
        "weights": Quantity.of(_worst(rank.weights for rank in ranks), bounds.weights),
    }
    unequal = sorted({name for rank in ranks for name, equal in rank.exported.items() if not equal})
    faults = [f"export: {name} is not bit-equal to the checkpoint" for name in unequal[:_NAMED]]
    changed = sorted({name for rank in ranks for name, equal in rank.frozen.items() if not equal})
    faults += [f"frozen: {name} has changed" for name in changed[:_NAMED]]
    whole = set(parameters)
    faults += _check_owners(
        ranks, {"exported": whole, "gradients": whole if trained is None else set(trained), "weights": whole}
    )
    faults += _check_samples(ranks, samples)
    return Report(subject, len(ranks), seconds, quantities, tuple(faults), phases=ranks[0].seconds)


def _badness(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _worst(findings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for some in findings:
        for name, value in some.items():
            worst[name] = max(worst.get(name, 0.0), value, key=_badness)
    return worst


def named(kind: str, differences: Mapping[int, float]) -> dict[str, float]:
    """Differences by number, as the user reads them: `sample 3`, `step 2`."""
    return {f"{kind} {number}": value for number, value in differences.items()}


def _check_owners(ranks: Sequence[RankFindings], wanted: Mapping[str, set[str]]) -> list[str]:
    """Every tensor is exported, and has a gradient and a weight after the steps, on exactly one stage."""
    faults = []
    for kind, expected in wanted.items():
        stages: dict[str, set[int]] = {}
        for rank in ranks:
            for name in getattr(rank, kind):
                stages.setdefault(name, set()).add(rank.stage)
        what = {"exported": "export", "gradients": "gradients", "weights": "weights"}[kind]
        # Any rank of a stage may be the one that sends, so each must get all of it.
        for rank in ranks:
            held = getattr(rank, kind)
            lacking = sorted(name for name, owners in stages.items() if owners == {rank.stage} and name not in held)
            faults += [f"{what}: a rank of stage {rank.stage} did not get {name}" for name in lacking[:_NAMED]]
        faults += [f"{what}: {name} is missing" for name in sorted(expected - stages.keys())[:_NAMED]]
        faults += [f"{what}: {name} is not in the checkpoint" for name in sorted(stages.keys() - expected)[:_NAMED]]
        twice = [name for name, owners in sorted(stages.items()) if len(owners) > 1][:_NAMED]
        faults += [f"{what}: {name} is on stages {sorted(stages[name])}" for name in twice]
    return faults


def _check_samples(ranks: Sequence[RankFindings], samples: Iterable[int]) -> list[str]:
    """Every sample is trained exactly once."""
    times = Counter(sample for rank in ranks for sample in rank.trained)
    wanted = list(samples)
    faults = [f"samples: sample {sample} was trained {times[sample]} times" for sample in wanted if times[sample] != 1]
    faults += [f"samples: sample {sample} is not in the batch" for sample in times.keys() - set(wanted)]
    return faults
