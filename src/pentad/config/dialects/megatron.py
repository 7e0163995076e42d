"""Keys that several systems hand to Megatron-Core, wherever they keep them: rules for a given prefix."""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects.rules import Nothing, Rule, Unsupported, lacking, nothing, part, take
from pentad.config.dialects.values import count, dtype, flag
from pentad.config.schema.megatron_fields import NEEDS_TRANSFORMER_ENGINE, SETTLED, SUPPORTED

_SIZES = {
    "tensor_model_parallel_size": "t",
    "pipeline_model_parallel_size": "p",
    "virtual_pipeline_model_parallel_size": "v",
    "context_parallel_size": "c",
    "expert_model_parallel_size": "e",
    "expert_tensor_parallel_size": "x",
}
OFFLOAD = "keep parameters, gradients or optimizer states in the memory of the CPU"
_LAYOUT = "in the trainer's layout, such as megatron:d1{letter}2"


def sizes(prefix: str) -> Iterator[Rule]:
    """The trainer's parallel sizes."""
    for name, letter in _SIZES.items():
        example = "p2v" if letter == "v" else letter
        yield part(prefix + name, letter, count, _LAYOUT.format(letter=example))


def passed_on(prefix: str, section: str, here: str) -> Iterator[Rule]:
    """Fields of one of Megatron's dataclasses.

    Args:
        prefix: pattern of the section that holds `section`.
        section: pattern of its name there.
        here: transformer, ddp or optimizer.
    """
    inside = f"{prefix}{section}\\."
    settled = {name: by for name, by in SETTLED[here].items() if name not in _SIZES}
    for name, letter in _SIZES.items() if here == "transformer" else ():
        yield part(inside + name, letter, count, _LAYOUT.format(letter=letter))
    if here == "transformer":
        yield take(f"{inside}deterministic_mode", "megatron.use_deterministic_algorithms", flag)
    yield take(f"{inside}({'|'.join(SUPPORTED[here])})", f"megatron.{here}.\\1", _as_it_is)
    for name, by in settled.items():
        yield nothing(inside + name, f"settled by {by}")
    for name in NEEDS_TRANSFORMER_ENGINE:
        yield lacking(inside + name, "needs Transformer Engine or Apex", (None, False, "null"), learns=False)
    yield lacking(f"{inside}.+", f"a field of Megatron's that is not among those shown to work ({here})")
    yield nothing(prefix + section, "nothing is passed on")


def behind(prefix: str) -> Iterator[Rule]:
    """A whole section as verl, siiRL and Trinity-RFT have it: sizes, offload, checkpoints, passed-on fields."""
    yield from sizes(prefix)
    yield nothing(f"{prefix}sequence_parallel", "sequence parallelism is on whenever t is above 1")
    yield take(f"{prefix}use_distributed_optimizer", "megatron.ddp.use_distributed_optimizer", flag)
    yield lacking(f"{prefix}(param|grad|optimizer|all)_offload\\w*", OFFLOAD, learns=False)
    yield nothing(f"{prefix}(use_mbridge|vanilla_mbridge)", "weights are read from the Hugging Face files in any case")
    note = "a Hugging Face directory, or a checkpoint that `pentad convert` makes of one"
    yield take(f"{prefix}(use_dist_checkpointing|dist_checkpointing_path\\w*)", "model.path", _start, note)
    yield take(f"{prefix}(param_dtype|dtype)", "trainer.dtype", dtype)
    yield nothing(f"{prefix}seed", "experiment.seed seeds everything")
    yield nothing(f"{prefix}(load_weight|forward_only|profile\\..*|load_contents)", "there is no such choice here")
    yield from passed_on(prefix, "override_transformer_config", "transformer")
    yield from passed_on(prefix, "override_ddp_config", "ddp")
    yield from passed_on(prefix, "override_optimizer_config", "optimizer")
    yield nothing(f"{prefix}(override_mcore_model_config|extra)(\\..*)?", "the model is settled by model.path")


def _start(value: Any) -> Any:
    if value in (None, False, "null", ""):
        return Nothing("training starts from the Hugging Face files")
    return Unsupported("start from a checkpoint of Megatron's")


def _as_it_is(value: Any) -> Any:
    return Nothing("null is the default") if value is None else value
