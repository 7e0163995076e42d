"""LoRA adapters beside Megatron's modules.

Invariant: an adapted module computes `W x + s B (A x)` on every layout, for each of the Hugging Face modules that are
fused in it, with W frozen; with the adapter off it computes what the module alone computes. Adapters are made before
data-parallel wrapping, so that their gradients are in Megatron's buffers and no others are.

Gradients of a matrix that several ranks hold whole are parts of a sum. Dense ones are marked `sequence_parallel`, which
Megatron sums over the tensor-parallel ranks; `reduce_expert_copies` sums those of experts over the expert-tensor ranks.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.families.lora import AdapterRules, base_of
from pentad.families.rules import QKV, Experts, Rule
from pentad.trainers.megatron.build import Chunk
from pentad.trainers.megatron.experts import GroupedExperts
from pentad.trainers.megatron.router import AdaptedRouter
from pentad.trainers.protocol import Published
from pentad.weights.mapping import WeightMapping
from pentad.weights.sharding import shard


class Adapter(nn.Module):
    """The adapters of one Megatron weight, together.

    Args:
        weight: this rank's part of the weight, `[out, in]` or, of stacked experts, `[experts, out, in]`.
        rows: this rank's output rows that are adapted, int64 `[n]`.
        part: to which of the adapted modules each belongs, int64 `[n]`.
        parts: adapted modules.
        settings: as configured.
        dtype: of the matrices.

    Attributes:
        A: `[(experts,) parts * rank, in]`.
        B: `[(experts,) n, rank]`.
        enabled: False computes the module alone.
    """

    def __init__(
        self, weight: Tensor, rows: Tensor, part: Tensor, parts: int, settings: LoraSettings, dtype: torch.dtype
    ) -> None:
        super().__init__()
        *experts, self.out, inner = weight.shape
        rank, device = settings.rank, weight.device
        self.parts, self.rank, self.scale, self.dropout = parts, rank, settings.scale, settings.dropout
        self.A = nn.Parameter(torch.empty(*experts, parts * rank, inner, dtype=dtype, device=device))
        self.B = nn.Parameter(torch.empty(*experts, len(rows), rank, dtype=dtype, device=device))
        self.enabled = True
        plain = parts == 1 and len(rows) == self.out
        # Row i of B is for output row i, of the module whose part of A x is multiplied with it.
        self.register_buffer("_places", None if plain else (rows * parts + part).to(device), persistent=False)

    _places: Tensor | None

    def wide(self) -> Tensor:
        """B as one matrix for all of A x: `[(experts,) out, parts * rank]`; a row is 0 at other modules' parts."""
        places = self._places
        if places is None:
            return self.B
        lead = self.B.shape[:-2]
        empty = self.B.new_zeros(*lead, self.out * self.parts, self.rank)
        return empty.index_copy(len(lead), places, self.B).view(*lead, self.out, self.parts * self.rank)

    def inner(self, x: Tensor) -> Tensor:
        """What A is multiplied with."""
        x = x.to(self.A.dtype)
        return functional.dropout(x, self.dropout, training=self.training) if self.dropout else x

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """`W + s B A` for this rank's part of W: computed in float32, rounded once."""
        return (weight.float() + self.scale * (self.wide().float() @ self.A.float())).to(weight.dtype)

    def add_to(self, output: Tensor, hidden: Tensor) -> Tensor:
        """`output + s B hidden`: `[..., out]` and `[..., parts * rank]`."""
        wide = self.wide()
        if output.dtype != wide.dtype:
            return output + (self.scale * (hidden @ wide.t())).to(output.dtype)
        flat = output.reshape(-1, output.shape[-1])
        return torch.addmm(flat, hidden.reshape(-1, hidden.shape[-1]), wide.t(), alpha=self.scale).view(output.shape)


class _ColumnHook:
    """After a layer that is split by its outputs. With sequence parallelism x holds this rank's tokens only."""

    def __init__(self, adapter: Adapter, group: ProcessGroup | None) -> None:
        self.adapter, self.group = adapter, group

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Any]) -> Any:
        if not self.adapter.enabled:
            return None
        hidden = self.adapter.inner(args[0]) @ self.adapter.A.t()
        if self.group is not None:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.group)
        return self.adapter.add_to(result[0], hidden), result[1]


class _RowHook:
    """After a layer that is split by its inputs: `A x` is summed over the ranks; each keeps it for its own tokens."""

    def __init__(self, adapter: Adapter, group: ProcessGroup | None) -> None:
        self.adapter, self.group = adapter, group

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Any]) -> Any:
        if not self.adapter.enabled:
            return None
        hidden = self.adapter.inner(args[0]) @ self.adapter.A.t()
        if self.group is not None:
            hidden = reduce_scatter_to_sequence_parallel_region(hidden, group=self.group)
        return self.adapter.add_to(result[0], hidden), result[1]


def attach(
    chunks: Iterable[Chunk],
    mapping: WeightMapping,
    settings: LoraSettings,
    groups: ProcessGroupCollection,
    dtype: torch.dtype,
) -> dict[str, Adapter]:
    """Freeze the chunks and give their modules adapters, with uninitialised matrices.

    Returns:
        the adapters by the Megatron names of the weights that they stand beside.

    Raises:
        UserError: a pipeline stage has nothing to train, or some of q, k and v cannot be split over so many ranks.
    """
    adapters: dict[str, Adapter] = {}
    for number, chunk in enumerate(chunks):
        chunk.module.requires_grad_(False)
        found = {}
        local = [name for name, _ in chunk.module.named_parameters()]
        for own, (name, weight) in zip(local, list(mapping.parameters(chunk.module, chunk.layer_offset)), strict=True):
            if (rules := mapping.adapter_of(name)) is not None:
                module, _, leaf = own.rpartition(".")
                adapter = _make(mapping, name, rules, weight, settings, groups, dtype)
                _place(chunk.module.get_submodule(module), leaf, adapter, groups)
                found[name] = adapter
        if not found:
            raise UserError(
                f"pipeline stage {groups.pp.rank()} (part {number}) has no module that model.lora.targets names",
                "adapt modules of all layers, or use fewer pipeline stages",
            )
        _need_input_gradients(chunk)
        adapters |= found
    return adapters


def _make(
    mapping: WeightMapping,
    name: str,
    rules: AdapterRules,
    weight: Tensor,
    settings: LoraSettings,
    groups: ProcessGroupCollection,
    dtype: torch.dtype,
) -> Adapter:
    rule, names = mapping.rule_of(name)
    if isinstance(rule, QKV) and len(rules.parts) < len(names) and groups.tp.size() > mapping.facts.num_kv_heads:
        raise UserError(
            f"model.lora adapts some of {', '.join(names)}; with more tensor-parallel ranks than the "
            f"{mapping.facts.num_kv_heads} key/value heads they are split together",
            f"adapt all of q, k and v, or use at most t{mapping.facts.num_kv_heads}",
        )
    group = groups.expt_tp if isinstance(rule, Experts) else groups.tp
    of_row = _labels(mapping, rule, weight.shape[-2], group)
    rows = torch.cat([torch.nonzero(of_row == part)[:, 0] for part in rules.parts]).sort().values
    part = torch.tensor([rules.parts.index(int(label)) for label in of_row[rows]])
    adapter = Adapter(weight, rows, part, len(rules.parts), settings, dtype)
    _mark(adapter, rules, groups)
    return adapter


def _labels(mapping: WeightMapping, rule: Rule, rows: int, group: ProcessGroup) -> Tensor:
    """Which of the rule's Hugging Face modules each output row of this rank belongs to: int64 `[rows]`."""
    count, facts = len(rule.hugging_face), mapping.facts
    inner = rule.each if isinstance(rule, Experts) else rule
    if count == 1:
        return torch.zeros(rows, dtype=torch.int64)
    sizes = [rows * group.size() // count] * count
    if isinstance(inner, QKV):
        sizes = [facts.num_heads * facts.head_dim, *[facts.num_kv_heads * facts.head_dim] * 2]
    return shard(inner, [torch.full((size,), i) for i, size in enumerate(sizes)], facts, group.rank(), group.size())


def _mark(adapter: Adapter, rules: AdapterRules, groups: ProcessGroupCollection) -> None:
    """Tell Megatron which ranks hold the same, and which a part."""
    for parameter, rule in ((adapter.A, rules.a), (adapter.B, rules.b)):
        inner = rule.each if isinstance(rule, Experts) else rule
        dim = _SPLIT_DIM.get(type(inner).__name__)
        if isinstance(rule, Experts):
            parameter.allreduce = False
            parameter.sum_over_expert_tensor = dim is None
        if dim is not None:
            parameter.tensor_model_parallel = True
            parameter.partition_dim = dim + isinstance(rule, Experts)
            parameter.partition_stride = 1
        elif not isinstance(rule, Experts):
            parameter.sequence_parallel = groups.tp.size() > 1


_SPLIT_DIM = {"QKV": 0, "Gated": 0, "Column": 0, "Row": 1}


def _place(module: nn.Module, leaf: str, adapter: Adapter, groups: ProcessGroupCollection) -> None:
    """Put an adapter beside a weight, where the module's forward pass finds it."""
    setattr(module, leaf.replace("weight", "lora"), adapter)
    group = groups.tp if groups.tp.size() > 1 else None
    if isinstance(module, ColumnParallelLinear):
        module.register_forward_hook(_ColumnHook(adapter, group))
    elif isinstance(module, RowParallelLinear):
        module.register_forward_hook(_RowHook(adapter, group))
    elif not isinstance(module, GroupedExperts | AdaptedRouter):
        raise TypeError(f"no adapter can stand beside {type(module).__name__}.{leaf}")


def _need_input_gradients(chunk: Chunk) -> None:
    """Recomputation drops the gradients of a block of which no input needs one, as with a frozen embedding's output."""
    if chunk.module.pre_process and chunk.module.config.recompute_granularity is not None:
        chunk.module.embedding.register_forward_hook(
            lambda module, args, result: result.requires_grad_() if torch.is_grad_enabled() else None
        )


def published(
    parameters: Iterable[tuple[str, nn.Parameter]], adapters: Mapping[str, Adapter], what: Published
) -> Iterator[tuple[str, Tensor]]:
    """What of a rank's parameters is sent.

    Args:
        parameters: under their Megatron names in the whole model.
        adapters: by the names of the weights that they stand beside.
    """
    for name, parameter in parameters:
        if what != "all" and (what == "adapters") != (base_of(name) is not None):
            continue
        adapter = adapters.get(name) if what == "merged" else None
        yield name, parameter.data if adapter is None else adapter.merged(parameter.data)


def seed_dropout(settings: LoraSettings | None, seed: int, step: int) -> None:
    """What is dropped follows from the optimizer step and the rank, so that a run that was resumed drops the same."""
    if settings is None or not settings.dropout:
        return
    torch.manual_seed(hash((seed, step, torch.distributed.get_rank())) % (1 << 63))


@contextmanager
def adapters_off(adapters: Iterable[Adapter]) -> Generator[None]:
    """Inside it, modules compute without their adapters: the model that training began from."""
    held = list(adapters)
    for adapter in held:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in held:
            adapter.enabled = True


def reduce_expert_copies(adapters: Iterable[Adapter], group: ProcessGroup) -> None:
    """Sum the gradients of what expert-tensor-parallel ranks hold whole over them. After Megatron's own reductions.

    Each has the gradient of its part of the experts' inner width. Megatron has no such parameters of its own; it would
    sum over the tensor-parallel ranks, which may be others.
    """
    if group is None or group.size() == 1:
        return
    parameters = [parameter for adapter in adapters for parameter in (adapter.A, adapter.B)]
    gradients = [p.main_grad for p in parameters if getattr(p, "sum_over_expert_tensor", False)]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat, group=group)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))
