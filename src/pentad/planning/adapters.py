"""Parameters of LoRA adapters on each rank, exactly as Megatron holds them.

Invariant: the same rules say which modules have adapters and how they are split here and in the trainer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.families.catalog import family_named
from pentad.families.facts import ModelFacts
from pentad.families.lora import Targets, adaptable_modules
from pentad.families.rules import QKV, Experts, Replicated, Row, Rule
from pentad.layout.layout import Layout
from pentad.layout.pipeline import Chunk, pipeline_chunks


@dataclass(frozen=True)
class AdapterWork:
    """What adapters are trained.

    Attributes:
        rank: rows of A.
        targets: which modules have one.
    """

    rank: int
    targets: Targets


def adapter_work(settings: LoraSettings, facts: ModelFacts, layout: Layout) -> AdapterWork:
    """What `model.lora` asks for, of a model on a layout.

    Raises:
        UserError: no module is called so, or some of query, key and value cannot be split as the layout asks.
    """
    targets = Targets(settings.targets, settings.exclude)
    targets.check(adaptable_modules(facts))
    if layout.tensor > facts.num_kv_heads:
        for layer in range(facts.num_layers):
            for rule, parts, _ in _adapted(facts, layer, targets):
                if isinstance(rule, QKV) and len(parts) < len(rule.hugging_face):
                    raise UserError(
                        f"model.lora adapts some of q, k and v of layer {layer}; on t{layout.tensor} with "
                        f"{facts.num_kv_heads} key/value heads they are split together",
                        f"adapt all three, or use at most t{facts.num_kv_heads}",
                    )
    return AdapterWork(settings.rank, targets)


def trained_parameters(facts: ModelFacts, work: AdapterWork) -> int:
    """Parameters of all adapters of the whole model."""
    return adapter_parameters(facts, Layout(), pipeline_chunks(facts, Layout())[0], work).total


@dataclass(frozen=True)
class AdapterParameters:
    """Of one rank.

    Attributes:
        dense: whose gradients are reduced over data and context ranks.
        expert: whose gradients are reduced over `expert_data` ranks.
        base: parameters of the weights that have adapters, of the rank.
        inner: width of all `A x` of a token together, which are kept for the backward pass; without experts.
        mlp: adapted dense layers have their activations kept by Megatron's own MLP.
    """

    dense: int
    expert: int
    base: int
    inner: int
    mlp: int

    @property
    def total(self) -> int:
        """All that is trained."""
        return self.dense + self.expert


def adapter_parameters(
    facts: ModelFacts, layout: Layout, chunks: tuple[Chunk, ...], work: AdapterWork
) -> AdapterParameters:
    """Of each rank that holds these chunks."""
    dense = expert = base = inner = mlp = 0
    for layer in (layer for chunk in chunks for layer in chunk.layers):
        for rule, parts, matrix in _adapted(facts, layer, work.targets):
            local = (facts.num_experts or 0) // layout.expert if isinstance(rule, Experts) else 1
            a, b, own = (local * size for size in _sizes(rule, parts, matrix, layout, work.rank))
            base += own
            if isinstance(rule, Experts):
                expert += a + b
                continue
            dense += a + b
            inner += len(parts) * work.rank
            if "linear_fc" in rule.megatron and not isinstance(rule, Row):
                mlp += matrix[0][0] // layout.tensor
    return AdapterParameters(dense, expert, base, inner, mlp)


Matrix = tuple[list[int], int]
"""Output widths of a rule's modules, and their input width."""


def _adapted(facts: ModelFacts, layer: int, targets: Targets) -> Iterator[tuple[Rule, tuple[int, ...], Matrix]]:
    experts = facts.num_experts or 0
    for rule in family_named(facts.family).layer_rules(facts.has_experts(layer)):
        names = [name.replace("{layer}", str(layer)) for name in rule.hugging_face]
        found = targets.rules_of(rule, names, experts)
        if found is not None:
            yield rule, found.parts, _matrix(facts, rule)


def _matrix(facts: ModelFacts, rule: Rule) -> Matrix:
    hidden, query, key = facts.hidden_size, facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    inner = rule.each if isinstance(rule, Experts) else rule
    if isinstance(inner, QKV):
        return [query, key, key], hidden
    if isinstance(inner, Replicated):
        return [facts.num_experts or 0], hidden
    if "self_attention" in rule.megatron:
        return [hidden], query
    width = facts.ffn_hidden_size
    if isinstance(rule, Experts):
        width = facts.moe_ffn_hidden_size or 0
    elif "shared_experts" in rule.megatron:
        width = facts.shared_ffn_hidden_size
    return ([hidden], width) if isinstance(inner, Row) else ([width, width], hidden)


def _sizes(rule: Rule, parts: tuple[int, ...], matrix: Matrix, layout: Layout, rank: int) -> tuple[int, int, int]:
    """Elements of A, of B and of the adapted weights on one rank; of one expert."""
    outs, inner = matrix
    out = sum(outs[part] for part in parts)
    own = rule.each if isinstance(rule, Experts) else rule
    split = layout.expert_tensor if isinstance(rule, Experts) else layout.tensor
    if isinstance(own, Row):
        inner //= split
    elif not isinstance(own, Replicated):
        out //= split
    return len(parts) * rank * inner, out * rank, out * inner
