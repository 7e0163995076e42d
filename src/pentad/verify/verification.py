"""One model on many layouts, each compared with one process.

Invariant: every layout computes the same batch from the same checkpoint, in processes of its own group; a layout that
fails leaves nothing behind that could touch the next.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, Literal, Self

import torch

from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.errors import UserError
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.verify.batch import make_batch
from pentad.verify.findings import BOUNDS, Quantity, Report, judge, named
from pentad.verify.models import value_head, write_random_adapter
from pentad.verify.oracle import consult
from pentad.verify.processes import RankFailedError, Ranks
from pentad.verify.rank import Job, compute, warm_up
from pentad.verify.reference import Reference
from pentad.weights.source import load_config

Precision = Literal["fp32", "bf16"]

_WARM_UP_S = 300.0


class Verification:
    """Computes the reference first; then one layout after the other.

    Args:
        checkpoint: a Hugging Face directory, of a language model or of a critic.
        dtype: what is computed in, by the layouts and by the process that they are compared with.
        devices: GPUs that may be used; 0 computes on the CPU.
        megatron: settings that training would have.
        deadline_s: longest time of one layout.
        lora: adapters to train instead of the model; those that are begun from are random.

    Raises:
        UserError: the model is not supported or cannot be read; a setting cannot be verified.
        RankFailedError: one process cannot compute the model.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: Precision = "fp32",
        devices: int = 0,
        megatron: MegatronSettings | None = None,
        deadline_s: float = 120.0,
        lora: LoraSettings | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype: Precision = dtype
        self.bounds = BOUNDS[dtype]
        self.devices = devices
        self.deadline_s = deadline_s
        self.megatron = megatron or MegatronSettings()
        _check_losses(self.megatron)
        config = load_config(checkpoint)
        self.scored = "values" if value_head(config) else "log-probs"
        self.batch: Batch = make_batch(config.vocab_size)
        self._ranks: Ranks | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="pentad-verify-")
        try:
            self._reference = Path(self._folder.name) / "reference"
            self.lora = lora
            if lora is not None:
                kept = torch.float32 if dtype == "fp32" else torch.bfloat16
                self.lora = write_random_adapter(checkpoint, lora, Path(self._folder.name) / "adapter", kept)
            self._call(compute, 1, self._job(Layout(), writes=True))
            self.parameters = Reference(self._reference).names("weights")
            self.trained = Reference(self._reference).names()
        except BaseException:
            self.close()
            raise

    def check(self, layout: Layout) -> Report:
        """Compute a layout and compare it with one process."""
        started = time.monotonic()
        try:
            ranks = self._call(compute, layout.world, self._job(layout, writes=False))
        except (RankFailedError, UserError) as error:
            # Megatron may refuse a setting on some layouts only; the others are still worth knowing.
            return Report(f"megatron:{layout}", layout.world, time.monotonic() - started, error=str(error))
        return judge(
            f"megatron:{layout}",
            time.monotonic() - started,
            ranks,
            self.bounds,
            parameters=self.parameters,
            trained=self.trained,
            samples=self.batch.sample_ids.tolist(),
            scored=self.scored,
        )

    def check_transformers(self) -> Report:
        """Compare one process with transformers in float32: scores, and in fp32 loss and gradients as well."""
        started, exact = time.monotonic(), self.dtype == "fp32"
        try:
            found = self._call(consult, 1, self.checkpoint, self._reference, exact, self.lora)[0]
        except RankFailedError as error:
            return Report("transformers", 1, time.monotonic() - started, error=str(error))
        quantities = {self.scored: Quantity.of(named("sample", found.logprobs), self.bounds.logprobs)}
        if exact:
            quantities |= {
                "loss": Quantity.of(named("step", found.losses), self.bounds.loss),
                "gradient norm": Quantity.of(named("step", found.grad_norms), self.bounds.grad_norm),
                "gradients": Quantity.of(found.gradients, self.bounds.gradients),
            }
        return Report("transformers", 1, time.monotonic() - started, quantities)

    def close(self) -> None:
        """End all processes and remove all files."""
        self._stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, layout: Layout, *, writes: bool) -> Job:
        return Job(
            layout, self.checkpoint, self._reference, writes, self.dtype, self.megatron, self.deadline_s, self.lora
        )

    def _call(self, function: Any, world: int, *arguments: Any) -> list[Any]:
        """On GPUs processes are kept, as they take long to start; on the CPU a fork is quicker than cleaning up."""
        try:
            if self._ranks is None:
                self._ranks = self._start(world)
            return self._ranks.call(function, world, *arguments, deadline_s=self.deadline_s)
        except BaseException:
            self._stop()
            raise
        finally:
            if not self.devices:
                self._stop()

    def _start(self, world: int) -> Ranks:
        if not self.devices:
            return Ranks(world, "fork")
        ranks = Ranks(self.devices, "spawn")
        try:
            # Imports are no part of a layout's time.
            ranks.call(warm_up, self.devices, deadline_s=_WARM_UP_S)
        except BaseException:
            ranks.close()
            raise
        return ranks

    def _stop(self) -> None:
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None


def _check_losses(megatron: MegatronSettings) -> None:
    asked = [name for name in ("moe_aux_loss_coeff", "moe_z_loss_coeff") if megatron.transformer.get(name)]
    if asked:
        raise UserError(
            f"megatron.transformer.{asked[0]} cannot be verified: what pads a pack takes part in that loss, "
            "and it is of a microbatch, of which layouts have different ones",
            "leave it out here; it may be used in training",
        )


def usable_devices() -> int:
    """GPUs of this machine; 0 where ranks compute on the CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_devices(layout: Layout, devices: int) -> None:
    """
    Raises:
        UserError: a layout needs more GPUs than there are.
    """
    if devices and layout.world > devices:
        raise UserError(
            f"megatron:{layout} needs {layout.world} GPUs, and this machine has {devices}",
            f"verify layouts of {devices} or fewer here, or run on the CPU with CUDA_VISIBLE_DEVICES= (empty)",
        )
