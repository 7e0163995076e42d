"""What is computed for a batch before it is trained on: one forward pass for each column that the algorithm reads.

Invariant: the columns are computed once for the whole batch, before the first optimizer step on it. So the policy that
`old_logprobs` are of is the policy at the beginning of the batch, however many optimizer steps follow.
"""

from collections.abc import Hashable, Iterable, Mapping

from torch import Tensor

from pentad.config.schema.algorithms.base import COLUMN_ROLES, Role
from pentad.loops.devices import Work, do_all
from pentad.loops.journal import Journal
from pentad.loops.roles import Progress, Trainer
from pentad.samples.batch import Batch

# In this order; the phase that is shown.
_PHASES = {"old_logprobs": "log-probs", "ref_logprobs": "reference log-probs", "values": "values"}

SAMPLED_COLUMNS = {"old_logprobs": "rollout_logprobs"}
"""Columns that may be taken from the rollouts, and what they then are."""


async def compute_columns(
    batch: Batch,
    columns: Iterable[str],
    roles: Mapping[Role, Trainer],
    temperature: float,
    journal: Journal,
    devices: Mapping[Role, Hashable] | None = None,
) -> Batch:
    """The batch with the columns that the algorithm reads.

    Args:
        columns: keys of COLUMN_ROLES.
        temperature: that the batch was sampled at.
        devices: where each model is; those that are apart compute at the same time.
    """
    wanted = [column for column in _PHASES if column in set(columns)]
    found: dict[str, Tensor] = {}

    def work(column: str) -> Work:
        role = COLUMN_ROLES[column]

        async def do(progress: Progress) -> None:
            if column == "values":
                found[column] = await roles[role].values(batch, progress)
            else:
                found[column] = await roles[role].logprobs(batch, temperature, progress)

        return Work(role, _PHASES[column], do)

    await do_all([work(column) for column in wanted], devices or {}, journal)
    for column in wanted:
        batch = batch.with_per_token(column, found[column])
    return batch
