"""An engine proves that it holds the trainer's tensors; every fault is refused with the tensor's name."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from fused import SHAPES, FusedModel, checkpoint
from torch import Tensor

from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.places import WeightPlaces
from pentad.engines.vllm.recorder import RecordedSlice
from pentad.engines.vllm.worker import Holding, Publication, WeightKeeper
from pentad.weights.checksum import checksum
from pentad.weights.proof import WeightMismatchError
from pentad.weights.slices import Slice
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import TransportError

CPU = torch.device("cpu")
BUCKET = 700  # bytes: many buckets


class Rig:
    """Workers of one engine on threads, and a trainer that sends to them through shared memory."""

    def __init__(self, models: list[FusedModel]) -> None:
        self.keepers = [WeightKeeper(model, CPU, f"worker {rank}") for rank, model in enumerate(models)]
        self.certificate = Certificate(SHAPES, "engine 0")
        self.transport = LocalTransport("shared", torch.bfloat16, BUCKET, receivers=len(models), deadline_s=20)
        self.version = 0

    def close(self) -> None:
        self.transport.close()

    def synchronize(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
        """One publication; returns what the workers hold."""
        self.version += 1
        channel = self.transport.open(self.version)
        publication = Publication(channel, SHAPES, record=not self.certificate.is_learnt)
        answers: list[Any] = [None] * len(self.keepers)

        def receive(rank: int) -> None:
            try:
                answers[rank] = self.keepers[rank].receive(publication)
            except Exception as error:
                answers[rank] = error

        threads = [threading.Thread(target=receive, args=(rank,)) for rank in range(len(self.keepers))]
        for thread in threads:
            thread.start()
        sent = dict(channel.send(tensors))
        for thread in threads:
            thread.join()
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        held = self.certify(answers)
        assert held == sent
        return held

    def certify(self, holdings: list[Holding]) -> dict[str, int]:
        try:
            for holding in holdings:
                self.certificate.check_names(holding.sent, holding.repeated)
            if not self.certificate.is_learnt:
                problems = [problem for holding in holdings for problem in holding.problems]
                self.certificate.learn([holding.slices for holding in holdings], problems)
            return self.certificate.check([holding.sums for holding in holdings], holdings[0].checksums)
        except WeightMismatchError:
            self.certificate.forget()
            raise


@pytest.fixture(params=[1, 2, 4], ids=lambda ranks: f"t{ranks}")
def rig(request) -> Iterator[Rig]:
    with closing(Rig([FusedModel(rank, request.param) for rank in range(request.param)])) as made:
        yield made


def test_a_right_synchronisation_is_certified_every_time(rig):
    for seed in range(3):
        tensors = checkpoint(seed)
        held = rig.synchronize(tensors.items())
        assert held == {name: checksum(tensor) for name, tensor in tensors.items()}


def test_tensors_are_cast_as_the_engine_holds_them(rig):
    tensors = {name: tensor.float() + 1e-5 for name, tensor in checkpoint().items()}
    held = rig.synchronize(tensors.items())
    assert held["q.weight"] == checksum(tensors["q.weight"].bfloat16())


def _without(name: str) -> Callable[[dict[str, Tensor]], list[tuple[str, Tensor]]]:
    return lambda tensors: [(key, tensor) for key, tensor in tensors.items() if key != name]


def _twice(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [*tensors.items(), ("norm.weight", tensors["norm.weight"] + 1)]


def _misshapen(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return list((tensors | {"o.weight": tensors["o.weight"][:, :-1]}).items())


SENT_WRONG = {
    "a norm is missing": (_without("norm.weight"), "norm.weight did not arrive"),
    "the embedding is missing": (_without("embed.weight"), "embed.weight did not arrive"),
    "an expert is missing": (_without("experts.1.up.weight"), "experts.1.up.weight did not arrive"),
    "sent twice": (_twice, "norm.weight arrived twice"),
    "unknown": (lambda tensors: [*tensors.items(), ("lm_head.weight", torch.ones(2))], "lm_head.weight arrived, but"),
    "misshapen": (_misshapen, r"o.weight arrived as \[8, 23\]"),
}


@pytest.mark.parametrize("rounds", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize("fault", SENT_WRONG)
def test_what_is_sent_wrong_is_refused_by_name(rig, fault, rounds):
    break_it, message = SENT_WRONG[fault]
    for seed in range(rounds):
        rig.synchronize(checkpoint(seed).items())
    with pytest.raises(WeightMismatchError, match=message):
        rig.synchronize(break_it(checkpoint(7)))
    rig.synchronize(checkpoint(8).items())  # and the next one is right again


def _swapped_experts(places: WeightPlaces) -> None:
    names = places._by_name
    first, second = "experts.0.gate.weight", "experts.1.gate.weight"
    names[first], names[second] = names[second], names[first]


def _stale(places: WeightPlaces) -> None:
    del places._by_name["norm.weight"]


def _part(places: WeightPlaces, name: str, row: int, source: int, rows: int) -> RecordedSlice:
    """Some rows of where a tensor goes, from other rows."""
    (record,) = places._by_name[name]
    stride = record.part.strides[0]
    part = Slice(record.part.offset + source * stride, (rows, *record.part.shape[1:]), record.part.strides)
    return RecordedSlice(name, part, record.memory[row : row + rows])


def _wrong_offset(places: WeightPlaces) -> None:
    half = places._by_name["k.weight"][0].part.shape[0] // 2
    changed = [_part(places, "k.weight", 0, half, half), _part(places, "k.weight", half, 0, half)]
    places._by_name["k.weight"] = changed


def _half(places: WeightPlaces) -> None:
    places._by_name["up.weight"] = [_part(places, "up.weight", 0, 0, 1)]


LOADED_WRONG = {
    "experts swapped": (_swapped_experts, r"experts\.\d\.gate\.weight arrived changed"),
    "a replica is stale": (_stale, r"norm\.weight (arrived changed|of worker . differs)"),
    "a slice at the wrong offset": (_wrong_offset, r"k\.weight (arrived changed|of worker . differs)"),
    "half loaded": (_half, r"up\.weight arrived changed"),
}


@pytest.mark.parametrize("fault", LOADED_WRONG)
def test_what_is_loaded_wrong_is_refused_by_name(rig, fault):
    plant, message = LOADED_WRONG[fault]
    rig.synchronize(checkpoint(0).items())
    plant(rig.keepers[-1]._places)
    with pytest.raises(WeightMismatchError, match=message):
        rig.synchronize(checkpoint(1).items())
    rig.synchronize(checkpoint(2).items())


def test_padding_is_written_again_after_its_memory_was_given_away(rig):
    rig.synchronize(checkpoint(0).items())
    for keeper in rig.keepers:
        for parameter in keeper.model.parameters():
            parameter.data.fill_(float("nan"))
    rig.synchronize(checkpoint(1).items())
    for keeper in rig.keepers:
        assert all(bool(parameter.isfinite().all()) for parameter in keeper.model.parameters())


def _skipping(model: FusedModel, name: str, tensor: Tensor) -> None:
    if name != "norm.weight":
        FusedModel.load(model, name, tensor)


def _through_a_copy(model: FusedModel, name: str, tensor: Tensor) -> None:
    FusedModel.load(model, name, tensor.roll(1, 0) if name == "k.weight" else tensor)


FIRST_WRONG = {
    "skipped": (_skipping, "norm was not written"),
    "through a copy": (_through_a_copy, "qkv was written from something"),
}


@pytest.mark.parametrize("fault", FIRST_WRONG)
def test_what_the_loader_does_wrong_at_first_is_refused_by_name(fault):
    load, message = FIRST_WRONG[fault]
    model = FusedModel()
    model.load = lambda name, tensor: load(model, name, tensor)
    with closing(Rig([model])) as rig, pytest.raises(WeightMismatchError, match=message):
        rig.synchronize(checkpoint().items())


def test_a_parameter_of_another_precision_is_refused_by_name():
    model = FusedModel()
    model.norm.data = model.norm.data.float()
    with closing(Rig([model])) as rig, pytest.raises(WeightMismatchError, match=r"norm was written from norm\.weight"):
        rig.synchronize(checkpoint().items())


def test_a_parameter_that_nobody_sends_is_refused_by_name():
    model = FusedModel()
    model.register_parameter("lm_head", torch.nn.Parameter(torch.zeros(4), requires_grad=False))
    with closing(Rig([model])) as rig, pytest.raises(WeightMismatchError, match="lm_head was not written"):
        rig.synchronize(checkpoint().items())


def test_a_tensor_larger_than_a_buffer_is_refused_by_name(rig):
    tensors = checkpoint() | {"q.weight": torch.ones(64, 64)}
    with pytest.raises(TransportError, match=r"q.weight has .* MiB, a buffer"):
        rig.synchronize(tensors.items())


def test_a_bucket_that_is_cut_short_is_refused_by_name(rig, monkeypatch):
    from pentad.weights.transport import memory

    read = memory.HostBuffer.read
    monkeypatch.setattr(memory.HostBuffer, "read", lambda self, size: read(self, size)[:-400])
    with pytest.raises(TransportError, match=r"the bucket ends before \S+ does"):
        rig.synchronize(checkpoint().items())
