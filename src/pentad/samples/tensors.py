"""What the classes of tensors here share: pickling and checks.

Invariant: a pickled object carries its own values only, never the storage that its tensors are views of.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PicklesAsNumpy:
    """Pickles tensors as numpy arrays.

    A pickled tensor drags its whole storage along, even when it is a short slice; an array takes only its own
    values, and Ray moves arrays without a copy. Tensors come back on the CPU, whatever device they were on.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: _to_numpy(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, _from_numpy(value))


def check_tensor(
    name: str, value: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], length: int | None = None
) -> None:
    """Refuse a tensor that is not one-dimensional, of `dtype`, and of `length` where one is given."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if value.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(map(str, dtypes))}, not {value.dtype}")
    if value.dim() != 1 or (length is not None and len(value) != length):
        wanted = "one-dimensional" if length is None else f"of shape [{length}]"
        raise ValueError(f"{name} must be {wanted}, not of shape {list(value.shape)}")


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {name: _to_numpy(item) for name, item in value.items()}
    return value


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # Arrays out of Ray's object store are read-only, which torch cannot express.
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    if isinstance(value, dict):
        return {name: _from_numpy(item) for name, item in value.items()}
    return value
