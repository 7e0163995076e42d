"""Weights between processes of one machine arrive bit for bit, and every wait ends."""

import multiprocessing
import os
import queue
import signal
import threading
from contextlib import closing

import pytest
import torch

from pentad.weights.checksum import checksum
from pentad.weights.transport.channel import LocalChannel, LocalTransport
from pentad.weights.transport.protocol import TransportError

CPU = torch.device("cpu")


def tensors(count: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"w{i}": torch.randn(7 + i, 5, generator=generator) for i in range(count)}


def _receive(channel: LocalChannel, results, stop_after: int) -> None:
    sums = {}
    try:
        reception = channel.reception(CPU, "child")
        for number, bucket in enumerate(reception.buckets()):
            sums |= {name: checksum(tensor) for name, tensor in bucket}
            if number == stop_after:
                return
        results.put((sums, reception.checksums))
    except TransportError as error:
        results.put(str(error))


def _thread(channel: LocalChannel, stop_after: int = -1):
    results = queue.Queue()
    thread = threading.Thread(target=_receive, args=(channel, results, stop_after))
    thread.start()
    return thread, results


def test_another_process_receives_every_bit():
    with closing(LocalTransport("shared", torch.bfloat16, 2000, receivers=2, deadline_s=60)) as transport:
        channel = transport.open(3)
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=_receive, args=(channel, results, -1), daemon=True)
        process.start()
        children = [(process, results), _thread(channel)]
        sent = channel.send(tensors().items())
        assert sent == {name: checksum(tensor.bfloat16()) for name, tensor in tensors().items()}
        for process, results in children:
            assert results.get(timeout=60) == (sent, sent)
            process.join()


def test_stages_are_taken_in_order():
    with closing(LocalTransport("shared", torch.float32, 2000, stages=2, deadline_s=30)) as transport:
        channel = transport.open(0)
        parts = [list(tensors().items())[:15], list(tensors().items())[15:]]
        threads = [threading.Thread(target=channel.of_stage(stage).send, args=(parts[stage],)) for stage in range(2)]
        for thread in threads:
            thread.start()
        names = [name for bucket in channel.reception(CPU, "here").buckets() for name, _ in bucket]
        assert names == list(tensors())
        for thread in threads:
            thread.join()


def test_a_receiver_that_leaves_is_noticed():
    with closing(LocalTransport("shared", torch.float32, 2000, deadline_s=30)) as transport:
        channel = transport.open(0)
        process, _ = _thread(channel, stop_after=1)
        with pytest.raises(TransportError, match=r"pipeline stage 0: .*(went away|failed).* after w\d+"):
            channel.send(tensors().items())
        process.join()


def test_no_receiver_within_the_deadline():
    with closing(LocalTransport("shared", torch.float32, 2000, deadline_s=0.2)) as transport:
        with pytest.raises(TransportError, match=r"no engine within 0.2 s; meeting the engine"):
            transport.open(0).send(tensors().items())
        with pytest.raises(TransportError, match=r"at engine: no sender within 0.2 s; meeting the trainer"):
            list(transport.open(1).receive())


def test_a_sender_that_fails_tells_the_receiver():
    def broken():
        yield from list(tensors().items())[:30]
        raise ValueError("the gather failed")

    with closing(LocalTransport("shared", torch.float32, 2000, deadline_s=30)) as transport:
        channel = transport.open(0)
        process, results = _thread(channel)
        with pytest.raises(ValueError, match="the gather failed"):
            channel.send(broken())
        assert "the gather failed" in results.get(timeout=30)
        process.join()


def _receive_and_die(channel: LocalChannel, stop_after: int) -> None:
    for number, _ in enumerate(channel.reception(CPU, "child").buckets()):
        if number == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)


def _send_and_die(channel: LocalChannel) -> None:
    def killed():
        yield from list(tensors().items())[:30]
        os.kill(os.getpid(), signal.SIGKILL)

    channel.send(killed())


def test_a_process_that_is_killed_is_noticed_on_the_other_side():
    context = multiprocessing.get_context("spawn")
    with closing(LocalTransport("shared", torch.float32, 2000, deadline_s=30)) as transport:
        channel = transport.open(0)
        process = context.Process(target=_receive_and_die, args=(channel, 1), daemon=True)
        process.start()
        with pytest.raises(TransportError, match=r"the engine went away \(.*after w\d+"):
            channel.send(tensors().items())
        process.join()
        channel = transport.open(1)
        process = context.Process(target=_send_and_die, args=(channel,), daemon=True)
        process.start()
        with pytest.raises(TransportError, match=r"the trainer went away \(.*after w\d+"):
            list(channel.receive())
        process.join()
