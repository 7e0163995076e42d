"""The buffers that weights travel through: GPU memory shared through CUDA IPC, or host memory.

Invariant: a buffer belongs to the sender and goes with its process, however that ends; a receiver only maps it. It is
used again only after every receiver was done with it.
"""

import mmap
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

# Of the arguments of torch's function that opens a shared tensor: the sender's number of the device.
_DEVICE_ARGUMENT = 6


def device_uuid(device: torch.device) -> str:
    """The UUID of a GPU, by which processes that number their GPUs differently name it."""
    return str(torch.cuda.get_device_properties(device).uuid)


class Memory(Protocol):
    """Where a sender's buffers are."""

    def allocate(self, size: int) -> Tensor:
        """A buffer, uint8 `[size]`."""
        ...

    def share(self, buffer: Tensor) -> Any:
        """What another process needs to open it; made anew for each receiver."""
        ...

    def finish(self) -> None:
        """Wait until what was written can be read by other processes."""
        ...

    def release(self, buffer: Tensor) -> None:
        """All receivers are done with a buffer for good."""
        ...


class OpenBuffer(Protocol):
    """A sender's buffer, opened by a receiver."""

    def read(self, size: int) -> Tensor:
        """Its first bytes as they are now, uint8 `[size]` on the receiver's device."""
        ...

    def finish(self) -> None:
        """Wait until all that was started has read it."""
        ...


class CudaMemory:
    """Buffers on a GPU.

    Args:
        device: of the sender; receivers must use the same GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> Tensor:
        """uint8 `[size]` on the GPU, in an allocation that CUDA IPC can share."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def share(self, buffer: Tensor) -> Any:
        """What `open_cuda` takes."""
        return reduce_tensor(buffer)

    def finish(self) -> None:
        """Wait for the GPU."""
        torch.cuda.current_stream(self._device).synchronize()

    def release(self, buffer: Tensor) -> None:
        """It goes back to torch with its last reference."""


@dataclass
class CudaBuffer:
    """A buffer of the sender's on this process's GPU."""

    data: Tensor

    def read(self, size: int) -> Tensor:
        """The buffer itself."""
        return self.data[:size]

    def finish(self) -> None:
        """Wait for the GPU."""
        torch.cuda.current_stream(self.data.device).synchronize()


def open_cuda(shared: Any, device: torch.device) -> CudaBuffer:
    """Open a buffer that `CudaMemory.share` gave, on this process's number of the same GPU."""
    rebuild, arguments = shared
    arguments = list(arguments)
    arguments[_DEVICE_ARGUMENT] = device.index
    return CudaBuffer(rebuild(*arguments))


class HostMemory:
    """Buffers in host memory that other processes of the same user can map.

    Those that were released are kept for the next publication: the first touch of new memory costs ten times what a
    copy does.
    """

    def __init__(self) -> None:
        self._files: dict[int, tuple[int, int]] = {}
        self._released: list[Tensor] = []

    def allocate(self, size: int) -> Tensor:
        """uint8 `[size]` on the CPU."""
        while self._released:
            buffer = self._released.pop()
            if len(buffer) == size:
                return buffer
            os.close(self._files.pop(buffer.data_ptr())[0])
        descriptor = os.memfd_create("pentad-weights")
        os.ftruncate(descriptor, size)
        buffer = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        self._files[buffer.data_ptr()] = (descriptor, size)
        return buffer

    def share(self, buffer: Tensor) -> Any:
        """What `open_host` takes."""
        descriptor, size = self._files[buffer.data_ptr()]
        return f"/proc/{os.getpid()}/fd/{descriptor}", size

    def finish(self) -> None:
        """Copies from a GPU to such memory have waited already."""

    def release(self, buffer: Tensor) -> None:
        """Keep it."""
        self._released.append(buffer)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            for descriptor, _ in self._files.values():
                os.close(descriptor)


class HostBuffer:
    """A buffer of the sender's in host memory, read onto this process's device.

    Args:
        data: uint8, mapped.
        device: that the tensors are wanted on.
    """

    def __init__(self, data: Tensor, device: torch.device) -> None:
        self._data, self._device = data, device

    def read(self, size: int) -> Tensor:
        """A copy on the device; on the CPU, the buffer itself."""
        return self._data[:size].to(self._device)

    def finish(self) -> None:
        """Copies from host memory have waited already; what reads the copy on the device may go on."""


def open_host(shared: Any, device: torch.device) -> HostBuffer:
    """Map a buffer that `HostMemory.share` gave."""
    path, size = shared
    with open(path, "r+b") as file:
        return HostBuffer(torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8), device)
