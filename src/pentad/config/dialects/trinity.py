"""Trinity-RFT: `model.model_path`, `buffer.*`, `explorer.*`, `synchronizer.*`, and verl's keys in `trainer_config`."""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.critic import like_verl
from pentad.config.dialects.rules import Dialect, Nothing, Rule, Unsupported, lacking, nothing, part, take
from pentad.config.dialects.verl import actor, rollout

_SPEED = "decides speed and memory only; engine and trainer here choose for themselves"
_ALGORITHMS = {
    "grpo": "grpo",
    "sft": "sft",
    "ppo": "ppo",
    "dpo": "dpo",
    "rloo": "rloo",
    "reinforceplusplus": "reinforce_pp",
    "gspo": "gspo",
    "cispo": "cispo",
}
_REWARDS = {"math_reward": "math", "math_boxed_reward": "math", "gsm8k_reward": "gsm8k", "accuracy_reward": "exact"}
_MONITORS = {"tensorboard": ["console", "tensorboard"], "wandb": ["console", "wandb"], "mlflow": ["console", "mlflow"]}
# The verl part of a configuration: in the file itself, or in one of its own.
_VERL = r"(?:trainer\.trainer_config\.)?actor_rollout_ref\."


def _given(value: Any) -> Any:
    return Nothing("null is the default") if value is None else value


def _monitor(value: Any) -> Any:
    return _MONITORS.get(value) or Unsupported(f"log to {value}", learns=False)


def _reward(value: Any) -> Any:
    return _REWARDS.get(value) or Unsupported(f"the reward {value}: write it as module:function (reward.name)")


def _entropy(value: Any) -> Any:
    known = {"none": False, "default": Nothing("its weight decides"), "basic": Nothing("its weight decides")}
    return v.words(known, "an entropy term by")(value)


def _algorithm() -> Iterator[Rule]:
    prefix = r"algorithm\."
    yield part(rf"{prefix}algorithm_type|trainer\.algorithm_type", "estimator", v.words(_ALGORITHMS, "the algorithm"))
    yield take(rf"{prefix}repeat_times", "rollout.n", v.whole)
    yield take(rf"{prefix}optimizer\.(lr|weight_decay)", r"trainer.optimizer.\1", v.number)
    yield take(rf"{prefix}optimizer\.betas", "trainer.optimizer.betas")
    yield part(rf"{prefix}optimizer\.lr_warmup_steps", "warmup_steps", v.whole)
    yield part(rf"{prefix}optimizer\.lr_warmup_steps_ratio", "warmup_ratio", v.number)
    yield part(rf"{prefix}optimizer\.min_lr_ratio", "min_lr_ratio", v.number)
    yield take(rf"{prefix}optimizer\.(?:warmup_style|lr_scheduler_type)", "trainer.schedule.name", v.schedule)
    yield take(rf"{prefix}optimizer\.(?:clip_grad|grad_clip)", "trainer.optimizer.grad_clip", v.number)
    yield nothing(rf"{prefix}optimizer\..*", "the schedule runs over the whole of the run")
    yield part(rf"{prefix}policy_loss_fn_args\.clip_range", "clip", v.number, "and algorithm.clip_high")
    yield part(rf"{prefix}policy_loss_fn_args\.clip_range_(low|high)", r"clip_\1", v.number)
    yield part(rf"{prefix}(?:policy_loss_fn_args\.)?loss_agg_mode", "mean", v.text, "token or sequence")
    yield Rule(
        rf"{prefix}policy_loss_fn",
        fact="ratio_level",
        convert=v.words({"ppo": "token", "gspo": "sequence", "cispo": "cispo"}, "the policy loss"),
    )
    yield part(rf"{prefix}advantage_fn_args\.std_normalize", "std", v.flag)
    yield part(rf"{prefix}advantage_fn", "advantage_fn", v.words(_ALGORITHMS, "advantages by"))
    yield part(rf"{prefix}advantage_fn_args\.gamma", "gamma", v.number)
    yield part(rf"{prefix}advantage_fn_args\.lam", "gae_lambda", v.number)
    yield part(
        rf"{prefix}kl_loss_fn",
        "kl_loss_type",
        v.words(
            {"k1": "k1", "k2": "k2", "k3": "k3", "low_var_kl": "k3", "none": Nothing("no KL penalty")},
            "a KL penalty by",
        ),
    )
    yield part(rf"{prefix}kl_loss_fn_args\.kl_coef", "kl_loss_coef", v.number, "0 switches it off")
    yield part(
        rf"{prefix}kl_penalty_fn",
        "kl_reward_type",
        v.words(
            {"none": Nothing("no KL penalty in the reward"), "k1": "k1", "k2": "k2", "k3": "k3"}, "a KL penalty by"
        ),
    )
    yield part(rf"{prefix}kl_penalty_fn_args\.kl_coef", "kl_reward_coef", v.number)
    yield part(rf"{prefix}entropy_loss_fn_args\.entropy_coef", "entropy", v.number)
    yield Rule(rf"{prefix}entropy_loss_fn", fact="entropy_on", convert=_entropy)
    yield Rule(rf"{prefix}sample_strategy", does="another choice of samples", off=("default", "warmup", None))
    yield Rule(rf"{prefix}add_strategy", does="another way of adding samples", off=(None,))
    yield lacking(rf"{prefix}\w+_args\..*", "an argument of another strategy", (None,))
    yield nothing(rf"{prefix}use_critic", "the algorithm decides")


def _model() -> Iterator[Rule]:
    yield take(r"model\.model_path", "model.path", v.text)
    yield part(r"model\.max_prompt_tokens", "max_prompt", v.whole)
    yield part(r"model\.max_response_tokens", "max_response", v.whole)
    yield part(r"model\.max_model_len", "max_length", v.whole, "of prompt and response together")
    yield Rule(r"model\.(min_response_tokens)", does="a least length of responses", off=(0, 1, None))
    yield Rule(
        r"model\.enable_prompt_truncation",
        fact="truncation",
        convert=lambda value: Unsupported("train on cut prompts") if v.flag(value) is True else "error",
    )
    yield lacking(
        r"model\.(custom_chat_template|chat_template_path|rope_\w+)(\..*)?",
        "another chat template or rotary embedding",
        (None,),
    )
    yield take(r"model\.critic_model_path", "critic.model", v.text)
    yield nothing(r"model\.(checkpoint_path|trust_remote_code)", "a directory of Trinity-RFT's own")
    yield part(r"model\.lora_configs\.lora_rank", "lora_rank", v.whole)
    yield part(r"model\.lora_configs\.lora_alpha", "lora_alpha", v.number)
    yield part(r"model\.lora_configs\.target_modules", "lora_targets", v.lora_targets)
    yield take(r"model\.lora_configs\.lora_dropout", "model.lora.dropout", v.number)
    yield nothing(r"model\.lora_configs(\..*)?", "adapters are sent as other weights are")
    yield part(r"cluster\.node_num", "nodes", v.whole)
    yield part(r"cluster\.gpu_per_node", "gpus_per_node", v.whole)
    yield nothing(r"cluster\..*", "Ray is started with the run")


def _buffer() -> Iterator[Rule]:
    yield part(r"buffer\.batch_size", "prompts", v.whole)
    yield part(r"buffer\.train_batch_size", "mini_samples", v.whole)
    yield part(r"buffer\.total_epochs", "epochs", v.whole, "counted in steps")
    yield part(r"buffer\.total_steps|trainer\.total_steps", "steps", _given)
    task = r"buffer\.explorer_input\.taskset\."
    yield part(rf"{task}path", "train", v.text)
    yield part(rf"{task}subset_name", "train_config", _given)
    yield part(rf"{task}split", "train_split", v.text)
    yield take(rf"{task}format\.prompt_key", "data.prompt_column", v.text)
    yield Rule(
        rf"{task}format\.response_key",
        does="another column of right answers than answer or ground_truth",
        off=("answer", "ground_truth", None),
    )
    yield take(
        rf"{task}format\.system_prompt|buffer\.explorer_input\.system_prompt|buffer\.system_prompt",
        "data.system_prompt",
        _given,
    )
    yield Rule(rf"{task}format\.prompt_type", does="another kind of prompts", off=("plaintext", "messages", None))
    yield lacking(rf"{task}format\..*", "another column", (None,))
    yield take(rf"{task}rollout_args\.(temperature|top_p)", r"rollout.\1", v.number)
    yield take(rf"{task}rollout_args\.n", "rollout.n", v.whole)
    yield lacking(rf"{task}rollout_args\.top_k", "sample from the most likely tokens only", (None, -1, 0))
    yield part(rf"{task}rollout_args\.max_tokens", "max_response", v.whole)
    yield nothing(rf"{task}rollout_args\.\w+", "engines give log-probs in any case")
    reward = rf"(?:{task}|buffer\.explorer_input\.|buffer\.)(?:default_reward_fn_type|reward_fn_type)"
    yield take(reward, "reward.name", _reward)
    workflow = rf"(?:{task}|buffer\.explorer_input\.|buffer\.|data\.)(?:default_workflow_type|workflow_type)"
    yield take(workflow, "reward.name", _workflow)
    yield lacking(
        rf"(?:{task}|buffer\.explorer_input\.)(?:default_)?workflow_args(\..*)?", "arguments of a workflow", (None, {})
    )
    yield Rule(
        rf"{task}task_selector\.selector_type",
        does="rows in an order of their own",
        off=("sequential", "shuffle", "random", None),
    )
    yield nothing(
        rf"{task}(name|storage_type|enable_progress_bar|rollout_args|repeat_times|index|task_selector.*"
        r"|total_\w+|task_id|format)",
        "a source is named by its path",
    )
    yield Rule(r"buffer\.explorer_input\.(eval_tasksets|eval_interval)", key="data.eval", convert=_eval_tasks)
    yield nothing(r"buffer\.trainer_input\.experience_buffer(\..*)?", "samples stay in the memory of the run")
    yield lacking(r"buffer\.trainer_input\..*", "train on other samples than the run's own", (None, {}))
    yield lacking(r"buffer\.\w*warmup\w*(\..*)?", "supervised tuning first: a run of its own", (None, 0))
    yield nothing(
        r"buffer\.(max_retry_\w+|pad_token_id|cache_dir|explorer_output|buffer_type)(\..*)?",
        "samples stay in the memory of the run",
    )


def _workflow(value: Any) -> Any:
    if value in ("math_workflow", "math_boxed_workflow"):
        return Nothing("one answer a problem; reward.name decides how it is scored")
    return Unsupported(f"the workflow {value}: here a sample is one response, scored by reward.name")


def _eval_tasks(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        return Nothing("there are none")
    found: dict[str, str] = {}
    for number, task in enumerate(value):
        if not isinstance(task, dict) or not isinstance(task.get("path"), str):
            return Unsupported("an evaluation without a path", learns=False)
        parts = [task["path"], task.get("subset_name"), task.get("split")]
        name = v.safe_name(str(task.get("name") or f"eval-{number + 1}"))
        found[name] = hub_source(*parts)
    return found


def hub_source(path: str, config: str | None, split: str | None) -> str:
    """A file as it is; a dataset of the hub as `hf:NAME[:CONFIG][:SPLIT]`."""
    if path.startswith(("/", ".", "~", "$")) or path.endswith((".jsonl", ".parquet")):
        return path
    return ":".join(["hf", path, *(part for part in (config, split) if part)])


def _explorer() -> Iterator[Rule]:
    model = r"explorer\.(?:rollout_model\.)?"
    yield part(rf"{model}engine_type", "engine", v.text)
    yield part(rf"{model}engine_num", "engine_d", v.whole)
    yield part(rf"{model}tensor_parallel_size", "engine_t", v.count)
    yield take(rf"{model}(enforce_eager|enable_prefix_caching|enable_chunked_prefill)", r"rollout.vllm.\1", _given)
    yield part(rf"{model}gpu_memory_utilization", "vllm_share", v.number)
    yield take(rf"{model}dtype", "rollout.dtype", v.dtype)
    yield take(rf"{model}(temperature|top_p)", r"rollout.\1", v.number)
    yield part(rf"{model}max_prompt_tokens", "max_prompt", _given)
    yield part(rf"{model}max_response_tokens", "max_response", _given)
    yield part(rf"{model}max_model_len", "max_length", _given)
    yield take(r"explorer\.repeat_times", "rollout.n", v.whole)
    yield lacking(
        rf"{model}(enable_thinking|reasoning_parser|tool_call_parser|enable_auto_tool_choice|chat_template)",
        "reasoning or tools by the engine",
    )
    yield nothing(
        rf"{model}(seed|use_v1|logprobs|enable_openai_api|enable_history|bundle_\w+|model_path|top_k"
        r"|ignore_eos|enable_log_requests|enable_lora|lora_\w+|enable_return_routed_experts|base_port)",
        _SPEED,
    )
    yield lacking(r"explorer\.auxiliary_models(\..*)?", "further models, such as judges", (None, []))
    yield take(r"(?:explorer|trainer)\.eval_interval", "trainer.test_freq", v.every)
    yield take(r"explorer\.eval_on_startup", "trainer.val_before_train", v.flag)
    yield take(r"explorer\.max_timeout", "rollout.deadline_s", v.number)
    yield nothing(r"explorer\..*", _SPEED)


def _trainer() -> Iterator[Rule]:
    yield Rule(r"mode", does="another mode than training with exploration", off=("both",))
    yield part(r"name|monitor\.name", "name", v.text)
    yield nothing(r"project|group|monitor\.project", "a run is named by experiment.name alone")
    yield take(r"checkpoint_root_dir", "experiment.dir", v.text, "of the run itself: one directory")
    yield part(r"continue_from_checkpoint", "resume", lambda value: "auto" if v.flag(value) is True else "disable")
    yield part(r"synchronizer\.sync_interval", "sync_interval", v.whole)
    yield part(r"synchronizer\.sync_offset", "sync_offset", v.whole)
    yield Rule(r"synchronizer\.sync_style", does="weights that are sent when they are asked for", off=("fixed", None))
    yield nothing(r"synchronizer\..*", "weights are sent after each step, and proven")
    yield part(r"trainer\.trainer_strategy", "trainer_backend", v.text)
    yield take(r"trainer\.save_interval", "trainer.save_freq", v.every)
    yield take(r"trainer\.max_checkpoints_to_keep", "trainer.max_ckpt_to_keep", v.keep)
    yield take(r"trainer\.grad_clip", "trainer.optimizer.grad_clip", v.number)
    yield part(r"trainer\.use_dynamic_bsz", "dynamic", v.flag)
    yield part(r"trainer\.max_token_len_per_gpu", "micro_tokens", v.whole)
    yield part(r"trainer\.ulysses_sequence_parallel_size", "c", v.count)
    yield nothing(r"trainer\.(name|trainer_type|enable_preview|save_hf_checkpoint|fix_actor_\w+|save_strategy)", _SPEED)
    yield part(r"trainer\.actor_(?:clip_ratio)", "clip", v.number)
    yield lacking(r"trainer\.(actor_\w+|sft_warmup_steps)", "an argument of an older algorithm", (None, 0))
    yield nothing(r"trainer\.trainer_config_path", "what it names was read with this file")
    yield take(r"monitor\.monitor_type", "trainer.logger", _monitor)
    yield take(r"trainer\.trainer_config\.trainer\.critic_warmup", "critic.warmup_steps", v.whole)
    yield take(r"trainer\.trainer_config\.trainer\.max_actor_ckpt_to_keep", "trainer.max_ckpt_to_keep", v.keep)
    yield nothing(
        r"trainer\.trainer_config\.(trainer|algorithm|data|custom_reward_function|reward_model)\..*",
        "set by Trinity-RFT itself",
    )
    yield from like_verl(r"(?:trainer\.trainer_config\.)?critic\.")
    yield nothing(
        r"(monitor|log|ray_namespace|ray_init_kwargs|service|checkpoint_job_dir|stages)(\..*)?",
        "a service of Trinity-RFT's own",
    )
    yield lacking(r"data_processor(\..*)?", "change tasks or samples before training", (None, {}))


TRINITY = Dialect(
    name="trinity",
    title="Trinity-RFT",
    rules=(*_algorithm(), *_model(), *_buffer(), *_explorer(), *_trainer(), *actor(_VERL), *rollout(_VERL)),
    signs=(
        r"buffer\..*",
        r"explorer\..*",
        r"synchronizer\..*",
        r"model\.model_path",
        r"cluster\.(node_num|gpu_per_node)",
        r"algorithm\.algorithm_type",
        r"trainer\.trainer_config\..*",
        r"monitor\.monitor_type",
    ),
    modules=("trinity",),
    defaults={
        "algorithm.repeat_times": 1,
        "algorithm.optimizer.lr": 1e-6,
        "algorithm.optimizer.weight_decay": 0.01,
        "algorithm.optimizer.betas": [0.9, 0.999],
        "buffer.batch_size": 1,
        "buffer.total_epochs": 1,
        "synchronizer.sync_interval": 1,
        "synchronizer.sync_offset": 0,
        "explorer.rollout_model.engine_type": "vllm",
        "explorer.rollout_model.engine_num": 1,
        "algorithm.policy_loss_fn_args.clip_range": 0.2,
        "algorithm.kl_loss_fn": "k2",
        "algorithm.kl_loss_fn_args.kl_coef": 0.001,
        "trainer.save_interval": 0,
    },
    colocated=False,
)
