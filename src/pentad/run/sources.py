"""What a run starts from, as far as it can be read and checked without torch: at once.

Invariant: after `find_sources`, the allocation is possible, the model's files are there and suit it, every row of the
data is well-formed; nothing has been started.
"""

from dataclasses import dataclass
from pathlib import Path

from pentad.config.loading.load import join
from pentad.config.schema.run import RunSettings
from pentad.data.dataset import load_eval_rows, load_train_rows, shared_prompts
from pentad.data.rows import Rows
from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.families.model_files import facts_of
from pentad.layout import Allocation, Component, parse_allocation
from pentad.layout.megatron_checks import check_transformer
from pentad.layout.validate import check_engine, check_layout, refuse
from pentad.planning.adapters import adapter_work, trained_parameters
from pentad.planning.parameters import model_parameters
from pentad.record.checkpoints import sound
from pentad.run.allocation import check_allocation
from pentad.run.gpu_memory import check_gpus
from pentad.weights.source import CRITIC, checkpoint_of, gguf_cache, is_checkpoint, resolve_critic, resolve_model


@dataclass(frozen=True)
class Sources:
    """The parts of a run before they are put together.

    Attributes:
        directory: the model as a Hugging Face directory.
        chat_template: contents of `model.chat_template`, if it is set.
        train: rows of `data.train`.
        eval: rows of each evaluation.
        critic: what the critic begins with, as a directory; None where there is no critic.
    """

    settings: RunSettings
    allocation: Allocation
    directory: Path
    chat_template: str | None
    train: Rows
    eval: dict[str, Rows]
    critic: Path | None = None

    @property
    def model_bytes(self) -> int:
        """Size of the model's files of weights; of a checkpoint, which may hold more, as if they were float32."""
        files = sum(path.stat().st_size for path in self.directory.glob("*.safetensors"))
        return files or 4 * model_parameters(facts_of(str(self.directory)))

    @property
    def written_bytes(self) -> int:
        """What the run will have on the disk in all: the exported models, and float32 masters and moments."""
        trainer = self.settings.trainer
        models = int(trainer.export) + (trainer.total_steps // trainer.hf_save_freq if trainer.hf_save_freq else 0)
        # One more while the newest is being written.
        checkpoints = trainer.max_ckpt_to_keep + (trainer.keep_best is not None) + 1 if trainer.save_freq else 0
        if trainer.save_freq:
            checkpoints = min(checkpoints, -(-trainer.total_steps // trainer.save_freq))
        whole, share = model_parameters(facts_of(str(self.directory))), self.trained_share
        if share is not None:
            return int((models * 4 + checkpoints * 12) * share * whole)
        written = models * self.model_bytes + checkpoints * 12 * whole
        if self.critic is not None:
            each = checkpoints * 12 + 4 * self.settings.critic.export
            written += each * model_parameters(critic_facts(self.critic))
        return written

    @property
    def trained_share(self) -> float | None:
        """Parameters of the adapters that are trained, over those of the model; None where the model itself is."""
        if (lora := self.settings.model.adapters) is None:
            return None
        facts = facts_of(str(self.directory))
        work = adapter_work(lora, facts, self.allocation.trainer.layout)
        return trained_parameters(facts, work) / model_parameters(facts)

    @property
    def scored(self) -> list[Rows]:
        """What `reward.*` is computed for; not the evaluations that have rewards of their own."""
        own = {name for name, one in self.settings.data.eval.items() if not one.generates or one.reward is not None}
        evaluated = [rows for name, rows in self.eval.items() if name not in own]
        return [*evaluated, *([self.train] if self.settings.algorithm.trains_on == "rollouts" else [])]

    @property
    def said(self) -> list[str]:
        """Which columns of each source are taken for what."""
        return [line for rows in (self.train, *self.eval.values()) for line in rows.said]

    @property
    def notices(self) -> list[str]:
        """What is legal and may not be meant, or should be known."""
        found = []
        if (share := self.trained_share) is not None:
            rank = self.settings.model.lora.rank
            found.append(f"LoRA of rank {rank}: what is trained has {share:.2%} of the model's number of parameters")
        if self.settings.rollout.sleep and self.allocation.rollout is not None and not self.allocation.colocated:
            found.append(
                f"rollout.sleep = true, but in allocation {self.allocation} the engines share no device with the "
                "trainer, which gets nothing of the memory that they release"
            )
        trainer = self.settings.trainer
        checked = trainer.check_replicas_freq if "check_replicas_freq" in trainer.model_fields_set else 0
        trained = [self.allocation.home(role) for role in self.settings.algorithm.roles - {"reference"}]
        if checked and all(component.layout.world == 1 for component in trained):
            found.append(
                f"trainer.check_replicas_freq = {checked}, but allocation {self.allocation} has one trainer rank: "
                "there are no copies of weights to compare, and nothing is checked"
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
    if wrong := list(check_allocation(settings)):
        raise join(wrong, "allocation")
    allocation = parse_allocation(settings.allocation)
    chat_template = read_template(settings.model.chat_template)
    with_response = settings.algorithm.trains_on == "examples"
    evals = load_eval_rows(settings.data, with_response=with_response)
    train = load_train_rows(settings.data, evals, with_response=with_response)
    directory = resolve_model(settings.model.path, gguf_cache(settings.model.path))
    if (checkpoint := checkpoint_of(directory)) is not None:
        sound(checkpoint)
    facts, layout = facts_of(str(directory)), allocation.trainer.layout
    if facts.value_head:
        raise UserError(
            f"model.path: {directory} is a critic: it gives values, and has no output layer to sample from",
            "name a language model; a critic may be named in critic.model",
        )
    for component, roles in allocation.homes(settings.algorithm.roles).items():
        if roles != ["critic"]:
            refuse(check_layout(facts, component.layout), _subject(allocation, component))
            problems = check_transformer(facts, component.layout, settings.megatron.transformer)
            refuse(problems, "megatron.transformer")
    if allocation.rollout is not None:
        refuse(check_engine(facts, allocation.rollout), f"allocation {allocation}")
    if (lora := settings.model.adapters) is not None:
        adapter_work(lora, facts, layout)
    critic = _find_critic(settings, directory, allocation)
    check_gpus(settings, facts, allocation, None if critic is None else critic_facts(critic))
    return Sources(settings, allocation, directory, chat_template, train, evals, critic)


def critic_facts(directory: Path) -> ModelFacts:
    """The facts of the critic that begins with a directory."""
    return facts_of(str(directory)).as_critic()


def _find_critic(settings: RunSettings, policy: Path, allocation: Allocation) -> Path | None:
    if "critic" not in settings.algorithm.roles:
        return None
    component = allocation.home("critic")
    if settings.critic.model is None:
        _check_critic(settings, critic_facts(policy), _subject(allocation, component), component)
        return policy
    directory = resolve_critic(settings.critic.model)
    is_own = directory.name == CRITIC and is_checkpoint(directory.parent)
    checkpoint = directory.parent if is_own else checkpoint_of(directory)
    if checkpoint is not None:
        sound(checkpoint)
    _check_critic(settings, critic_facts(directory), f"critic.model on {_subject(allocation, component)}", component)
    return directory


def _check_critic(settings: RunSettings, facts: ModelFacts, subject: str, component: Component) -> None:
    refuse(check_layout(facts, component.layout), subject)
    problems = check_transformer(facts, component.layout, settings.megatron.transformer)
    refuse(problems, "megatron.transformer with the critic")


def _subject(allocation: Allocation, component: Component) -> str:
    return f"allocation {allocation}" + ("" if component == allocation.trainer else f": {component}")


def read_template(path: Path | None) -> str | None:
    """The chat template in a file; None for no file.

    Raises:
        UserError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"model.chat_template: cannot read {path}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"model.chat_template: {path} is not UTF-8: {error}", "save it as UTF-8") from None
