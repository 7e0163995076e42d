"""Host memory for a copy of what a rank holds on its GPU, allocated once and filled again and again.

Invariant: `copy` returns when all elements have arrived, and later changes on the device are not seen in the copies.
The memory is page-locked where that can be had, so the device writes to it itself, at the speed of the bus.
"""

import logging
import weakref
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from pentad.errors import UserError

_log = logging.getLogger(__name__)
_GIB = 1 << 30
# cudaHostRegisterPortable: for all devices of the process.
_PORTABLE = 1


class Staging:
    """Room for float32 elements.

    Args:
        elements: how many.
        device: where the tensors to copy are.

    Raises:
        UserError: this machine has not so much memory left.
    """

    def __init__(self, elements: int, device: torch.device) -> None:
        needed, free = 4 * elements, psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"a checkpoint is copied to host memory before it is written: this rank needs {needed / _GIB:.1f} GiB, "
                f"the machine has {free / _GIB:.1f} GiB left",
                "use more data-parallel ranks, which share masters and moments, or machines with more memory",
            )
        self._buffer = torch.empty(elements, dtype=torch.float32)
        if device.type == "cuda" and elements:
            # The device is that of a thread.
            torch.cuda.set_device(device)
            _lock_pages(self._buffer)

    def copy(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of flat float32 tensors, one after the other; they are overwritten by the next call."""
        copies, start = [], 0
        for tensor in tensors:
            copy = self._buffer[start : start + tensor.numel()]
            copies.append(copy.copy_(tensor, non_blocking=True))
            start += tensor.numel()
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        return copies


def _lock_pages(buffer: Tensor) -> None:
    """Lock a tensor's pages in memory. torch's own pinned memory would be rounded up to a power of two of bytes."""
    runtime = torch.cuda.cudart()
    address = buffer.data_ptr()
    if error := int(runtime.cudaHostRegister(address, buffer.nbytes, _PORTABLE)):
        _log.warning(
            "memory for checkpoints could not be page-locked (CUDA error %d): training waits longer for each", error
        )
        return
    weakref.finalize(buffer, runtime.cudaHostUnregister, address)
