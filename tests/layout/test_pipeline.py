"""The pipeline split: complete, in order, and as even as can be."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pentad.families.known_models import known_models
from pentad.layout import Layout
from pentad.layout.pipeline import chunks_in_flight, edge_costs, pipeline_chunks, split_layers, stage_layers


def slowest(layers: tuple[int, ...], embedding: float, head: float) -> float:
    loads = [float(count) for count in layers]
    loads[0] += embedding
    loads[-1] += head
    return max(loads)


def all_splits(layers: int, stages: int) -> list[tuple[int, ...]]:
    cuts = ((0, *cut, layers) for cut in combinations(range(1, layers), stages - 1))
    return [tuple(b - a for a, b in pairwise(cut)) for cut in cuts]


@given(
    layers=st.integers(1, 10),
    stages=st.integers(1, 6),
    embedding=st.floats(0, 4),
    head=st.floats(0, 8),
)
def test_no_split_is_faster(layers: int, stages: int, embedding: float, head: float) -> None:
    if stages > layers:
        with pytest.raises(ValueError):
            split_layers(layers, stages, embedding, head)
        return
    split = split_layers(layers, stages, embedding, head)
    assert sum(split) == layers and len(split) == stages and min(split) >= 1
    best = min(slowest(other, embedding, head) for other in all_splits(layers, stages))
    assert slowest(split, embedding, head) == pytest.approx(best)


def test_known_splits() -> None:
    assert split_layers(8, 4) == (2, 2, 2, 2)
    assert split_layers(10, 4) == (2, 2, 3, 3)  # later stages keep fewer microbatches
    assert split_layers(8, 2, head_cost=2.0) == (5, 3)
    assert split_layers(4, 4, head_cost=100.0) == (1, 1, 1, 1)
    for wrong in ((4, 0, 0.0, 0.0), (4, 2, -1.0, 0.0), (4, 2, 0.0, -1.0)):
        with pytest.raises(ValueError):
            split_layers(*wrong)


@pytest.mark.parametrize("name", known_models())
@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (4, 1), (2, 4), (4, 2)])
def test_chunks_hold_every_layer_once_in_megatrons_order(name: str, sizes: tuple[int, int]) -> None:
    facts, (pipeline, virtual) = known_models()[name], sizes
    stages = pipeline_chunks(facts, Layout(pipeline=pipeline, virtual=virtual))
    # The path of a token: chunk 0 of all stages, then chunk 1 of all stages, ...
    path = [stages[stage][number] for number in range(virtual) for stage in range(pipeline)]
    assert [layer for chunk in path for layer in chunk.layers] == list(range(facts.num_layers))
    assert [chunk.embedding for chunk in path] == [True] + [False] * (len(path) - 1)
    assert [chunk.head for chunk in path] == [False] * (len(path) - 1) + [True]
    assert all((chunk.stage, chunk.virtual) == (s, v) for s, row in enumerate(stages) for v, chunk in enumerate(row))


def test_output_layer_takes_the_place_of_layers() -> None:
    facts = known_models()["Qwen/Qwen2.5-7B"]
    embedding, head = edge_costs(facts)
    assert embedding == 0 and 2 < head < 4
    split = stage_layers(facts, Layout(pipeline=4))
    assert split[-1] < split[0]


def brute_force(pipeline: int, virtual: int, stage: int, microbatches: int) -> int:
    """Megatron's interleaved schedule, forward pass by forward pass."""
    order = [
        (chunk, number)
        for start in range(0, microbatches, pipeline)
        for chunk in range(virtual)
        for number in range(start, min(start + pipeline, microbatches))
    ]
    warm_up = min(2 * (pipeline - stage - 1) + (virtual - 1) * pipeline, len(order))
    held = peak = warm_up
    for _ in order[warm_up:]:
        held += 1
        peak = max(peak, held)
        held -= 1
    return peak


@pytest.mark.parametrize("microbatches", [4, 8, 16])
def test_in_flight(microbatches: int) -> None:
    for stage in range(4):
        plain = chunks_in_flight(Layout(pipeline=4), stage, microbatches, (1.0,))
        assert plain == min(4 - stage, microbatches)
        interleaved = chunks_in_flight(Layout(pipeline=4, virtual=2), stage, microbatches, (1.0, 1.0))
        assert interleaved == brute_force(4, 2, stage, microbatches)
    assert chunks_in_flight(Layout(), 0, microbatches, (5.0,)) == 5.0
    assert chunks_in_flight(Layout(pipeline=4), 0, 1, (1.0,)) == 1.0
    # A heavy chunk counts as often as it is held, not as often as the others.
    assert chunks_in_flight(Layout(pipeline=2, virtual=2), 0, 8, (1.0, 0.0)) <= 4.0
