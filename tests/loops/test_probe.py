"""The probe at the first synchronisation: a real engine and a real trainer on two tensor-parallel ranks.

Each fault is planted in the engine: its configuration, one of its modules, or weights that are called by wrong names.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_calls import load
from ranks import Rank, run_on
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pentad.config.schema.trainer import TrainerSettings
from pentad.engines.hf.engine import EmbeddedEngine
from pentad.families.builtin import builtin_models
from pentad.families.hf_config import facts_from_config
from pentad.layout import Layout
from pentad.loops.probe import Probe, probe_sequences
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches
from pentad.verify.models import tiny_config, write_random_model
from pentad.weights.constants import ModelConstants
from pentad.weights.proof import SyncError, check_probe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LONGEST = 400
ROWS = [torch.randint(0, 101, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 30, 60, 90)]
SEQUENCES = probe_sequences(ROWS, LONGEST)
POSITIONS = [1, 199, LONGEST - 2]
# Built-in models let a layer add little to the residual stream, which hides faults; trained models are like this.
_CONTRIBUTION = 16.0


@dataclass(frozen=True)
class Side:
    """The trainer in one precision; satisfies what the probe asks of a policy."""

    dtype: torch.dtype
    scores: Tensor
    told: ModelConstants
    weights: Mapping[str, Tensor]

    async def logprobs(self, batch: Batch, temperature: float, progress: object) -> Tensor:
        assert len(self.scores) == batch.num_tokens
        return self.scores

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        assert list(positions) == POSITIONS
        return self.told


class OneEngine:
    """Satisfies what the probe asks of engines."""

    def __init__(self, engine: EmbeddedEngine, *, tells: bool = True) -> None:
        self._engine, self._tells = engine, tells

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[list[Tensor]]:
        return [await self._engine.logprobs(sequences, temperature)]

    async def constants(self, positions: Sequence[int]) -> list[ModelConstants | None]:
        return [await self._engine.constants(positions) if self._tells else None]


def on_ranks(rank: Rank, directory: Path, batch: Batch) -> dict[str, tuple[Tensor, ModelConstants, list[Any]]]:
    from pentad.trainers.megatron.constants import read_constants

    answers = {}
    for name in DTYPES:
        settings = TrainerSettings(total_steps=1, dtype=name)
        trainer = rank.trainer(directory, settings, optimizer_steps=None)
        scores, _ = trainer.logprobs(batch, plan_microbatches(batch.lengths, 1, LONGEST), 1.0)
        weights = [(name, tensor.clone()) for name, tensor in trainer.weights()]
        answers[name] = (scores, read_constants(trainer, POSITIONS), weights)
    return answers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedConfig, dict[str, Side]]]:
    """Configuration and trainer of a built-in model, by name; whatever family, on two ranks."""
    folder = tmp_path_factory.mktemp("probed")

    @cache
    def make(name: str) -> tuple[PreTrainedConfig, dict[str, Side]]:
        write_random_model(tiny_config(name), folder / name, torch.float32)
        written = AutoModelForCausalLM.from_pretrained(folder / name)
        with torch.no_grad():
            for key, parameter in written.named_parameters():
                if key.removesuffix(".weight").endswith(("o_proj", "down_proj")):
                    parameter.mul_(_CONTRIBUTION)
        written.save_pretrained(folder / name)
        batch = Batch.from_sequences([(sequence[:1], sequence[1:]) for sequence in SEQUENCES])
        answer = run_on(Layout(tensor=2), on_ranks, folder / name, batch)[0]
        sides = {key: Side(DTYPES[key], scores, told, dict(sent)) for key, (scores, told, sent) in answer.items()}
        return AutoConfig.from_pretrained(folder / name), sides

    return make


def head_width(config: PreTrainedConfig) -> int:
    return facts_from_config(config.to_dict()).head_dim


def engine_of(config: PreTrainedConfig, side: Side, weights: Mapping[str, Tensor] | None = None) -> EmbeddedEngine:
    engine = EmbeddedEngine(config, dtype=side.dtype)
    load(engine, (side.weights if weights is None else weights).items(), 0)
    return engine


def probe(side: Side, engine: EmbeddedEngine, *, tells: bool = True) -> None:
    asyncio.run(Probe(side, OneEngine(engine, tells=tells), SEQUENCES, 1, side.dtype).run())  # ty: ignore


@pytest.mark.parametrize("name", builtin_models())
def test_right_models_pass(name, model):
    config, sides = model(name)
    for side in sides.values():
        engine = engine_of(config, side)
        probe(side, engine)
        # Everything is compared, and well inside the bounds.
        told = asyncio.run(engine.constants(POSITIONS))
        assert told.norms.keys() == side.told.norms.keys() >= {"model.norm.weight"}
        assert told.attention.keys() == side.told.attention.keys() == set(range(4))
        assert [len(row) for row in told.rotary.values()] == [2 * head_width(config)] * len(POSITIONS)
        found = asyncio.run(engine.logprobs(SEQUENCES))
        units = check_probe(side.scores.split(list(map(len, SEQUENCES))), found, side.dtype, 4, "engine 0")
        assert units < {torch.float32: 4.0, torch.bfloat16: 1.0}[side.dtype]


def constants_on_ranks(rank: Rank, directory: Path) -> ModelConstants:
    from pentad.trainers.megatron.constants import read_constants

    return read_constants(rank.trainer(directory, optimizer_steps=None), POSITIONS)


@pytest.mark.parametrize("layout", [Layout(pipeline=2), Layout(pipeline=2, virtual=2)], ids=str)
def test_stages_tell_of_their_own_layers(layout, model):
    config, sides = model("qwen3_moe")
    parts = run_on(layout, constants_on_ranks, Path(config._name_or_path))
    assert all(part.norms.keys() < sides["fp32"].told.norms.keys() for part in parts)
    assert parts[0] | parts[1] == sides["fp32"].told
    wrong = replace(parts[1], rotary={**parts[1].rotary, 199: (0.0,) * 48})
    with pytest.raises(SyncError, match="ranks of the trainer compute differently: the rotary angles at position 199"):
        parts[0] | wrong


def renamed(weights: Mapping[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    """Two parts of the model under each other's names."""
    swap = {name: name.replace(one, "@").replace(other, one).replace("@", other) for name in weights}
    assert any(name != new for name, new in swap.items())
    return {new: weights[name] for name, new in swap.items()}


def rolled_keys(weights: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    return {name: tensor.roll(width, 0) if "k_proj" in name else tensor for name, tensor in weights.items()}


WEIGHTS: dict[str, Callable[[Mapping[str, Tensor], PreTrainedConfig], dict[str, Tensor]]] = {
    "two layers exchanged": lambda weights, config: renamed(weights, "layers.1.", "layers.2."),
    "key heads rolled": lambda weights, config: rolled_keys(weights, head_width(config)),
    "two experts of a layer exchanged": lambda weights, config: renamed(
        weights, "1.mlp.experts.0.", "1.mlp.experts.1."
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fault, name", [*((fault, "qwen3_moe") for fault in WEIGHTS), *((fault, "llama") for fault in list(WEIGHTS)[:2])]
)
def test_weights_in_wrong_places_are_refused(fault, name, dtype, model):
    config, sides = model(name)
    side = sides[dtype]
    with pytest.raises(SyncError, match=r"engine 0 and the trainer disagree .* times what rounding"):
        probe(side, engine_of(config, side, WEIGHTS[fault](side.weights, config)))


def rope_base(config: PreTrainedConfig) -> None:
    config.rope_parameters["rope_theta"] *= 1.05


def epsilon(config: PreTrainedConfig) -> None:
    assert config.rms_norm_eps == 1e-6
    config.rms_norm_eps = 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    "spoil, message", [(rope_base, "rotary angles at position 199"), (epsilon, "has epsilon 1e-05 in .*, 1e-06 in the")]
)
def test_wrong_constants_are_refused_whatever_rounding_hides(spoil, message, name, dtype, model):
    config, sides = model(name)
    wrong = deepcopy(config)
    spoil(wrong)
    with pytest.raises(SyncError, match=message):
        probe(sides[dtype], engine_of(wrong, sides[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_modules_count_not_the_configuration(dtype, model):
    config, sides = model("qwen3_moe")
    side, engine = sides[dtype], engine_of(config, sides[dtype])
    layers = engine._model.module.model.layers
    layers[2].self_attn.k_norm.variance_epsilon = 1e-5
    with pytest.raises(SyncError, match=r"with the same weights: model.layers.2.self_attn.k_norm has epsilon 1e-05"):
        probe(side, engine)
    layers[2].self_attn.k_norm.variance_epsilon = 1e-6
    layers[3].self_attn.scaling *= 1.05
    with pytest.raises(SyncError, match="attention of layer 3 has scale"):
        probe(side, engine)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_in_float32_log_probs_alone_tell_of_a_rotary_base(name, model):
    config, sides = model(name)
    wrong = deepcopy(config)
    rope_base(wrong)
    with pytest.raises(SyncError, match="disagree"):
        probe(sides["fp32"], engine_of(wrong, sides["fp32"]), tells=False)


def test_an_engine_that_tells_nothing_is_compared_by_log_probs(model):
    config, sides = model("llama")
    for side in sides.values():
        probe(side, engine_of(config, side), tells=False)


def test_probes_have_two_tokens_or_more_and_long_positions():
    assert [len(sequence) for sequence in SEQUENCES] == [2, 30, 60, 90, LONGEST - 1]
    assert torch.equal(SEQUENCES[-1][:181], torch.cat(ROWS))
    many = probe_sequences([torch.arange(300)] * 100, 10_000)
    assert [len(sequence) for sequence in many] == [256] * 4 + [4095]
    assert [len(sequence) for sequence in probe_sequences([torch.arange(9)], 10)] == [9]
