from datasets import load_dataset
from peft import LoraConfig
from rewards import accuracy
from trl import GRPOConfig, GRPOTrainer

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
dataset = load_dataset("trl-lib/tldr", split="train")

raise SystemExit("this file must not be run")

args = GRPOConfig(
    output_dir="runs/trl",
    run_name="trl",
    learning_rate=2e-6,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=4,
    num_generations=8,
    max_prompt_length=256,
    max_completion_length=128,
    beta=0.04,
    epsilon=0.2,
    epsilon_high=0.28,
    loss_type="bnpo",
    max_steps=100,
    warmup_ratio=0.1,
    bf16=True,
    use_vllm=True,
    vllm_mode="colocate",
    vllm_gpu_memory_utilization=0.3,
    report_to="none",
)
trainer = GRPOTrainer(
    model=MODEL,
    args=args,
    reward_funcs=accuracy,
    train_dataset=dataset,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
