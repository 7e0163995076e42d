"""The weights of one engine: received by its workers, certified here.

Invariant: `receive` returns only where the workers have shown that they hold the whole of what was sent.
"""

import pickle
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch

from pentad.engines.vllm.adapters import Adapters
from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.core import VllmCore
from pentad.engines.vllm.lora import HotLora
from pentad.engines.vllm.worker import Holding, NotReceived, Publication
from pentad.families.lora import is_adapter
from pentad.weights.proof import WeightMismatchError
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import DirectChannel, TransportError

_RELAY_BYTES = 512 << 20


class WorkerWeights:
    """What the workers of one engine hold.

    Args:
        core: of the engine.
        expected: shape of every tensor of the checkpoint, by its Hugging Face name.
        lora: adapters that come with the weights, and alone after that; None: weights come alone.

    Attributes:
        adapters: those in use; None without `lora`.
        timings: seconds of the last publication, of the slowest worker: `load`, `certify`.
    """

    def __init__(self, core: VllmCore, expected: Mapping[str, Sequence[int]], lora: HotLora | None = None) -> None:
        self.timings: Mapping[str, float] = {}
        self.adapters = lora and Adapters(core, lora)
        self._core = core
        self._expected = {key: tuple(shape) for key, shape in expected.items()}
        self._certificate = Certificate(self._expected, core.name)
        # What was sent when all weights came last, and whether they may have changed since.
        self._sent: dict[str, int] = {}
        self._doubted = False

    def doubt(self) -> None:
        """The workers' memory is given back: what they hold must be shown again."""
        self._doubted = True

    async def receive(self, channel: DirectChannel) -> Mapping[str, int]:
        """Have the workers take a whole set, or adapters to the weights that they hold; on the core's loop.

        Returns:
            checksum of every tensor that came, as they hold it; empty where the channel takes none.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated, misshapen or changed.
            TransportError: a worker could not take them.
            EngineFailedError: the core died.
        """
        order = self.adapters.order() if self.adapters else None
        # What fails may leave weights half written.
        doubted, self._doubted = self._doubted, True
        record = not self._certificate.is_learnt
        publication = Publication(channel, self._expected, record, channel.certify, order, doubted)
        answers = await self._core.workers("receiving weights", "pentad_receive", pickle.dumps(publication))
        holdings: list[Holding] = []
        for answer in map(pickle.loads, answers):
            if isinstance(answer, NotReceived):
                raise TransportError(answer.reason)
            holdings.append(answer)
        self.timings = {key: max(holding.seconds[key] for holding in holdings) for key in holdings[0].seconds}
        held: dict[str, int] = {}
        alone = self.adapters is not None and not record and all(is_adapter(n) for h in holdings for n in h.sent)
        if not alone or doubted:
            try:
                held = self._certify(holdings, channel.certify, alone=alone)
            except WeightMismatchError:
                self._certificate.forget()
                raise
        if self.adapters:
            held |= await self.adapters.use(holdings, channel.certify)
        self._doubted = False
        return held

    def _certify(self, holdings: Sequence[Holding], certify: bool, *, alone: bool) -> dict[str, int]:
        """The checksums of the weights, or nothing where adapters came alone: then the weights are the earlier ones."""
        if alone:
            if certify:
                self._certificate.check([holding.sums for holding in holdings], self._sent)
            return {}
        self._sent = {}
        for holding in holdings:
            sent = {name: shape for name, shape in holding.sent.items() if not (self.adapters and is_adapter(name))}
            repeated = [name for name in holding.repeated if not (self.adapters and is_adapter(name))]
            self._certificate.check_names(sent, repeated)
            self._sent |= {name: holding.checksums[name] for name in sent if name in holding.checksums}
        if not self._certificate.is_learnt:
            self._certificate.learn(
                [holding.slices for holding in holdings if holding.slices is not None],
                [problem for holding in holdings for problem in holding.problems],
            )
        return self._certificate.check([holding.sums for holding in holdings], self._sent) if certify else {}

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
