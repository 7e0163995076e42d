"""How old the samples of a batch are.

Invariant: the age of a token is the number of publications between the weights that sampled it and those that are
trained; a response that was going on during a publication has tokens of several ages.
"""

from collections.abc import Sequence

import torch

from pentad.samples.trajectory import Trajectory


def staleness_metrics(trajectories: Sequence[Trajectory], versions: Sequence[int]) -> dict[str, float]:
    """`staleness/*` over the sampled tokens.

    Args:
        versions: of the publications, oldest first; the last one is that of the weights that are trained.
    """
    sampled = torch.cat([trajectory.versions[trajectory.sampled] for trajectory in trajectories])
    if not len(sampled):
        return {}
    published = torch.tensor(list(versions), dtype=torch.int32)
    ages = len(published) - 1 - torch.searchsorted(published, sampled)
    each = [versions_of for t in trajectories if len(versions_of := t.versions[t.sampled])]
    mixed = [bool((one != one[0]).any()) for one in each]
    shares = {f"staleness/share_{age}": float((ages == age).double().mean()) for age in range(len(published))}
    return {
        "staleness/mean": float(ages.double().mean()),
        "staleness/max": float(ages.max()),
        "staleness/mixed_fraction": sum(mixed) / len(mixed),
        **shares,
    }
