"""Settings of training: how long, how much at once, the optimizer and its schedule, what is logged."""

from typing import Annotated, Literal

from pydantic import Field

from pentad.config.schema.base import Settings


class OptimizerSettings(Settings):
    """`trainer.optimizer.*`: AdamW."""

    lr: float = Field(1e-6, ge=0, description="highest learning rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), strict=False, description="decay of the first and second moment"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 does not clip")


class ScheduleSettings(Settings):
    """`trainer.schedule.*`: the learning rate over optimizer steps."""

    name: Literal["constant", "linear", "cosine"] = Field("constant", description="shape after the warmup")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warmup from 0")
    min_lr_ratio: float = Field(
        0.0, ge=0, le=1, description="rate one step after the last, over the highest (linear, cosine)"
    )


class TrainerSettings(Settings):
    """`trainer.*`"""

    total_steps: int = Field(ge=1, description="rollout batches (grpo) or batches (sft)")
    prompts_per_step: int = Field(64, ge=1, description="prompts (grpo) or rows (sft) a step")
    max_staleness: int = Field(
        0,
        ge=0,
        description="weight publications between sampling and training: 0 is synchronous, 1 one step off, more is "
        "asynchronous; engines need devices of their own",
    )
    tokens_per_microbatch: int = Field(
        4096, ge=1, description="token budget of one microbatch on one data-parallel rank"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: fp32 on CPU, bf16 with fp32 masters on GPU"
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto", description="auto: the fastest that is installed (pentad[kernels]); torch: only what torch brings"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    test_freq: int = Field(0, ge=0, description="evaluate every so many steps, and at the end; 0: only at the end")
    val_before_train: bool = Field(False, description="evaluate before the first step")
    logger: list[Literal["console", "tensorboard", "wandb", "mlflow", "swanlab"]] = Field(
        ["console", "tensorboard"], description="where metrics go, besides the metrics file of the run"
    )
    deadline_s: float = Field(
        1800.0, gt=0, description="longest time that any rank may take for one command, in seconds"
    )
    check_replicas_freq: int = Field(
        10,
        ge=0,
        description="optimizer steps between checks that ranks which should hold the same weights still do; 0: never",
    )
    export: bool = Field(True, description="write the trained model to <run>/model at the end")
    save_freq: int = Field(
        20, ge=0, description="write a checkpoint every so many steps, and at the end; 0: none, and no resume"
    )
    max_ckpt_to_keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: str | None = Field(
        None,
        description="metric of which the checkpoint with the highest value (of a loss on held-out rows, the lowest) is "
        "kept besides, as eval/NAME/accuracy, eval/NAME/pass_at_4 or eval/NAME/loss",
    )
    resume_mode: str = Field(
        "auto",
        description="auto: go on from the newest checkpoint of the run directory, if there is one and "
        "experiment.overwrite is not set; disable: never; or the path of a checkpoint or run to go on from",
    )
    hf_save_freq: int = Field(
        0,
        ge=0,
        description="write the model to <run>/hf/step-N every so many steps, as a Hugging Face directory; 0: never",
    )
    max_skipped_steps: int = Field(
        3, ge=0, description="optimizer steps in a row that may be skipped because a gradient is not finite"
    )
    max_restarts: int = Field(
        0, ge=0, description="times that a run of which a process failed starts again from its last checkpoint"
    )
