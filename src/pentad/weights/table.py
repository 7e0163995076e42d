"""Where each Hugging Face checkpoint tensor lives inside a transformers model, and how it gets there.

Invariant: after `WeightTable.load` returns, every weight of the model has been written exactly once; when it raises,
nothing may be generated from what it leaves behind.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from pentad.weights.checksum import checksum
from pentad.weights.proof import WeightMismatchError


class _KeepViews(TorchFunctionMode):
    """Inside it, `contiguous` and `clone` copy nothing, so that slicing a weight gives views of the weight."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.contiguous, Tensor.clone, torch.clone):
            return args[0]
        return func(*args, **(kwargs or {}))


class WeightTable:
    """The weights of a model by their checkpoint names.

    transformers may hold several checkpoint tensors as one parameter (stacked experts). The table holds views of
    such a parameter, so a tensor is written straight to its place, and on its own.

    Args:
        model: a transformers model; its parameters must stay where they are while the table is in use.

    Raises:
        NotImplementedError: a checkpoint tensor is not simply a part of a parameter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        parameters = {name: parameter.data for name, parameter in model.named_parameters()}
        with _KeepViews():
            self._destinations: dict[str, Tensor] = revert_weight_conversion(model, parameters)
        storages = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
        for name, tensor in self._destinations.items():
            if tensor.untyped_storage().data_ptr() not in storages:
                raise NotImplementedError(f"{name} of {type(model).__name__} is not a view of one of its parameters")
        held = sum(tensor.numel() for tensor in self._destinations.values())
        wanted = sum(parameter.numel() for parameter in parameters.values())
        if held != wanted:
            raise NotImplementedError(
                f"the checkpoint names of {type(model).__name__} cover {held:,} of its {wanted:,} weights"
            )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every checkpoint tensor as a view of the model's own memory."""
        return self._destinations

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every checkpoint tensor. A tied output layer is not listed: it is the embedding."""
        return {name: tuple(tensor.shape) for name, tensor in self._destinations.items()}

    @torch.no_grad()
    def load(self, chunks: Iterable[tuple[str, Tensor]]) -> None:
        """Write every tensor to its place, cast to the model's dtype.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        missing = dict.fromkeys(self._destinations)
        for name, tensor in chunks:
            destination = self._destinations.get(name)
            if destination is None:
                raise WeightMismatchError(f"weight {name} arrived, but the model has no such tensor")
            if name not in missing:
                raise WeightMismatchError(f"weight {name} arrived twice")
            if tensor.shape != destination.shape:
                raise WeightMismatchError(
                    f"weight {name} arrived as {list(tensor.shape)}; the model needs {list(destination.shape)}"
                )
            destination.copy_(tensor)
            del missing[name]
            del tensor  # its memory may be given back while the next is waited for
        if missing:
            names = list(missing)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise WeightMismatchError(f"{len(names)} weights did not arrive: {', '.join(names[:8])}{more}")

    def checksums(self) -> dict[str, int]:
        """Checksum of every checkpoint tensor, as it is held."""
        return {name: checksum(tensor) for name, tensor in self._destinations.items()}
