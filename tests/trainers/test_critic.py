"""A critic's values and gradients equal transformers' `*ForTokenClassification`, on every kind of layout."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Rank, run_on
from rollout_models import SHAPE
from tiny import DENSE, MIXTURE, TinyModel, distance, gradients_of, ragged_batch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel, Qwen2Config

from pentad.algorithms.protocol import Mean, Outputs
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

BOUND = 1e-5
DEEP = Qwen2Config(**{**SHAPE, "num_hidden_layers": 4}, tie_word_embeddings=True)
CONFIGS: dict[str, PreTrainedConfig] = {**DENSE, **MIXTURE, "qwen2_deep": DEEP}


class SquaredError:
    """Half the squared distance to `returns`, a mean over tokens."""

    reads = frozenset({"returns"})
    differentiates_entropy = False

    def denominator(self, minibatch: Batch) -> float:
        return float(minibatch.loss_mask.sum())

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, dict[str, Mean]]:
        assert outputs.values is not None and not outputs.logprobs.any() and not outputs.entropies.any()
        mask = microbatch.loss_mask
        error = (outputs.values - microbatch.per_token["returns"]).square() * mask / 2
        return error.sum(), {"train/error": Mean(error.detach().sum(), mask.sum())}


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """A critic with random weights, as transformers writes it."""
    folder = tmp_path_factory.mktemp("critics")

    @cache
    def make(name: str) -> TinyModel:
        from pentad.weights.critic import critic_config

        torch.manual_seed(3)
        config = critic_config(CONFIGS[name])
        model = AutoModelForTokenClassification.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / name)
        return TinyModel(model, folder / name)

    return make


def batch_with_returns() -> Batch:
    batch = ragged_batch()
    random = torch.Generator().manual_seed(5)
    return batch.with_per_token("returns", torch.randn(batch.num_tokens, generator=random) * batch.loss_mask)


def expected_values(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 `[T]`: one plain forward pass a sequence; what follows a token is the value of the next."""
    parts = []
    for tokens in batch.tokens.split(batch.lengths):
        scores = model(input_ids=tokens[None], use_cache=False).logits[0, :-1, 0].float()
        parts += [scores.new_zeros(1), scores]
    return torch.cat(parts) * batch.loss_mask


def compute(rank: Rank, directory: Path, batch: Batch) -> tuple[Any, ...]:
    """Values, metrics, gradients, norm, and weights after a step."""
    trainer = rank.trainer(directory)
    multiple = rank.layout.pipeline if rank.layout.virtual > 1 else 1
    plan = plan_microbatches(batch.lengths, rank.layout.data, 64, multiple=multiple)
    values = trainer.values(batch, plan)
    metrics = trainer.forward_backward(batch, plan, SquaredError())
    gradients = {name: value.clone() for name, value in trainer.gradients()}
    norm = trainer.step()["train/grad_norm"]
    head = [weight.clone() for name, weight in trainer.weights() if name == "score.weight"]
    return values, metrics, gradients, norm, head


T2, P2, C2, D2, E2 = (
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(context=2),
    Layout(data=2),
    Layout(data=2, expert=2),
)
T2P2, V2, T2C2 = Layout(tensor=2, pipeline=2), Layout(pipeline=2, virtual=2), Layout(tensor=2, context=2)
CASES = [
    *[("llama_tied", layout) for layout in (Layout(), T2, P2, C2, D2)],
    *[("qwen2_deep", layout) for layout in (T2P2, V2, T2C2)],
    *[("qwen3_moe", layout) for layout in (Layout(), T2, E2)],
    ("qwen2_moe_dense", Layout(tensor=2, expert=2)),
    ("mixtral", Layout()),
]


@pytest.mark.parametrize("name, layout", CASES, ids=[f"{name}-{layout}" for name, layout in CASES])
def test_values_and_gradients(name, layout, critic):
    model, batch = critic(name), batch_with_returns()
    model.model.zero_grad()
    expected = expected_values(model.model, batch)
    assert expected[batch.loss_mask].std() > 0.1
    loss = ((expected - batch.per_token["returns"]).square() / 2).sum() / batch.loss_mask.sum()
    loss.backward()
    wanted = gradients_of(model.model)
    whole_norm = torch.stack([gradient.norm() for gradient in wanted.values()]).norm().item()
    answers = run_on(layout, compute, model.directory, batch)
    found: dict[str, Tensor] = {}
    for values, metrics, gradients, norm, _ in answers:
        assert torch.equal(values, answers[0][0]), "ranks have different values"
        assert (values - expected).abs().max() <= 1e-4
        assert metrics["train/loss"] == pytest.approx(loss.item(), rel=BOUND)
        assert metrics["train/error"] == pytest.approx(loss.item(), rel=BOUND) and "train/entropy" not in metrics
        assert norm == pytest.approx(whole_norm, rel=1e-4)
        for parameter, gradient in gradients.items():
            assert torch.equal(found.setdefault(parameter, gradient), gradient), "ranks have different gradients"
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        assert distance(found[parameter], gradient) <= BOUND, parameter
    heads = [head[0] for *_, head in answers if head]
    assert all(torch.equal(head, heads[0]) for head in heads), "copies of the head have drifted apart"


def refusals(rank: Rank, policy: Path, critic: Path, batch: Batch) -> list[str]:
    said = []
    plan = plan_microbatches(batch.lengths, 1, 64)
    for directory, verb in ((policy, "values"), (critic, "logprobs")):
        trainer = rank.trainer(directory, optimizer_steps=None)
        try:
            getattr(trainer, verb)(batch, plan, *([1.0] if verb == "logprobs" else []))
        except ValueError as error:
            said.append(str(error))
    return said


def test_a_policy_has_no_values_and_a_critic_no_logprobs(critic, tiny_models):
    directories = tiny_models("llama_tied").directory, critic("llama_tied").directory
    (said,) = run_on(Layout(), refusals, *directories, ragged_batch())
    assert said == ["only a critic has values", "a critic has no log-probs"]
