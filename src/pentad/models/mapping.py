"""Between the parameters of one rank and the tensors of a Hugging Face checkpoint.

Invariant: every Megatron parameter and every Hugging Face tensor belongs to exactly one rule; a name without a rule
is an error, not a warning. Loading, export and weight synchronisation all go through here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedConfig

from pentad.models.checkpoint import CheckpointReader
from pentad.models.families import Family, family_of
from pentad.models.geometry import Geometry
from pentad.models.rules import Rule

_LAYER_NUMBER = re.compile(r"(?<=decoder\.layers\.)\d+(?=\.)")


class WeightMapping:
    """The mapping of one model on one tensor-parallel group.

    Args:
        config: the Hugging Face configuration.
        group: the tensor-parallel group; None for a single process without torch.distributed.
    """

    def __init__(self, config: PreTrainedConfig, group: ProcessGroup | None) -> None:
        self.geometry = Geometry.of(config)
        self.family: Family = family_of(config)
        self.group = group
        self._rules: dict[str, Rule] = {rule.megatron: rule for rule in self.family.rules(self.geometry.tied)}

    @property
    def rank(self) -> int:
        return self.group.rank() if self.group is not None else 0

    @property
    def size(self) -> int:
        return self.group.size() if self.group is not None else 1

    @cached_property
    def hugging_face_names(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint, in a fixed order."""
        names: list[str] = []
        for rule in self._rules.values():
            layers = range(self.geometry.layers) if "{layer}" in rule.megatron else (0,)
            names += [name.replace("{layer}", str(layer)) for layer in layers for name in rule.hugging_face]
        return tuple(names)

    def rule_of(self, megatron_name: str) -> tuple[Rule, tuple[str, ...]]:
        """The rule of a parameter and its Hugging Face names.

        Args:
            megatron_name: name with the layer's number in the whole model.

        Raises:
            KeyError: no rule knows the name.
        """
        match = _LAYER_NUMBER.search(megatron_name)
        pattern = _LAYER_NUMBER.sub("{layer}", megatron_name)
        rule = self._rules.get(pattern)
        if rule is None:
            raise KeyError(f"parameter {megatron_name} has no rule in family {self.family.model_type}")
        layer = match.group() if match else ""
        return rule, tuple(name.replace("{layer}", layer) for name in rule.hugging_face)

    def parameters(self, model: torch.nn.Module, layer_offset: int = 0) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters of this rank under their names in the whole model.

        Args:
            layer_offset: layers before this stage's first.
        """
        for name, parameter in model.named_parameters():
            yield _LAYER_NUMBER.sub(lambda match: str(int(match.group()) + layer_offset), name), parameter

    @torch.no_grad()
    def load(self, model: torch.nn.Module, reader: CheckpointReader, layer_offset: int = 0) -> None:
        """Fill this rank's parameters from a checkpoint, one tensor at a time.

        Raises:
            UserError: the checkpoint does not hold what the model needs.
        """
        for name, parameter in self.parameters(model, layer_offset):
            rule, sources = self.rule_of(name)
            shard = rule.shard([reader.get(source) for source in sources], self.geometry, self.rank, self.size)
            if shard.shape != parameter.shape:
                raise ValueError(f"{name}: rule gives {list(shard.shape)}, parameter is {list(parameter.shape)}")
            parameter.copy_(shard)

    def export(
        self,
        tensors: Iterator[tuple[str, Tensor]],
        convert: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> Iterator[tuple[str, Tensor]]:
        """Whole Hugging Face tensors from this rank's Megatron tensors: parameters, or anything of their shapes.

        A collective of the tensor-parallel group: all its ranks must consume all of it. All of them get the tensors.

        Args:
            tensors: Megatron names (in the whole model) and this rank's parts.
            convert: applied to each part before it travels.
        """
        for name, tensor in tensors:
            rule, targets = self.rule_of(name)
            shards = self._gather(convert(tensor.detach()))
            yield from zip(targets, rule.join(shards, self.geometry), strict=True)

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        if self.group is None or self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=self.group)
        return parts


def expected_shapes(config: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by transformers' own account of the architecture."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes
