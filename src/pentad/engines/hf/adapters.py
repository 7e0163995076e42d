"""The weights of an engine whose trainer trains adapters: the base as it arrived, and the adapters merged into it.

Invariant: the model computes with `W + s B A`, computed in float32 from the base and the newest adapters and rounded
once to the model's dtype; rounding does not add up over publications, as each starts from the base again.

Merging covers dense layers, stacked experts and routers alike, and generation costs what it costs without adapters. In
float32 the log-probs are the trainer's to rounding. In bfloat16 an adapted weight is rounded where the trainer's sum is
not: an error of the size of bfloat16's own.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pentad.config.schema.lora import LoraSettings
from pentad.families.lora import A, B, Targets, is_adapter
from pentad.weights.adapters import adapter_shapes, merge
from pentad.weights.checksum import checksum
from pentad.weights.mapping import WeightMapping
from pentad.weights.proof import WeightMismatchError
from pentad.weights.table import WeightTable


class AdaptedWeights:
    """Takes all weights first, and after that adapters alone, or all again.

    Args:
        model: a transformers model, whose parameters stay where they are.
        settings: of the adapters.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraSettings) -> None:
        self._table = WeightTable(model)
        self._scale, self._device = settings.scale, model.device
        mapping = WeightMapping(model.config, None, Targets(settings.targets, settings.exclude))
        shapes = adapter_shapes(model.config, mapping, settings.rank)
        self._modules = mapping.adapted_modules()
        self._adapters = {
            name: torch.zeros(shape, dtype=model.dtype, device=self._device) for name, shape in shapes.items()
        }
        # Of adapted weights always; of the others only while the model's own memory is given back.
        self._base: dict[str, Tensor] = {}
        self._released = False

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        """Take base and adapters, or adapters to the base that is held.

        Returns:
            the checksum of each tensor that came, as it is held.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        arrived: set[str] = set()
        rest = self._take_adapters(tensors, arrived)
        sums: dict[str, int] = {}
        first = next(rest, None)
        if first is not None or not self._base:
            self._base = {}
            self._table.load(rest if first is None else chain([first], rest))
            sums = self._table.checksums()
            held = self._table.tensors
            self._base = {f"{module}.weight": held[f"{module}.weight"].clone() for module in self._modules}
        missing = sorted(self._adapters.keys() - arrived)
        if missing:
            raise WeightMismatchError(f"{len(missing)} matrices of adapters did not arrive: {', '.join(missing[:8])}")
        self._merge()
        return {**sums, **{name: checksum(tensor) for name, tensor in self._adapters.items()}}

    def release(self) -> None:
        """Keep the base in the machine's memory: the model's own is about to be given back."""
        if self._base:
            self._base = {
                name: self._base.get(name, held).to("cpu", copy=True) for name, held in self._table.tensors.items()
            }
            self._released = True

    @torch.no_grad()
    def restore(self) -> None:
        """Fill the model's memory, taken again, from what was kept."""
        if not self._released:
            return
        for name, held in self._table.tensors.items():
            held.copy_(self._base[name])
        self._base = {f"{module}.weight": self._base[f"{module}.weight"].to(self._device) for module in self._modules}
        self._released = False

    def _take_adapters(self, tensors: Iterable[tuple[str, Tensor]], arrived: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Keep adapters; yield everything else."""
        for name, tensor in tensors:
            if not is_adapter(name):
                yield name, tensor
                continue
            own = self._adapters.get(name)
            if own is None or own.shape != tensor.shape:
                raise WeightMismatchError(f"{name} arrived as {list(tensor.shape)}; no adapter here has it so")
            if name in arrived:
                raise WeightMismatchError(f"{name} arrived twice")
            own.copy_(tensor)
            arrived.add(name)

    @torch.no_grad()
    def _merge(self) -> None:
        held = self._table.tensors
        for module in self._modules:
            base, name = self._base[f"{module}.weight"], f"{module}.weight"
            held[name].copy_(merge(base, self._adapters[module + A], self._adapters[module + B], self._scale))
