"""Weights from the trainer to the engines, with proof.

Invariant: engines never generate from weights whose arrival was not proven. What arrived is proven by checksums at
every publication. That engines compute with it what the trainer computes is probed at the first. Later the log-probs of
every step show it (`loops.drift`); where the algorithm does not ask the trainer for these, each publication is probed.
"""

from pentad.loops.journal import Journal
from pentad.loops.probe import Probe
from pentad.loops.roles import Policy


class Publication:
    """Keeps the engines at the trainer's version.

    Args:
        policy: whose weights are published.
        probe: compares policy and engines.
        always: probe at every publication, not at the first only.
    """

    def __init__(self, policy: Policy, probe: Probe, journal: Journal, *, always: bool) -> None:
        self._policy, self._probe, self._journal, self._always = policy, probe, journal, always
        self._published: int | None = None

    async def bring(self, version: int, *, asleep: bool = False) -> None:
        """Bring the engines to the trainer's weights, which are of this version; nothing where they have them.

        Args:
            asleep: the engines may have released what they had.

        Raises:
            SyncError: a tensor did not arrive as it was sent, or engines and trainer compute differently.
        """
        if self._published == version and not asleep:
            return
        with self._journal.timed("sync"):
            self._journal.progress("sync")
            await self._policy.publish(version)
            if self._published is None or self._always:
                await self._probe.run()
        self._published = version
