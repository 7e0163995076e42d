"""How one Megatron parameter corresponds to one or more Hugging Face tensors: data, which `pentad.weights` executes.

Invariant: a rule names tensors and says how tensor-parallel ranks share them; it knows nothing of files, processes or
numbers of layers. `pentad.weights.sharding` has the two directions of every kind of rule.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Base of the rules.

    Attributes:
        megatron: parameter name; `{layer}` stands for the layer's number in the whole model.
        hugging_face: tensor names, with the same placeholder.
    """

    megatron: str
    hugging_face: tuple[str, ...]


class Replicated(Rule):
    """Every rank holds the whole tensor (norms, routers)."""


class Stacked(Rule):
    """Several tensors of one shape, one after the other; every rank holds all of them (A of fused adapters)."""


class Row(Rule):
    """Split along the input dimension."""


class Column(Rule):
    """Split along the output dimension."""


class Vocab(Rule):
    """Rows of the vocabulary, padded with zeros to a multiple of the ranks."""


class Gated(Rule):
    """Gate and up projection; each rank holds its rows of the one, then its rows of the other."""


@dataclass(frozen=True)
class QKV(Rule):
    """Query, key and value projections (weights or biases), interleaved by key/value head.

    Rows are ordered `[queries of group 0, key 0, value 0, queries of group 1, ...]` and split evenly. With more ranks
    than key/value heads a group spans several ranks, which Megatron's attention gathers again.

    Attributes:
        parts: which of query (0), key (1) and value (2) there are; adapters may be of some of them only.
    """

    parts: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Experts(Rule):
    """The same matrices of all experts, stacked in one parameter; `{expert}` stands for the expert's number.

    Experts are spread over the expert-parallel ranks in order, and each is split over the expert-tensor-parallel
    ranks by the rule `each`.
    """

    each: Rule
