"""Starting Ray, or joining it, without letting a signal tear it.

Invariant: a signal that comes while Ray starts reaches the driver's own handlers, and ends the run once Ray stands and
can be taken down: an exception in the midst of its start aborts the process.
"""

import signal
import threading
from collections.abc import Mapping
from typing import Any

import ray


class RaySession:
    """`ray.init` on a thread of its own.

    In the main thread Ray would take SIGTERM for itself before it starts anything. The thread lives until `end`, as the
    kernel ends Ray's processes with the thread that started them.

    Args:
        options: for `ray.init`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._started = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    def start(self) -> None:
        """Return when Ray stands.

        Raises:
            Exception: whatever `ray.init` raises.
            KeyboardInterrupt: a signal came meanwhile; Ray stands, or its start has failed.
        """
        self._thread.start()
        interrupt: KeyboardInterrupt | None = None
        while not self._started.is_set():
            try:
                self._started.wait()
            except KeyboardInterrupt as error:
                # `StopSignals` sees to it that this does not last for ever.
                interrupt = error
        if interrupt is not None:
            raise interrupt
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let the thread go, once `ray.shutdown` has been called."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        # Ray's processes inherit this. What a closed terminal or Slurm sends to all of a job is the driver's to answer,
        # which needs them for the save that follows. (Ray itself does the same with SIGINT.)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
        try:
            ray.init(**self._options)
        except BaseException as error:
            self._error = error
        self._started.set()
        self._ended.wait()
