"""Between the parameters of one rank and the tensors of a Hugging Face checkpoint.

Invariant: every Megatron parameter and every Hugging Face tensor belongs to exactly one rule; a name without a rule
is an error, not a warning. Loading, export and weight synchronisation all go through here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedConfig

from pentad.families.blocks import model_rules
from pentad.families.catalog import family_named
from pentad.families.hf_config import facts_from_config
from pentad.families.lora import AdapterRules, Targets, adaptable_modules, base_of, beside
from pentad.families.rules import Experts, Replicated, Rule, Stacked
from pentad.weights.block_files import WEIGHT, BlockReader
from pentad.weights.blocks import Block, Shape, blocks_of
from pentad.weights.hf_files import TensorSource
from pentad.weights.placement import Part, Place
from pentad.weights.sharding import join, shard

# Megatron takes seconds to import, and who only asks for shapes has no use for it.
if TYPE_CHECKING:
    from megatron.core.process_groups_config import ProcessGroupCollection

Group = ProcessGroup | Part
_LAYER_NUMBER = re.compile(r"(?<=decoder\.layers\.)\d+(?=\.)")


class WeightMapping:
    """The mapping of one model under one layout.

    Args:
        config: the Hugging Face configuration.
        groups: Megatron's process groups; None for a single process without torch.distributed; or the place of a rank
            without processes, for which only names, rules and blocks are asked.
        targets: which modules have an adapter; None: no module has.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        groups: "ProcessGroupCollection | Place | None",
        targets: Targets | None = None,
    ) -> None:
        self.facts = facts_from_config(config.to_dict())
        self._experts = self.facts.num_experts or 0
        self._tp: Group | None = groups.tp if groups is not None else None
        self._ep: Group | None = groups.ep if groups is not None and self._experts else None
        self._expert_tp: Group | None = groups.expt_tp if groups is not None and self._experts else None
        family = family_named(self.facts.family)
        self._model_rules = _by_name(model_rules(self.facts.tied, self.facts.value_head))
        self._layer_rules = {has_experts: _by_name(family.layer_rules(has_experts)) for has_experts in (False, True)}
        self._targets = targets
        self._adapters: dict[str, AdapterRules | None] = {}
        if targets is not None:
            targets.check(adaptable_modules(self.facts))

    def rule_of(self, megatron_name: str) -> tuple[Rule, tuple[str, ...]]:
        """The rule of a parameter and its Hugging Face names, in which `{expert}` may still stand.

        Args:
            megatron_name: name with the layer's number in the whole model.

        Raises:
            KeyError: no rule knows the name.
        """
        adapter = base_of(megatron_name)
        if adapter is not None:
            rules = self.adapter_of(adapter[0])
            if rules is None:
                raise KeyError(f"parameter {megatron_name} belongs to an adapter that there is not")
            rule = rules.a if adapter[1] == "A" else rules.b
            return rule, rule.hugging_face
        match = _LAYER_NUMBER.search(megatron_name)
        layer = match.group() if match else ""
        rules = self._layer_rules[self.facts.has_experts(int(layer))] if layer else self._model_rules
        rule = rules.get(_LAYER_NUMBER.sub("{layer}", megatron_name))
        if rule is None:
            raise KeyError(f"parameter {megatron_name} has no rule in family {self.facts.family}")
        return rule, tuple(name.replace("{layer}", layer) for name in rule.hugging_face)

    def names_of(self, layers: range, *, embedding: bool, head: bool) -> Iterator[str]:
        """The names of the parameters of consecutive layers, in the whole model.

        Args:
            embedding: whether the input embedding is in front of them.
            head: whether the final norm and the output layer follow them. Of a tied embedding this is a copy, which
                Megatron has on another pipeline stage only.
        """
        if embedding:
            yield "embedding.word_embeddings.weight"
        for layer in layers:
            for name in self._layer_rules[self.facts.has_experts(layer)]:
                yield name.replace("{layer}", str(layer))
        if head:
            yield from (name for name in self._model_rules if name != "embedding.word_embeddings.weight")

    def adapter_of(self, megatron_name: str) -> AdapterRules | None:
        """The rules of a weight's adapter, whose names have the layer's number in them; None if it has none."""
        if self._targets is None or beside(megatron_name) is None:
            return None
        if megatron_name not in self._adapters:
            rule, names = self.rule_of(megatron_name)
            self._adapters[megatron_name] = self._targets.rules_of(rule, names, self._experts)
        return self._adapters[megatron_name]

    def adapted_modules(self) -> list[str]:
        """Whole names of all modules with an adapter."""
        targets = self._targets
        return [
            name for rule, name in adaptable_modules(self.facts) if targets is not None and targets.includes(rule, name)
        ]

    def parameters(self, model: torch.nn.Module, layer_offset: int = 0) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters of one model chunk under their names in the whole model.

        Args:
            layer_offset: decoder layers before the chunk's first.
        """
        for name, parameter in model.named_parameters():
            yield _LAYER_NUMBER.sub(lambda match: str(int(match.group()) + layer_offset), name), parameter

    @torch.no_grad()
    def load(self, parameters: Iterable[tuple[str, Tensor]], reader: TensorSource) -> None:
        """Fill this rank's parameters from a checkpoint, a few tensors at a time.

        Args:
            parameters: names in the whole model, and where to write.
        """
        for name, parameter in parameters:
            if isinstance(reader, BlockReader):
                self._load_blocks(name, parameter, reader)
                continue
            rule, sources = self.rule_of(name)
            if isinstance(rule, Experts):
                for place, expert in enumerate(self._local_experts()):
                    self._load_one(rule, [_numbered(source, expert) for source in sources], parameter[place], reader)
            else:
                self._load_one(rule, list(sources), parameter, reader)

    def _load_blocks(self, name: str, target: Tensor, reader: BlockReader) -> None:
        """Read what this rank holds and nothing else."""
        flat, blocks = target.view(-1), self.blocks(name, tuple(target.shape))
        if sum(block.elements for block in blocks) < flat.numel():
            flat.zero_()  # padding
        for block in blocks:
            reader.read(WEIGHT, block, flat[block.start : block.stop].view(block.sizes))

    def _load_one(self, rule: Rule, sources: list[str], target: Tensor, reader: TensorSource) -> None:
        group = self._expert_tp if isinstance(rule, Experts) else self._tp
        part = shard(rule, [reader.get(source) for source in sources], self.facts, _rank(group), _size(group))
        if part.shape != target.shape:
            raise ValueError(f"{sources[0]}: rule gives {list(part.shape)}, parameter is {list(target.shape)}")
        target.copy_(part)

    def export(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Whole Hugging Face tensors from this rank's Megatron tensors: parameters, or anything of their shapes.

        A collective of the ranks of a pipeline stage that share the model: all must consume all of it, and all of
        them get the tensors.

        Args:
            tensors: Megatron names (in the whole model) and this rank's parts.
        """
        for name, tensor in tensors:
            rule, targets = self.rule_of(name)
            if self.is_tied_copy(name):
                continue
            if isinstance(rule, Experts):
                yield from self._export_experts(rule, targets, tensor.detach())
            else:
                yield from zip(targets, join(rule, _gather(tensor.detach(), self._tp), self.facts), strict=True)

    def _export_experts(self, rule: Experts, targets: tuple[str, ...], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        # [expert-parallel rank][expert-tensor rank] -> [local experts, ...]
        parts = [part.unbind() for part in _gather(torch.stack(_gather(tensor, self._expert_tp)), self._ep)]
        per_rank = tensor.shape[0]
        for expert in range(self._experts):
            rank, place = divmod(expert, per_rank)
            whole = join(rule, [part[place] for part in parts[rank]], self.facts)
            yield from zip((_numbered(target, expert) for target in targets), whole, strict=True)

    def _local_experts(self) -> range:
        per_rank = self._experts // _size(self._ep)
        first = _rank(self._ep) * per_rank
        return range(first, first + per_rank)

    def blocks(self, megatron_name: str, local_shape: Shape) -> list[Block]:
        """The rectangles of Hugging Face tensors that this rank's parameter is made of, in the order of its elements.

        Args:
            megatron_name: name with the layer's number in the whole model.
            local_shape: of this rank's parameter.

        Raises:
            KeyError: no rule knows the name.
            ValueError: the rule gives a parameter of another shape.
        """
        rule, names = self.rule_of(megatron_name)
        if not isinstance(rule, Experts):
            return blocks_of(rule, names, self.facts, local_shape, _rank(self._tp), _size(self._tp))
        experts, *one = local_shape
        rank, size, blocks = _rank(self._expert_tp), _size(self._expert_tp), []
        if experts != len(self._local_experts()):
            raise ValueError(f"{names[0]}: parameter has {experts} experts, this rank {len(self._local_experts())}")
        for place, expert in enumerate(self._local_experts()):
            numbered = [_numbered(name, expert) for name in names]
            for block in blocks_of(rule, numbered, self.facts, tuple(one), rank, size):
                blocks.append(replace(block, start=block.start + place * prod(one)))
        return blocks

    def is_first_copy(self, megatron_name: str) -> bool:
        """Whether this is the first of the model-parallel ranks that hold the same part of a parameter.

        Data- and context-parallel replicas do not count.
        """
        rule, _ = self.rule_of(megatron_name)
        group, inner = (self._expert_tp, rule.each) if isinstance(rule, Experts) else (self._tp, rule)
        return not self.is_tied_copy(megatron_name) and not (
            isinstance(inner, Replicated | Stacked) and _rank(group) > 0
        )

    def is_tied_copy(self, megatron_name: str) -> bool:
        """Whether a parameter is the last stage's copy of a tied embedding."""
        return self.facts.tied and megatron_name == "output_layer.weight"


def _by_name(rules: Iterable[Rule]) -> dict[str, Rule]:
    return {rule.megatron: rule for rule in rules}


def _numbered(name: str, expert: int) -> str:
    return name.replace("{expert}", str(expert))


def _rank(group: Group | None) -> int:
    return group.rank() if group is not None else 0


def _size(group: Group | None) -> int:
    return group.size() if group is not None else 1


def _gather(tensor: Tensor, group: Group | None) -> list[Tensor]:
    if group is None or group.size() == 1:
        return [tensor]
    if isinstance(group, Part):
        raise ValueError("a place without processes has nobody to gather from")
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def expected_shapes(config: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by transformers' own account of the architecture."""
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
    from transformers.core_model_loading import revert_weight_conversion

    value_head = facts_from_config(config.to_dict()).value_head
    with torch.device("meta"):
        model = (AutoModelForTokenClassification if value_head else AutoModelForCausalLM).from_config(config)
    # transformers may hold several tensors of a checkpoint as one parameter (stacked experts).
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, parameters).items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes
