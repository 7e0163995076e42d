"""Replaying a decode step as a CUDA graph, so that its hundreds of kernels cost one launch.

Invariant: with or without graphs the same steps run in the same order; a capture that fails is said aloud, once.
"""

import logging
from collections.abc import Callable

import torch

from pentad.engines.hf.sampling import SampleMode

logger = logging.getLogger(__name__)

Step = Callable[[int, int, SampleMode], None]
_Key = tuple[int, int, SampleMode]


class GraphedStep:
    """Runs `step(rows, length, mode)`; on CUDA the first time as it is, later as a graph of that very shape.

    All that the step reads and writes must stay at the same addresses; make a new `GraphedStep` where it does not.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._enabled = device.type == "cuda"
        self._warm: set[_Key] = set()
        self._graphs: dict[_Key, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    def __call__(self, rows: int, length: int, mode: SampleMode) -> None:
        key = (rows, length, mode)
        if self._enabled and key in self._warm and key not in self._graphs:
            self._capture(key)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            self._step(*key)
            self._warm.add(key)

    def _capture(self, key: _Key) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of others (NCCL's watchdog) may use CUDA meanwhile; only this thread's calls are policed.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(*key)
        except RuntimeError as error:
            self._enabled = False
            logger.warning("decoding without CUDA graphs, which is slower: capturing a step failed: %s", error)
            torch.cuda.synchronize()
        else:
            self._graphs[key] = graph
