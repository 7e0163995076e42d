"""A rollout engine on transformers models, for every machine: laptops, continuous integration, single GPUs.

Invariant: a completion depends on the weights, its prompt, its parameters, its request's id, its sample's number and
the seed; what else is in flight can change it only through the rounding of the model's matrix products. The model is
used by one thread; everything else happens on the caller's event loop.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pentad.config.schema.lora import LoraSettings
from pentad.engines.hf.constants import read_constants
from pentad.engines.hf.decoder import Decoder, DecoderLimits
from pentad.engines.hf.job import Job
from pentad.engines.hf.looks import Looks, on_thread
from pentad.engines.hf.model import HeldModel, as_list
from pentad.engines.protocol import NO_VERSION, EngineFeatures
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel


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
        lora: adapters that the trainer trains, if it does; weights then come once, and adapters after that.

    Raises:
        UserError: the model needs something that this engine cannot do.
    """

    features = EngineFeatures(transports=frozenset({"nccl", "shared", "store"}), adapters=True, tells_constants=True)

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
        lora: LoraSettings | None = None,
    ) -> None:
        device = torch.device(device)
        self._model = HeldModel(model, dtype, device, lora)
        self._eos = {*self._model.eos, *as_list(getattr(tokenizer, "eos_token_id", None)), *eos_token_ids}
        self._has_tokenizer = tokenizer is not None
        self._decoder = Decoder(self._model.module, tokenizer, rows=batch_size, seed=seed, limits=limits)
        use_device = (torch.cuda.set_device, (device,)) if device.index is not None else (None, ())
        self._thread = ThreadPoolExecutor(1, "embedded engine", *use_device)
        self._looks = Looks(self._decoder, self._thread, self._check_ready)
        self._version = NO_VERSION
        self._asleep = self._closed = False

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        return self._version

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response; see `Engine.generate`."""
        if self._looks.paused:
            self._check_open()
        else:
            self._check_ready()
        _check_request(request, self._model.positions, has_tokenizer=self._has_tokenizer)
        return await self._looks.complete(Job(request, tuple(sorted({*self._eos, *request.params.stop_token_ids}))))

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
        """Score given tokens in full forward passes, without the decoder; see `Engine.logprobs`."""
        self._check_ready()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive: {temperature}")
        return await on_thread(self._thread, lambda: self._model.logprobs(sequences, temperature))

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        """What its modules compute with beside weights; see `TellsConstants`."""
        self._check_ready()
        return await on_thread(self._thread, lambda: read_constants(self._model.module, positions))

    async def pause(self, *, abort: bool) -> None:
        """Stop after the look that is being taken; see `Engine.pause`."""
        self._check_open()
        await (self._looks.abort() if abort else self._looks.pause())

    async def resume(self) -> None:
        """Go on after `pause`; see `Engine.resume`."""
        self._check_open()
        self._looks.resume()

    async def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take a whole set of weights, cast to the engine's dtype; see `Engine.load_weights`."""
        if version < 0:
            raise ValueError(f"weight version must not be negative: {version}")
        self._check_awake()
        self._check_still("its weights change")
        self._version = NO_VERSION

        def load() -> Mapping[str, int]:
            self._decoder.suspend()
            held = self._model.load(channel.receive())
            self._decoder.version = version
            return held

        held = await on_thread(self._thread, load)
        self._version = version
        return held

    async def sleep(self) -> None:
        """Free cache and weights; see `Engine.sleep`."""
        self._check_open()
        self._check_still("it sleeps")
        self._version = NO_VERSION
        self._asleep = True
        await on_thread(self._thread, self._decoder.release)
        await on_thread(self._thread, self._model.release)

    async def wake(self) -> None:
        """Take memory for the weights; that for the cache is taken when it is needed."""
        self._check_open()
        await on_thread(self._thread, self._model.allocate)
        self._asleep = False

    async def close(self) -> None:
        """Free cache and weights; requests that were not answered fail."""
        if self._closed:
            return
        self._closed = True
        self._version = NO_VERSION
        await self._looks.fail(RuntimeError("the rollout engine was closed"))
        await on_thread(self._thread, self._decoder.release)
        await on_thread(self._thread, self._model.release)
        self._thread.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the rollout engine was closed")

    def _check_awake(self) -> None:
        self._check_open()
        if self._asleep:
            raise RuntimeError("the rollout engine sleeps; wake it first")

    def _check_ready(self) -> None:
        self._check_awake()
        if self._version == NO_VERSION:
            raise RuntimeError("the rollout engine has no complete set of weights; call load_weights first")

    def _check_still(self, what: str) -> None:
        if self._looks.waited_for and not self._looks.paused:
            raise RuntimeError(f"requests are running; pause the rollout engine before {what}")


def _check_request(request: GenerateRequest, positions: int, *, has_tokenizer: bool) -> None:
    if request.params.stop and not has_tokenizer:
        raise ValueError("stop strings need EmbeddedEngine(tokenizer=...)")
    longest = len(request.prompt_tokens) + request.params.max_tokens
    if longest > positions:
        raise UserError(
            f"prompt and response may take {longest} tokens; the model has {positions} positions",
            "lower rollout.max_response_tokens or data.max_prompt_tokens",
        )
