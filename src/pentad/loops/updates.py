"""The metrics of a step's optimizer steps.

Invariant: a metric means one thing: what Pentad measures of the critic has a name of its own; what the losses report
keeps the name that they give it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from pentad.config.schema.algorithms.base import Role

# What Pentad measures of the model that is trained -> its name for a critic.
_OF_CRITIC = {
    "train/loss": "critic/loss",
    "train/grad_norm": "critic/grad_norm",
    "train/grad_zeros": "critic/grad_zeros",
    "train/lr": "critic/lr",
    "train/skipped_updates": "critic/skipped_updates",
    "moe/load_max": "critic/load_max",
    "moe/load_min": "critic/load_min",
}


def join_updates(role: Role, updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One value of each metric: a mean over the optimizer steps, the last learning rate, the sum of skipped ones.

    Args:
        updates: metrics of each optimizer step of the model in that role.
    """
    names = dict.fromkeys(name for update in updates for name in update)
    joined = {name: fmean(update[name] for update in updates if name in update) for name in names}
    if updates:
        joined["train/lr"] = updates[-1]["train/lr"]
        joined["train/skipped_updates"] = sum(update.get("train/skipped_updates", 0) for update in updates)
    return joined if role == "policy" else {_OF_CRITIC.get(name, name): value for name, value in joined.items()}
