"""The reward processes of a run.

Invariant: they are checked against every row that they will score.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from pentad.config.schema.run import RunSettings
from pentad.data.rows import Rows
from pentad.loops.scoring import reward_item
from pentad.rewards.pools import RewardPools


def open_rewards(
    settings: RunSettings, scored: Sequence[Rows], evals: Mapping[str, Rows], stack: ExitStack
) -> RewardPools | None:
    """The reward processes; None where nothing is scored.

    Args:
        scored: rows that `reward.*` scores.
        evals: rows of the evaluations.
        stack: closes them.

    Raises:
        UserError: a reward cannot be had, or cannot score a row.
    """
    own = any(one.generates and one.reward is not None for one in settings.data.eval.values())
    if not scored and not own:
        return None
    pools = stack.enter_context(RewardPools(settings, common=bool(scored)))
    for rows in scored:
        if pools.common is not None:
            pools.common.check(reward_item(row, "") for row in rows)
    for name, pool in pools.own.items():
        pool.check(reward_item(row, "") for row in evals[name])
    return pools
