"""What a run starts from, as far as it can be read and checked without torch: at once.

Invariant: after `find_sources`, the allocation is possible, the model's files are there and suit it, every row of the
data is well-formed; nothing has been started.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pentad.config.schema.run import RunSettings
from pentad.data.dataset import load_eval_rows, load_train_rows, shared_prompts
from pentad.data.rows import Rows
from pentad.engines.vllm.arguments import passed_problems, sampling_problems
from pentad.errors import UserError
from pentad.extras import require
from pentad.families.model_files import facts_of
from pentad.layout import Allocation, parse_allocation
from pentad.layout.validate import check_layout, check_supported, refuse
from pentad.record.metrics import accuracy_name
from pentad.weights.source import resolve_model


@dataclass(frozen=True)
class Sources:
    """The parts of a run before they are put together.

    Attributes:
        directory: the model as a Hugging Face directory.
        chat_template: contents of `model.chat_template`, if it is set.
        train: rows of `data.train`.
        eval: rows of each evaluation.
    """

    settings: RunSettings
    allocation: Allocation
    directory: Path
    chat_template: str | None
    train: Rows
    eval: dict[str, Rows]

    @property
    def model_bytes(self) -> int:
        """Size of the checkpoint."""
        return sum(path.stat().st_size for path in self.directory.glob("*.safetensors"))

    @property
    def scored(self) -> list[Rows]:
        """What rewards are computed for."""
        return [*self.eval.values(), *([self.train] if self.settings.algorithm.trains_on == "rollouts" else [])]

    @property
    def notices(self) -> list[str]:
        """What of the data is legal and may not be meant, or should be known."""
        found = []
        if self.settings.rollout.sleep and self.allocation.rollout is not None and not self.allocation.colocated:
            found.append(
                f"rollout.sleep = true, but in allocation {self.allocation} the engines share no device with the "
                "trainer, which gets nothing of the memory that they release"
            )
        total, steps = len(self.train), self.settings.trainer.prompts_per_step
        if self.train.held_out:
            found.append(
                f"{self.train.held_out} of {total + self.train.held_out} generated training problems are problems of "
                f"an evaluation too; they are left out, and {total} are trained on"
            )
        for name, rows in self.eval.items():
            if shared := shared_prompts(self.train, rows):
                found.append(
                    f"data.eval.{name}: {shared} of {len(rows)} prompts are prompts of data.train too; what it "
                    "measures is not accuracy on unseen prompts"
                )
        if steps > total:
            found.append(
                f"trainer.prompts_per_step = {steps} is more than the rows of data.train ({total}); each step takes "
                "rows more than once"
            )
        return found


def find_sources(settings: RunSettings) -> Sources:
    """Read and check what needs no torch; a hub model is downloaded, a GGUF file is dequantised (by torch).

    Raises:
        UserError: something is missing, malformed, or does not fit.
    """
    allocation = parse_allocation(settings.allocation)
    refuse(check_supported(allocation), "allocation")
    _check_roles(settings, allocation)
    _check_vllm(settings, allocation)
    for name in settings.data.eval:
        accuracy_name(name)
    chat_template = _read_template(settings.model.chat_template)
    evals = load_eval_rows(settings.data)
    train = load_train_rows(settings.data, evals, with_response=settings.algorithm.trains_on == "examples")
    directory = resolve_model(
        settings.model.path, Path("~/.cache/pentad/gguf").expanduser() / _key(settings.model.path)
    )
    refuse(check_layout(facts_of(str(directory)), allocation.trainer.layout), f"allocation {allocation}")
    return Sources(settings, allocation, directory, chat_template, train, evals)


def _key(path: str) -> str:
    """A directory name for what a GGUF file turns into; changes with the file."""
    file = Path(path).expanduser()
    stat = f"{file.resolve()}:{file.stat().st_size}:{file.stat().st_mtime_ns}" if file.is_file() else path
    return hashlib.sha256(stat.encode()).hexdigest()[:16]


def _check_roles(settings: RunSettings, allocation: Allocation) -> None:
    if settings.algorithm.trains_on == "rollouts" and allocation.rollout is None:
        raise UserError(
            f"allocation {allocation} has no rollout engines, which {settings.algorithm.name} needs",
            f"write hf:d{allocation.trainer.layout.world}|{allocation} to share the devices",
        )
    if settings.algorithm.trains_on == "examples" and allocation.rollout is not None and not settings.data.eval:
        raise UserError(
            f"allocation {allocation} has rollout engines, which {settings.algorithm.name} uses only to evaluate, and "
            "data.eval is empty",
            f"write allocation: {allocation.trainer}",
        )
    if settings.algorithm.trains_on == "examples" and allocation.rollout is None and settings.data.eval:
        raise UserError(
            f"data.eval needs rollout engines, and allocation {allocation} has none",
            f"write allocation: hf:d{allocation.trainer.layout.world}|{allocation}, or leave data.eval out",
        )


def _check_vllm(settings: RunSettings, allocation: Allocation) -> None:
    """Refuse what vLLM cannot do, and settings of its that nothing would read."""
    rollout = settings.rollout
    if allocation.rollout is None or allocation.rollout.backend != "vllm":
        if rollout.vllm:
            raise UserError(
                f"rollout.vllm is set, but allocation {allocation} generates without vLLM",
                "remove rollout.vllm, or write vllm: in allocation",
            )
        return
    require("vllm", "vllm", f"allocation {allocation}", "generate with hf:")
    problems = [
        *sampling_problems(rollout.temperature, rollout.top_p, rollout.eval_temperature),
        *passed_problems(rollout.vllm),
    ]
    for problem in problems:
        raise problem
    if rollout.dtype == "fp32":
        raise UserError("rollout.dtype is fp32; vLLM engines compute in bfloat16", "set rollout.dtype to auto or bf16")


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"model.chat_template: cannot read {path}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"model.chat_template: {path} is not UTF-8: {error}", "save it as UTF-8") from None
