set -x
# Colocated GRPO, in the manner of SkyRL's Megatron examples.
DATA_DIR="data/gsm8k"
NUM_GPUS=4
LOGGER="wandb"
TP=2
uv run --isolated --extra mcore -m skyrl_train.entrypoints.main_base \
  data.train_data="['$DATA_DIR/train.parquet']" \
  data.val_data="['$DATA_DIR/validation.parquet']" \
  trainer.algorithm.advantage_estimator="grpo" \
  trainer.policy.model.path=Qwen/Qwen3-0.6B \
  trainer.placement.colocate_all=true \
  trainer.strategy=megatron \
  trainer.placement.policy_num_gpus_per_node=$NUM_GPUS \
  trainer.placement.ref_num_gpus_per_node=$NUM_GPUS \
  generator.num_inference_engines=$NUM_GPUS \
  generator.inference_engine_tensor_parallel_size=1 \
  trainer.policy.megatron_config.tensor_model_parallel_size=$TP \
  trainer.policy.megatron_config.ddp_config.overlap_grad_reduce=true \
  trainer.policy.megatron_config.transformer_config_kwargs.recompute_granularity=full \
  trainer.ref.megatron_config.tensor_model_parallel_size=$TP \
  trainer.epochs=2 \
  trainer.eval_before_train=false \
  trainer.eval_interval=5 \
  trainer.train_batch_size=64 \
  trainer.policy_mini_batch_size=16 \
  trainer.micro_train_batch_size_per_gpu=4 \
  trainer.ckpt_interval=10 \
  trainer.max_prompt_length=512 \
  generator.sampling_params.max_generate_length=1024 \
  trainer.policy.optimizer_config.lr=1.0e-6 \
  trainer.policy.optimizer_config.num_warmup_steps=7 \
  trainer.algorithm.use_kl_loss=true \
  generator.backend=vllm \
  generator.gpu_memory_utilization=0.7 \
  environment.env_class=gsm8k \
  generator.n_samples_per_prompt=5 \
  trainer.logger="$LOGGER" \
  trainer.project_name="gsm8k" \
  trainer.run_name="gsm8k_tp${TP}" \
  trainer.resume_mode=null \
  trainer.ckpt_path="runs/ckpts/gsm8k" \
  $@
