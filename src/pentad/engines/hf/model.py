"""A transformers model whose weights come from elsewhere, and whose memory can be given back.

Invariant: a parameter stays the same tensor from construction to the end, also over `release` and `allocate`, so views
of it stay valid; what it holds after `allocate` is undefined.
"""

import gc
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from pentad.config.schema.lora import LoraSettings
from pentad.engines.hf.adapters import AdaptedWeights
from pentad.engines.hf.head import use_float_logits
from pentad.errors import UserError
from pentad.weights.table import WeightTable

_SCORED_TOKENS = 4096


class HeldModel:
    """The model of one engine. Calls come from one thread.

    Args:
        model: configuration, or where it is: a Hugging Face directory, a hub id or a .gguf file. Weights are not read.
        dtype: of weights and activations; log-probs are float32 in any case.
        device: where to compute.
        lora: adapters that the trainer trains, if it does.

    Attributes:
        eos: tokens that end a response, by the model's own (generation) configuration.

    Raises:
        UserError: the model needs something that this engine cannot do.
    """

    def __init__(
        self,
        model: PretrainedConfig | str | os.PathLike[str],
        dtype: torch.dtype,
        device: torch.device,
        lora: LoraSettings | None = None,
    ) -> None:
        config, generation_eos = _read_config(model)
        _refuse_unsupported(config)
        self.eos = {*as_list(config.eos_token_id), *as_list(generation_eos)}
        with device, no_init_weights():
            self.module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        use_float_logits(self.module)
        self.module.tie_weights()
        self.module.requires_grad_(False).eval()
        self._adapted = None if lora is None else AdaptedWeights(self.module, lora)
        self._weights = WeightTable(self.module)
        storages = {parameter.untyped_storage().data_ptr(): parameter for parameter in self.module.parameters()}
        self._storages = [parameter.untyped_storage() for parameter in storages.values()]
        self._sizes = [storage.nbytes() for storage in self._storages]

    @property
    def positions(self) -> int:
        """Longest sequence."""
        return self.module.config.max_position_embeddings

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        """Take a whole set of weights, cast to the model's dtype; returns the checksum of each as it is held.

        Where the trainer trains adapters, sets after the first are adapters alone.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        if self._adapted is not None:
            return self._adapted.load(tensors)
        self._weights.load(tensors)
        return self._weights.checksums()

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens in full forward passes, without a cache; see `Engine.logprobs`."""
        results: list[Tensor] = [torch.empty(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        device = self.module.device
        while order:
            width = len(sequences[order[-1]])
            batch = order[-max(1, _SCORED_TOKENS // width) :]
            del order[-len(batch) :]
            tokens = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, index in zip(tokens, batch, strict=True):
                row[: len(sequences[index])] = sequences[index]
            tokens = tokens.to(device)
            positions = torch.arange(width, device=device)[None].expand(len(batch), -1)
            logits = self.module(input_ids=tokens, position_ids=positions, use_cache=False).logits
            for row, index in enumerate(batch):
                length = len(sequences[index])
                scores = torch.log_softmax(logits[row, : length - 1].float() / temperature, dim=-1)
                taken = scores.gather(1, tokens[row, 1:length, None])[:, 0].cpu()
                results[index] = torch.cat([torch.zeros(1), taken])
        return results

    def release(self) -> None:
        """Give the memory of the weights back."""
        if self._adapted is not None:
            self._adapted.release()
        for storage in self._storages:
            storage.resize_(0)
        if self.module.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def allocate(self) -> None:
        """Take it again."""
        for storage, size in zip(self._storages, self._sizes, strict=True):
            storage.resize_(size)
        if self._adapted is not None:
            self._adapted.restore()


def as_list(tokens: int | list[int] | None) -> list[int]:
    """Token ids as configurations write them: one, several or none."""
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def _read_config(model: PretrainedConfig | str | os.PathLike[str]) -> tuple[PretrainedConfig, int | list[int] | None]:
    """A configuration of our own, and the end tokens of the generation configuration beside it."""
    if isinstance(model, PretrainedConfig):
        return deepcopy(model), None
    path = Path(model)
    if path.suffix == ".gguf":
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name), None
    config = AutoConfig.from_pretrained(model)
    try:
        return config, GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # the file is optional
        return config, None


def _refuse_unsupported(config: PretrainedConfig) -> None:
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UserError(
            f"the model has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}; "
            "the embedded rollout engine (hf) knows full attention only",
            "use a model whose layers all have full attention",
        )
