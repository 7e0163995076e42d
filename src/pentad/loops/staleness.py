"""How old the samples of a batch are.

Invariant: the age of a token is the number of publications between the weights that sampled it and those that are
trained; a response that was going on during a publication has tokens of several ages.
"""

from collections.abc import Sequence

import torch

from pentad.samples.trajectory import NOT_SAMPLED, Trajectory


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
    mixed = [len(set(t.versions[t.sampled].tolist()) - {NOT_SAMPLED}) > 1 for t in trajectories]
    shares = {f"staleness/share_{age}": float((ages == age).double().mean()) for age in range(len(published))}
    return {
        "staleness/mean": float(ages.double().mean()),
        "staleness/max": float(ages.max()),
        "staleness/mixed_fraction": sum(mixed) / len(mixed),
        **shares,
    }
