"""A rollout engine on transformers models, for every machine: laptops, continuous integration, single GPUs.

Invariant: a completion depends on the weights, its prompt, its parameters, its request's id and the seed; what else
is in the batch can change it only through the rounding of the model's matrix products.
"""

import gc
import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from pentad.engines.hf.cache import cache_shape
from pentad.engines.hf.decoder import Decoder, DecoderLimits
from pentad.engines.hf.head import use_float_logits
from pentad.engines.protocol import Progress
from pentad.errors import UserError
from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.table import WeightTable

NO_VERSION = -1
_PROBE_TOKENS = 4096
_MAX_TOKENS_STEP = 64
_CAPACITY_STEP = 128
_STOP_IDS = 8


class EmbeddedEngine:
    """Generates with a transformers causal language model whose weights come from the trainer.

    Args:
        model: configuration, or where it is: a Hugging Face directory, a hub id or a .gguf file. Weights are not read.
        dtype: of weights, activations and cache; log-probs are float32 in any case.
        device: where to compute.
        batch_size: sequences decoded at once.
        seed: goes into every random number; the same seed and requests give the same completions.
        tokenizer: needed for requests with stop strings; its end-of-sequence token ends responses.
        eos_token_ids: end responses besides the tokenizer's and those of the model's (generation) configuration.
        limits: trade-offs of the decoder; by default those of the device.

    Raises:
        UserError: the model needs something that this engine cannot do.
    """

    def __init__(
        self,
        model: PretrainedConfig | str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eos_token_ids: Iterable[int] = (),
        limits: DecoderLimits | None = None,
    ) -> None:
        config, generation_eos = _read_config(model)
        _refuse_unsupported(config)
        self._device = torch.device(device)
        self._batch_size, self._seed, self._limits = batch_size, seed, limits
        self._tokenizer = tokenizer
        sources = (config.eos_token_id, generation_eos, getattr(tokenizer, "eos_token_id", None), list(eos_token_ids))
        self._eos = sorted({token for source in sources for token in _as_list(source)})
        with self._device, no_init_weights():
            self._model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        use_float_logits(self._model)
        self._model.tie_weights()
        self._model.requires_grad_(False).eval()
        self._weights = WeightTable(self._model)
        self._version = NO_VERSION
        self._decoder: Decoder | None = None
        self._asleep = False

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        return self._version

    def expected_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that `load_weights` needs, by their Hugging Face checkpoint names."""
        return self._weights.shapes()

    def load_weights(self, chunks: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take a whole set of weights, each expected tensor exactly once, in any order, cast to the engine's dtype.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen. The engine then has no version,
                and generates nothing, until a whole set has arrived.
        """
        if version < 0:
            raise ValueError(f"weight version must not be negative: {version}")
        self._check_awake()
        self._version = NO_VERSION
        self._weights.load(chunks)
        self._version = version

    def checksums(self) -> dict[str, int]:
        """Checksum of every weight as this engine holds it, by `pentad.weights.table.checksum`."""
        return self._weights.checksums()

    def generate(self, requests: Sequence[GenerateRequest], progress: Progress | None = None) -> list[list[Completion]]:
        """Complete every request: `result[i]` holds the `n` completions of `requests[i]`, in sample order.

        Raises:
            UserError: a sequence could grow past the model's positions, or the cache does not fit on the GPU.
            RuntimeError: there are no weights, or the engine sleeps.
            ValueError: there are stop strings but no tokenizer.
        """
        self._check_ready()
        if not requests:
            return []
        if self._tokenizer is None and any(request.params.stop for request in requests):
            raise ValueError("stop strings need EmbeddedEngine(tokenizer=...)")
        stop_ids = [sorted({*self._eos, *request.params.stop_token_ids}) for request in requests]
        decoder = self._decoder_for(requests, max(map(len, stop_ids)))
        return decoder.run(requests, stop_ids, self._version, progress)

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
        """Score given tokens in full forward passes, without the decoder.

        Args:
            sequences: int64 `[L]` each, L >= 1.
            temperature: divides the logits; positive.

        Returns:
            float32 `[L]` each, on the CPU: entry `i` is `log p(token i | earlier tokens)`, and entry 0 is 0.
        """
        self._check_ready()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive: {temperature}")
        results: list[Tensor] = [torch.empty(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        while order:
            width = len(sequences[order[-1]])
            batch = order[-max(1, _PROBE_TOKENS // width) :]
            del order[-len(batch) :]
            tokens = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, index in zip(tokens, batch, strict=True):
                row[: len(sequences[index])] = sequences[index]
            tokens = tokens.to(self._device)
            positions = torch.arange(width, device=self._device)[None].expand(len(batch), -1)
            logits = self._model(input_ids=tokens, position_ids=positions, use_cache=False).logits
            for row, index in enumerate(batch):
                length = len(sequences[index])
                scores = torch.log_softmax(logits[row, : length - 1].float() / temperature, dim=-1)
                taken = scores.gather(1, tokens[row, 1:length, None])[:, 0].cpu()
                results[index] = torch.cat([torch.zeros(1), taken])
        return results

    def sleep(self) -> None:
        """Free the cache and move the weights to host memory until `wake`."""
        self._decoder = None
        self._asleep = True
        self._move(torch.device("cpu"))

    def wake(self) -> None:
        """Move the weights back; the cache is allocated again by the next `generate`."""
        self._move(self._device)
        self._asleep = False

    def close(self) -> None:
        """Free cache and weights. The engine cannot be used afterwards."""
        self._decoder = None
        self._asleep = True
        self._version = NO_VERSION
        self._move(torch.device("meta"))

    def _move(self, device: torch.device) -> None:
        if self._model.device != device:
            self._model.to(device)
            if device.type != "meta":
                self._weights = WeightTable(self._model)
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _check_awake(self) -> None:
        if self._asleep:
            raise RuntimeError("the rollout engine sleeps; wake it first")

    def _check_ready(self) -> None:
        self._check_awake()
        if self._version == NO_VERSION:
            raise RuntimeError("the rollout engine has no complete set of weights; call load_weights first")

    def _decoder_for(self, requests: Sequence[GenerateRequest], stop_ids: int) -> Decoder:
        """The decoder in use, or a new one where the requests need longer buffers than it has."""
        max_tokens = max(request.params.max_tokens for request in requests)
        longest = max(len(request.prompt_tokens) + request.params.max_tokens for request in requests)
        positions = self._model.config.max_position_embeddings
        if longest > positions:
            raise UserError(
                f"prompt and response may take {longest} tokens; the model has {positions} positions",
                "lower rollout.max_response_tokens or data.max_prompt_tokens",
            )
        old = self._decoder
        if old and longest <= old.capacity and max_tokens <= old.max_tokens and stop_ids <= old.stop_ids:
            return old
        # Never shrink: training and evaluation alternate, and a new decoder means new CUDA graphs.
        capacity = max(_round_up(longest, _CAPACITY_STEP), old.capacity if old else 0)
        max_tokens = max(_round_up(max_tokens, _MAX_TOKENS_STEP), old.max_tokens if old else 0)
        stop_ids = max(_round_up(stop_ids, _STOP_IDS), old.stop_ids if old else 0)
        del old
        self._decoder = None
        self._check_memory(capacity)
        self._decoder = Decoder(
            self._model,
            self._tokenizer,
            rows=self._batch_size,
            capacity=capacity,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            seed=self._seed,
            limits=self._limits,
        )
        return self._decoder

    def _check_memory(self, capacity: int) -> None:
        if self._device.type != "cuda":
            return
        gc.collect()
        torch.cuda.empty_cache()
        config = self._model.config
        elements = torch.Size(cache_shape(config, self._batch_size, capacity)).numel() * config.num_hidden_layers * 2
        needed = elements * self._model.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(self._device)
        if needed > free:
            raise UserError(
                f"the key/value cache of {self._batch_size} sequences of {capacity} tokens takes {needed / 2**30:.1f} "
                f"GiB; the GPU has {free / 2**30:.1f} GiB free",
                f"lower rollout.batch_size to {max(1, int(self._batch_size * 0.9 * free / needed))}",
            )


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


def _as_list(tokens: int | list[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
