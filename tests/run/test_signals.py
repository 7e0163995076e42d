"""Each signal that asks a run to stop does the same, once."""

import signal
from collections.abc import Iterator

import pytest

from pentad.run.signals import StopSignals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does to the handlers of this process is undone."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_further_ones_change_nothing(number: signal.Signals) -> None:
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for other in SIGNALS:
            signal.raise_signal(other)
        assert signals.received == number
    # The message about the first is being written now.
    for other in SIGNALS:
        signal.raise_signal(other)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_do_not_disturb_the_end_of_a_run(number: signal.Signals) -> None:
    with StopSignals() as signals:
        signals.ending(0)
        signal.raise_signal(number)
        assert signals.received is None


def test_handlers_come_back_and_what_was_ignored_stays_so() -> None:
    def mine(*_: object) -> None:
        pass

    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        # As Ray does when it starts.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signals.install()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    with StopSignals():
        pass
    signal.signal(signal.SIGTERM, mine)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != mine
    assert signal.getsignal(signal.SIGTERM) == mine
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
