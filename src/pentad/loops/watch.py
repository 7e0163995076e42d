"""Says when nothing is learnt: each sign once, when the mean of the last steps shows it.

Invariant: it reads the metrics of steps and changes nothing. A sign is not told before there are as many steps as it is
a mean over, nor where one of these steps has no such metric. No torch.

The thresholds are those of `SIGNS`; docs/troubleshooting.md lists them.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.config.schema.run import RunSettings

Metrics = Mapping[str, float]

# Shares that count as nearly all, most, half, and as more clipping than is healthy.
NEARLY_ALL, MOST, HALF, CLIPPED = 0.95, 0.9, 0.5, 0.3
_UNTRAINED = "untrained"
# The metrics that are read.
_READ = (
    "data/groups_dropped",
    "data/samples_generated",
    "reward/equal_groups",
    "reward/failures",
    "reward/mean",
    "reward/std",
    "rollout/truncated_fraction",
    "train/clip_fraction",
    "train/entropy",
    "train/grad_norm",
    "train/lr",
    "train/skipped_updates",
)
# Groups a step with different rewards, below which there is nothing to learn from.
TEACHING_GROUPS = 0.5
# Nats per token below which a policy samples always the same.
NO_ENTROPY = 0.01
# A gradient norm below is rounding.
NO_GRADIENT = 1e-9


@dataclass
class Seen:
    """What is known of the run besides the metrics of a step.

    Attributes:
        lowest: mean reward of a step so far; None before there is one.
        highest: the same.
    """

    settings: RunSettings
    lowest: float | None = None
    highest: float | None = None

    @property
    def compares_in_group(self) -> bool:
        """Whether samples of equal rewards of one prompt have no advantage."""
        algorithm = self.settings.algorithm
        return isinstance(algorithm, PolicyGradientSettings) and algorithm.compares_in_group

    def is_ceiling(self, reward: float) -> bool:
        """Whether a mean reward has risen to about the highest that there was."""
        if self.lowest is None or self.highest is None or self.highest <= self.lowest:
            return False
        return reward >= self.lowest + NEARLY_ALL * (self.highest - self.lowest)


@dataclass(frozen=True)
class Sign:
    """One way in which nothing is learnt.

    Attributes:
        name: in warnings.jsonl.
        steps: over which the metrics are averaged.
        holds: whether their means show it.
        text: what it means, and what to change.
    """

    name: str
    steps: int
    holds: Callable[[Metrics, Seen], bool]
    text: Callable[[Metrics, Seen], str]


class LearningWatch:
    """Looks for the signs in the metrics of each step.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._seen = Seen(settings)
        # What is read of the last steps.
        self._last: deque[dict[str, float]] = deque(maxlen=max(sign.steps for sign in SIGNS))
        self._told: set[str] = set()

    def see(self, step: int, metrics: Metrics) -> list[tuple[str, str]]:
        """Take in the metrics of a step that was trained.

        Returns:
            name and text of each sign that is to be told now.
        """
        seen, new = self._seen, []
        untrained = "train/lr" not in metrics and step > seen.settings.critic_warmup
        self._last.append({name: metrics[name] for name in _READ if name in metrics} | {_UNTRAINED: float(untrained)})
        if (reward := metrics.get("reward/mean")) is not None:
            seen.lowest = reward if seen.lowest is None else min(seen.lowest, reward)
            seen.highest = reward if seen.highest is None else max(seen.highest, reward)
        for sign in SIGNS:
            if sign.name in self._told or len(self._last) < sign.steps:
                continue
            means = self._means(sign.steps)
            if sign.holds(means, seen):
                self._told.add(sign.name)
                new.append((sign.name, f"over the last {sign.steps} steps, {sign.text(means, seen)}"))
        return new

    def _means(self, steps: int) -> dict[str, float]:
        """Of the metrics that each of the last steps has."""
        rows = list(self._last)[-steps:]
        names = [name for name in rows[0] if all(name in row for row in rows)]
        return {name: sum(row[name] for row in rows) / steps for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What is known of the steps so far."""
        seen = self._seen
        return {
            "last": [dict(row) for row in self._last],
            "told": sorted(self._told),
            "lowest": seen.lowest,
            "highest": seen.highest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._last.extend(state["last"])
        self._told = set(state["told"])
        self._seen.lowest, self._seen.highest = state["lowest"], state["highest"]


def _failing(metrics: Metrics, seen: Seen) -> bool:
    generated = metrics.get("data/samples_generated", 0)
    return generated > 0 and metrics.get("reward/failures", 0) >= HALF * generated


def _failing_text(metrics: Metrics, seen: Seen) -> str:
    failed, generated = metrics["reward/failures"], metrics["data/samples_generated"]
    way = "left out of training" if seen.settings.reward.on_failure == "drop" else "trained on as reward 0"
    return (
        f"{failed:.0f} of {generated:.0f} reward calls failed, and their samples are {way}; the first failure of each "
        "kind is told above: `pentad reward try` shows the reward on rows of the data"
    )


def _truncated(metrics: Metrics, seen: Seen) -> bool:
    return metrics.get("rollout/truncated_fraction", 0) >= MOST


def _truncated_text(metrics: Metrics, seen: Seen) -> str:
    return (
        f"{metrics['rollout/truncated_fraction']:.0%} of the responses are cut off at rollout.max_response_tokens = "
        f"{seen.settings.rollout.max_response_tokens}, most before an answer; raise it, or look in samples.jsonl "
        "whether the model ever ends a response (chat template, rollout.stop)"
    )


def _untrained(metrics: Metrics, seen: Seen) -> bool:
    return metrics[_UNTRAINED] == 1


def _untrained_text(metrics: Metrics, seen: Seen) -> str:
    algorithm = seen.settings.algorithm
    filtered = isinstance(algorithm, PolicyGradientSettings) and algorithm.overlong_filter
    if filtered and metrics.get("rollout/truncated_fraction", 0) > 0:
        why = (
            "algorithm.overlong_filter leaves out what the token limit ends; raise rollout.max_response_tokens or turn "
            "the filter off"
        )
    elif metrics.get("reward/failures", 0) > 0:
        why = "their rewards failed; `pentad reward try` shows the reward on rows of the data"
    else:
        why = "no token of them is in the loss mask; `pentad data show` shows which tokens are trained on"
    return f"no sample was trained on: {why}"


def _equal(metrics: Metrics, seen: Seen) -> bool:
    if "reward/std" not in metrics:
        return False
    if metrics["reward/std"] == 0:
        return True
    if not seen.compares_in_group or "reward/equal_groups" not in metrics:
        return False
    # A small share of a large batch is much to learn from, as where one answer in a hundred is right.
    groups = metrics.get("data/samples_generated", 0) / seen.settings.rollout.n
    return (1 - metrics["reward/equal_groups"]) * groups < TEACHING_GROUPS


def _equal_text(metrics: Metrics, seen: Seen) -> str:
    reward, spread = metrics["reward/mean"], metrics["reward/std"]
    if seen.is_ceiling(reward):
        return (
            f"the reward is at its ceiling: {reward:.3g}, with hardly a difference between responses to one prompt, so "
            "there is nothing left to learn from; end the run, or take harder prompts"
        )
    if spread == 0 and reward <= 0:
        return (
            f"no response is rewarded: each has the reward {reward:.3g}, so there is nothing to learn from; look at "
            "samples.jsonl and `pentad reward try`: is the ground truth the right column "
            "(data.ground_truth_column), is the answer in the form that the reward reads, are the prompts too hard?"
        )
    if spread == 0:
        return (
            f"every response has the same reward, {reward:.3g}, so there is nothing to learn from; look at "
            "`pentad reward try`: does the reward read the response? Or every prompt is solved: take harder ones"
        )
    hint = "raise rollout.n, or take prompts that are sometimes solved"
    if seen.settings.rollout.temperature < 0.5:
        hint = (
            f"raise rollout.temperature (now {seen.settings.rollout.temperature:g}), at which responses hardly differ"
        )
    share = metrics.get("reward/equal_groups", 1.0)
    return f"in {share:.0%} of the groups all rewards are equal, so there is hardly anything to learn from; {hint}"


def _collapsed(metrics: Metrics, seen: Seen) -> bool:
    if metrics.get("reward/equal_groups", 0) < 0.8 or seen.is_ceiling(metrics["reward/mean"]):
        return False
    return metrics.get("train/entropy", 1.0) < NO_ENTROPY


def _collapsed_text(metrics: Metrics, seen: Seen) -> str:
    return (
        f"the policy has hardly any entropy left ({metrics['train/entropy']:.2g} nats a token): it answers always the "
        f"same; raise rollout.temperature (now {seen.settings.rollout.temperature:g}) or algorithm.entropy_coef, lower "
        "trainer.optimizer.lr, or go on from an earlier checkpoint"
    )


def _dropped(metrics: Metrics, seen: Seen) -> bool:
    dropped = metrics.get("data/groups_dropped", 0)
    return dropped > 0 and dropped >= MOST * (dropped + seen.settings.trainer.prompts_per_step)


def _dropped_text(metrics: Metrics, seen: Seen) -> str:
    dropped = metrics["data/groups_dropped"]
    whole = dropped + seen.settings.trainer.prompts_per_step
    return (
        f"{dropped:.0f} of {whole:.0f} groups were sampled and left out, as all their rewards are equal; take prompts "
        "that are sometimes solved, or raise rollout.n"
    )


def _no_rate(metrics: Metrics, seen: Seen) -> bool:
    return metrics.get("train/lr", 1.0) == 0


def _no_rate_text(metrics: Metrics, seen: Seen) -> str:
    set_to = seen.settings.trainer.optimizer.lr
    where = "trainer.optimizer.lr" if set_to == 0 else "trainer.schedule and trainer.total_steps"
    return f"the learning rate is 0, so no step changes the weights; look at {where}"


def _skipped(metrics: Metrics, seen: Seen) -> bool:
    return metrics.get("train/skipped_updates", 0) >= seen.settings.algorithm.updates


def _skipped_text(metrics: Metrics, seen: Seen) -> str:
    return (
        "every optimizer step is skipped, as no gradient is finite; look at the size of the rewards "
        "(algorithm.reward_clip), lower trainer.optimizer.lr, or go on from an earlier checkpoint"
    )


def _no_gradient(metrics: Metrics, seen: Seen) -> bool:
    # Of equal rewards the gradient is 0, and that is told already.
    return metrics.get("train/grad_norm", 1.0) < NO_GRADIENT and not _equal(metrics, seen)


def _no_gradient_text(metrics: Metrics, seen: Seen) -> str:
    return (
        "the gradient is 0, though rewards or examples differ; look at the bounds of clipping (algorithm.clip_low, "
        "clip_high), at algorithm.correction, and at what is frozen"
    )


def _clipped(metrics: Metrics, seen: Seen) -> bool:
    return metrics.get("train/clip_fraction", 0) >= CLIPPED


def _clipped_text(metrics: Metrics, seen: Seen) -> str:
    return (
        f"{metrics['train/clip_fraction']:.0%} of the tokens are clipped, so the policy moves too far in a step; lower "
        "trainer.optimizer.lr, algorithm.optimizer_steps or trainer.max_staleness, or widen algorithm.clip_low and "
        "algorithm.clip_high"
    )


SIGNS: tuple[Sign, ...] = (
    Sign("failing rewards", 3, _failing, _failing_text),
    Sign("truncated", 5, _truncated, _truncated_text),
    Sign("nothing trained", 3, _untrained, _untrained_text),
    Sign("equal rewards", 5, _equal, _equal_text),
    Sign("no entropy", 5, _collapsed, _collapsed_text),
    Sign("dropped groups", 5, _dropped, _dropped_text),
    Sign("learning rate", 3, _no_rate, _no_rate_text),
    Sign("skipped updates", 3, _skipped, _skipped_text),
    Sign("no gradient", 3, _no_gradient, _no_gradient_text),
    Sign("clipped", 5, _clipped, _clipped_text),
)
