"""The weights of one engine: received by its workers, certified here.

Invariant: `receive` returns only where the workers have shown that they hold the whole of what was sent.
"""

import pickle
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch

from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.core import VllmCore
from pentad.engines.vllm.worker import Holding, Publication
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import DirectChannel

_RELAY_BYTES = 512 << 20


class WorkerWeights:
    """What the workers of one engine hold.

    Args:
        core: of the engine.
        expected: shape of every tensor of the checkpoint, by its Hugging Face name.

    Attributes:
        timings: seconds of the last publication, of the slowest worker: `load`, `certify`.
    """

    def __init__(self, core: VllmCore, expected: Mapping[str, Sequence[int]]) -> None:
        self.timings: Mapping[str, float] = {}
        self._core = core
        self._expected = {key: tuple(shape) for key, shape in expected.items()}
        self._certificate = Certificate(self._expected, core.name)

    async def receive(self, channel: DirectChannel) -> Mapping[str, int]:
        """Have the workers take a whole set; on the core's loop.

        Returns:
            checksum of every tensor as they hold it; empty where the channel takes none.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated, misshapen or changed.
            EngineFailedError: the core died.
        """
        publication = Publication(channel, self._expected, not self._certificate.is_learnt, channel.certify)
        answers = await self._core.workers("receiving weights", "pentad_receive", pickle.dumps(publication))
        holdings: list[Holding] = [pickle.loads(answer) for answer in answers]
        self.timings = {key: max(holding.seconds[key] for holding in holdings) for key in holdings[0].seconds}
        try:
            return self._certify(holdings, channel.certify)
        except WeightMismatchError:
            self._certificate.forget()
            raise

    def _certify(self, holdings: Sequence[Holding], certify: bool) -> Mapping[str, int]:
        sent: dict[str, int] = {}
        for holding in holdings:
            self._certificate.check_names(holding.sent, holding.repeated)
            sent |= holding.checksums
        if not self._certificate.is_learnt:
            self._certificate.learn(
                [holding.slices for holding in holdings if holding.slices is not None],
                [problem for holding in holdings for problem in holding.problems],
            )
        return self._certificate.check([holding.sums for holding in holdings], sent) if certify else {}

    @contextmanager
    def relay(self, receivers: int) -> Generator[LocalTransport]:
        """A transport from this process to its workers, through host memory."""
        sizes = [torch.Size(shape).numel() * torch.bfloat16.itemsize for shape in self._expected.values()]
        relay = LocalTransport(
            "shared",
            torch.bfloat16,
            max(_RELAY_BYTES, *sizes),
            receivers=receivers,
            deadline_s=self._core.deadline_s,
        )
        try:
            yield relay
        finally:
            relay.close()
