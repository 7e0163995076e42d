"""Megatron-Core, unmodified, on CPU tensors over gloo.

Invariant: entered at most once a thread, only where there is no CUDA, and never on a machine that has one. After
`enter()`, code written for one CUDA device runs on the CPU with the same results; nothing outside `torch.cuda` and
the tensor constructors changes its meaning. This is the only place in Pentad that replaces functions of others.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import distributed
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_process_lock = threading.Lock()
_process_entered = False
_thread = threading.local()

# Megatron's distributed optimizer groups parameters by the type string that CUDA tensors report.
_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


class CudaOnCpu(TorchFunctionMode):
    """Rewrites `device="cuda"` to the CPU in every call of a torch function."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _TYPE_NAMES.get(args[0].dtype, func(*args))
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if any(_is_cuda(argument) for argument in args):
            args = tuple(_CPU if _is_cuda(argument) else argument for argument in args)
        return func(*args, **(kwargs or {}))


class _Stream:
    """A stand-in for `torch.cuda.Stream` and `Event`: on the CPU everything has already happened."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def record_event(self, event: "_Stream | None" = None) -> "_Stream":
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "_Stream") -> float:
        return 0.0


@contextlib.contextmanager
def _stream_context(stream: object) -> Generator[object]:
    yield stream


def enter() -> None:
    """Make CUDA calls of this thread mean the CPU. Does nothing where it was done before.

    Raises:
        RuntimeError: this machine has CUDA, where pretending otherwise would be wrong.
    """
    global _process_entered
    if getattr(_thread, "mode", None) is not None:
        return
    with _process_lock:
        if not _process_entered:
            if torch.cuda.is_available():
                raise RuntimeError("the CPU platform must not be entered on a machine with CUDA")
            _replace_torch_cuda()
            _replace_compile()
            _replace_uneven_collectives()
            _replace_megatron_rng()
            _process_entered = True
    # A function mode belongs to a thread.
    _thread.mode = CudaOnCpu()
    _thread.mode.__enter__()


def _nothing() -> Callable[..., None]:
    """A function that does nothing; each time another, as torch's compiler has a rule for each when it is imported."""
    return lambda *args, **kwargs: None


def _replace_torch_cuda() -> None:
    replacements: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "set_device": _nothing(),
        "device_count": lambda: 1,
        "synchronize": _nothing(),
        "empty_cache": _nothing(),
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": lambda device=None: _Stream(),
        "default_stream": lambda device=None: _Stream(),
        "stream": _stream_context,
        "set_stream": _nothing(),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "get_device_capability": lambda device=None: (0, 0),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    # Constructors of the legacy typed tensors, which Megatron uses for a few flags.
    for name in ("FloatTensor", "IntTensor", "LongTensor"):
        setattr(torch.cuda, name, getattr(torch, name))


def _replace_compile() -> None:
    """Nothing is compiled: that would need a C compiler on the user's machine, and its import alone takes seconds."""

    def compile(model: Callable[..., Any] | None = None, **options: object) -> Callable[..., Any]:
        return model if model is not None else lambda function: function

    torch.compile = compile


def _replace_uneven_collectives() -> None:
    """Gather and reduce-scatter with parts of different sizes, which NCCL has and gloo has not."""
    all_gather, reduce_scatter = distributed.all_gather, distributed.reduce_scatter

    def uneven(parts: list[torch.Tensor]) -> bool:
        return any(part.shape != parts[0].shape for part in parts)

    def gather(parts: list[torch.Tensor], mine: torch.Tensor, group: Any = None, async_op: bool = False) -> Any:
        if not uneven(parts):
            return all_gather(parts, mine, group=group, async_op=async_op)
        for rank, part in enumerate(parts):
            if rank == distributed.get_rank(group):
                part.copy_(mine)
            distributed.broadcast(part, group=group, group_src=rank)
        return None

    def scatter(
        mine: torch.Tensor,
        parts: list[torch.Tensor],
        op: Any = distributed.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if not uneven(parts):
            return reduce_scatter(mine, parts, op=op, group=group, async_op=async_op)
        for rank, part in enumerate(parts):
            whole = part.clone()
            distributed.all_reduce(whole, op=op, group=group)
            if rank == distributed.get_rank(group):
                mine.copy_(whole)
        return None

    distributed.all_gather, distributed.reduce_scatter = gather, scatter


def _replace_megatron_rng() -> None:
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import token_dispatcher

    def get_state(device: object = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: object = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    def to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    megatron_random._get_cuda_rng_state = get_state
    megatron_random._set_cuda_rng_state = set_state
    token_dispatcher.maybe_move_tensor_to_cpu = to_host
