"""What is computed for a batch before it is trained on: one forward pass for each column that the algorithm reads.

Invariant: the columns are computed once for the whole batch, before the first optimizer step on it. So the policy that
`old_logprobs` are of is the policy at the beginning of the batch, however many optimizer steps follow.
"""

from collections.abc import Iterable, Mapping

from pentad.config.schema.algorithms.base import COLUMN_ROLES, Role
from pentad.loops.journal import Journal
from pentad.loops.roles import Trainer
from pentad.samples.batch import Batch

# In this order; the phase that is shown.
_PHASES = {"old_logprobs": "log-probs", "ref_logprobs": "reference log-probs", "values": "values"}

SAMPLED_COLUMNS = {"old_logprobs": "rollout_logprobs"}
"""Columns that may be taken from the rollouts, and what they then are."""


async def compute_columns(
    batch: Batch, columns: Iterable[str], roles: Mapping[Role, Trainer], temperature: float, journal: Journal
) -> Batch:
    """The batch with the columns that the algorithm reads.

    Args:
        columns: keys of COLUMN_ROLES.
        temperature: that the batch was sampled at.
    """
    wanted = set(columns)
    for column, phase in _PHASES.items():
        if column in wanted:
            role, progress = roles[COLUMN_ROLES[column]], journal.progress(phase)
            if column == "values":
                found = await role.values(batch, progress)
            else:
                found = await role.logprobs(batch, temperature, progress)
            batch = batch.with_per_token(column, found)
    return batch
