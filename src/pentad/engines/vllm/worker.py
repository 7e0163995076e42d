"""What Pentad adds to every vLLM worker: taking weights from the trainer and saying what is held afterwards.

Invariant: at the first synchronisation weights enter through the model's own `load_weights`, in place, and every copy
that it makes is recorded; later ones make the same copies. Each time the memory that was recorded is summed up, not
what was sent.

vLLM mixes `PentadWorkerExtension` into its worker class (`worker_extension_cls`); its methods are called through
`collective_rpc`. Arguments and results are pickled here, as vLLM's own messages carry plain data only.
"""

import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pentad.engines.vllm.certificate import HeldSlice
from pentad.engines.vllm.lifetime import die_with_leader
from pentad.engines.vllm.places import WeightPlaces
from pentad.engines.vllm.recorder import CopyRecorder
from pentad.engines.vllm.worker_adapters import AdapterOrder, LoaderNames, TakenAdapters
from pentad.weights.transport.memory import device_uuid
from pentad.weights.transport.protocol import DirectChannel

die_with_leader()


@dataclass(frozen=True)
class Publication:
    """Weights that can be had now.

    Attributes:
        channel: where they come from.
        expected: shape of every tensor of the checkpoint, by name.
        record: find out again where the model puts them; otherwise they go where they went before.
        certify: sum up what is held.
        adapters: that come with the weights, or alone; None where the whole model is trained.
        doubt: sum up the weights also where adapters come alone.
    """

    channel: DirectChannel
    expected: Mapping[str, tuple[int, ...]]
    record: bool
    certify: bool = True
    adapters: AdapterOrder | None = None
    doubt: bool = False


@dataclass(frozen=True)
class NotReceived:
    """Why a worker has not taken a publication.

    It is an answer, and not an error: where one of several workers raises, vLLM leaves the answers of the others in its
    queues, and takes them for those of the next call.
    """

    reason: str


@dataclass(frozen=True)
class Holding:
    """What a worker says after it has taken a publication.

    Attributes:
        sent: shape of every tensor that arrived, by name.
        repeated: names that arrived again.
        checksums: of the tensors as they left the senders.
        problems: parameters that were not written as they must be, each by name.
        slices: what the worker holds; None where that has not changed since it was told.
        sums: int64 `[slices]`; empty where they were not asked for.
        seconds: of receiving and loading, and of summing up.
        adapters: checksums of the adapters' matrices as they arrived, by name.
    """

    sent: Mapping[str, tuple[int, ...]]
    repeated: tuple[str, ...]
    checksums: Mapping[str, int]
    problems: tuple[str, ...]
    slices: tuple[HeldSlice, ...] | None
    sums: np.ndarray
    seconds: Mapping[str, float]
    adapters: Mapping[str, int] = field(default_factory=dict)


@dataclass
class WeightKeeper:
    """The weights of one worker's model.

    Attributes:
        model: vLLM's.
        device: its GPU.
        rank: of the worker; the first one writes adapters for all.
        adapters: that arrived last.
    """

    model: Any
    device: torch.device
    name: str = "engine worker"
    rank: int = 0
    adapters: TakenAdapters | None = None
    _places: WeightPlaces | None = None

    @torch.no_grad()
    def receive(self, publication: Publication) -> Holding:
        """Take all tensors into the model, and sum up what it holds then.

        Raises:
            TransportError: the weights did not come.
        """
        begin = time.perf_counter()
        if publication.record:
            self._places = None
        if self._places:
            self._places.fill()
        recorder = CopyRecorder(self.model.named_parameters()) if self._places is None else None
        self.adapters = taken = publication.adapters and TakenAdapters(publication.adapters)
        reception = publication.channel.reception(self.device, self.name)
        sent: dict[str, tuple[int, ...]] = {}
        repeated: list[str] = []
        for bucket in reception.buckets():
            wanted = []
            for name, tensor in bucket:
                if name in sent:
                    repeated.append(name)
                elif taken and taken.order.shapes.get(name) == tuple(tensor.shape):
                    taken.take(name, tensor)
                elif publication.expected.get(name) == tuple(tensor.shape):
                    wanted.append((name, tensor))
                sent.setdefault(name, tuple(tensor.shape))
            self._load(wanted, recorder)
        if taken and self.rank == 0:
            taken.write()
        loaded = time.perf_counter()
        problems, slices = (), None
        if recorder:
            problems = tuple(recorder.problems())
            slices = tuple(HeldSlice(record.name, record.part) for record in recorder.slices)
            self._places = WeightPlaces(recorder.slices, recorder.fills)
        brought = publication.doubt or any(name in publication.expected for name in sent)
        certify = publication.certify and brought and self._places is not None
        sums = self._places.sums().cpu().numpy() if certify else np.zeros(0, dtype=np.int64)
        adapters = taken.checksums() if taken and publication.certify else {}
        seconds = {"load": loaded - begin, "certify": time.perf_counter() - loaded}
        return Holding(sent, tuple(repeated), reception.checksums, problems, slices, sums, seconds, adapters)

    def _load(self, tensors: list[tuple[str, Tensor]], recorder: CopyRecorder | None) -> None:
        if recorder is None:
            self._places.load(tensors)
            return
        names = LoaderNames(self.model)
        recorder.announce(tensors)
        with recorder:
            self.model.load_weights((names.of(name), tensor) for name, tensor in tensors)


class PentadWorkerExtension:
    """Methods of every worker; their names begin with `pentad_`, as the worker's own must not be hidden."""

    def pentad_describe(self) -> dict[str, Any]:
        """What this worker computes with: plain data."""
        worker: Any = self
        config = worker.model_config
        model = worker.get_model()
        processor = getattr(model, "logits_processor", None)
        return {
            "device": device_uuid(worker.device),
            "head_dtype": str(getattr(processor, "head_dtype", None) or config.dtype).removeprefix("torch."),
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": config.quantization,
            "v2_runner": bool(getattr(worker, "use_v2_model_runner", False)),
        }

    def pentad_receive(self, request: bytes) -> bytes:
        """`WeightKeeper.receive`: a pickled `Publication` gives a pickled `Holding`, or `NotReceived`."""
        try:
            return pickle.dumps(self._pentad_keeper().receive(pickle.loads(request)))
        except Exception as error:
            return pickle.dumps(NotReceived(f"{type(error).__name__}: {error}"))

    def pentad_adapter_problems(self, number: int) -> list[str]:
        """`TakenAdapters.problems` of the adapters that arrived last, which vLLM has taken under that number."""
        keeper = self._pentad_keeper()
        if keeper.adapters is None:
            return ["no adapter has arrived"]
        return keeper.adapters.problems(keeper.model.lora_manager, number)

    def _pentad_keeper(self) -> WeightKeeper:
        worker: Any = self
        keeper = worker.__dict__.get("_pentad_weights")
        if keeper is None:
            keeper = WeightKeeper(worker.get_model(), worker.device, f"engine worker {worker.rank}", worker.rank)
            worker.__dict__["_pentad_weights"] = keeper
        return keeper
