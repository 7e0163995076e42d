"""The first step by transformers and autograd, which know nothing of packs, ranks or Megatron.

Invariant: one sequence at a time, in float32, by the plainest implementation that transformers has; the loss is written
out here, and shares nothing with the one that is trained with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from pentad.config.schema.lora import LoraSettings
from pentad.families.lora import A, B
from pentad.platform.device import find_platform
from pentad.samples.batch import Batch
from pentad.verify.batch import LOSS, TEMPERATURE, make_batch, with_objective, with_returns
from pentad.verify.findings import RankFindings
from pentad.verify.models import value_head
from pentad.verify.rank import by_sample
from pentad.verify.reference import Reference, relative_number
from pentad.weights.adapters import AdapterReader
from pentad.weights.source import load_config
from pentad.weights.table import WeightTable


def consult(
    rank: int, meeting: str, checkpoint: Path, reference: Path, gradients: bool, lora: LoraSettings | None = None
) -> RankFindings:
    """How far transformers is from what one process of ours computed.

    Args:
        reference: where that is.
        gradients: compare loss and gradients, too; in low precision they are of another model.
        lora: of the adapters of `lora.adapter`, which are merged into the weights here.
    """
    device = find_platform(rank).device
    if device.type == "cpu":
        torch.set_num_threads(1)
    is_critic = value_head(load_config(checkpoint))
    model = (
        (AutoModelForTokenClassification if is_critic else AutoModelForCausalLM)
        .from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
        .to(device)
    )
    # transformers gives a padding token's embedding no gradient; there is no padding here, and it is any other token.
    cast(torch.nn.Embedding, model.get_input_embeddings()).padding_idx = None
    ours = Reference(reference)
    adapter = None if lora is None or lora.adapter is None else _Merged(model, AdapterReader(lora.adapter), lora.scale)
    batch = make_batch(model.config.vocab_size).to(device)
    score = _values if is_critic else _logprobs
    with torch.no_grad():
        logprobs = score(model, batch)
    expected = ours.logprobs(1).to(device)
    findings = RankFindings(stage=0, logprobs=by_sample(batch, logprobs, expected))
    if gradients:
        if is_critic:
            loss = _squared_error(score(model, batch), with_returns(batch.to("cpu"), expected.cpu()).to(device))
        else:
            loss = _grpo(score(model, batch), with_objective(batch.to("cpu"), expected.cpu()).to(device))
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        # transformers holds the experts of a layer as one parameter; a checkpoint does not.
        found = revert_weight_conversion(model, found)
        if adapter is not None:
            found = adapter.gradients(found)
        findings.gradients = ours.gradient_differences(found.items())
        norm = float(torch.stack([gradient.double().norm() for gradient in found.values()]).norm())
        findings.losses = {1: relative_number(float(loss.detach()), ours.losses[0])}
        findings.grad_norms = {1: relative_number(norm, ours.grad_norms[0])}
    return findings


class _Merged:
    """Adapters by the chain rule: the model has `W' = W + s B A` for each module, and each expert, one by one.

    Where G is the gradient by W', `s B^T G` is that by A, and `s G A^T` that by B.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, adapter: AdapterReader, scale: float) -> None:
        self._scale = scale
        self._matrices = {
            name.removesuffix(A): tuple(
                adapter.get(name.removesuffix(A) + kind).to(model.device).float() for kind in (A, B)
            )
            for name in adapter.shapes
            if name.endswith(A)
        }
        parameters = WeightTable(model).tensors
        for module, (a, b) in self._matrices.items():
            parameters[f"{module}.weight"] += scale * b @ a

    def gradients(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for module, (a, b) in self._matrices.items():
            gradient = whole[f"{module}.weight"]
            found[module + A] = self._scale * b.t() @ gradient
            found[module + B] = self._scale * gradient @ a.t()
        return found


def _logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 `[T]`, 0 outside the loss mask."""
    parts = []
    for tokens in batch.tokens.split(batch.lengths):
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float() / TEMPERATURE
        taken = torch.log_softmax(logits, dim=-1).gather(1, tokens[1:, None])[:, 0]
        parts += [taken.new_zeros(1), taken]
    return torch.cat(parts) * batch.loss_mask


def _values(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 `[T]`: what is given after a token is the value of the next; 0 outside the loss mask."""
    parts = []
    for tokens in batch.tokens.split(batch.lengths):
        values = model(input_ids=tokens[None], use_cache=False).logits[0, :-1, 0].float()
        parts += [values.new_zeros(1), values]
    return torch.cat(parts) * batch.loss_mask


def _squared_error(values: Tensor, batch: Batch) -> Tensor:
    """Half the squared distance, a mean over all tokens."""
    values, returns = (part[batch.loss_mask].double() for part in (values, batch.per_token["returns"]))
    return (values - returns).square().mean() / 2


def _grpo(logprobs: Tensor, batch: Batch) -> Tensor:
    """DeepSeekMath, https://arxiv.org/abs/2402.03300, eq. 3, with its KL estimate (eq. 4); a mean over all tokens."""
    logprobs, old, reference, advantages = (
        values[batch.loss_mask].double()
        for values in (logprobs, *(batch.per_token[name] for name in ("old_logprobs", "ref_logprobs", "advantages")))
    )
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 1 - LOSS.clip_low, 1 + LOSS.clip_high)
    kl = torch.exp(reference - logprobs) - (reference - logprobs) - 1
    return (LOSS.kl_coef * kl - torch.minimum(ratio * advantages, clipped * advantages)).mean()
