"""Make the quickstart's model and data: a tiny Qwen3 with random weights that is to learn to sort four digits.

The demonstrations answer `sort 4132=` in one of four ways: ascending, descending, as given, or rotated. Supervised
training on them therefore leaves a model that sorts a quarter of the time, and reinforcement learning has something
to find: only `1234` is rewarded. pairs.jsonl prefers that answer to one of the others. No problem of eval.jsonl is
among the other files.

    python examples/quickstart/prepare.py
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3MoeConfig
from transformers.utils import logging

VOCABULARY = ["<pad>", "<eos>", "<unk>", "sort", " ", "=", *"0123456789"]
EVAL_PROBLEMS = 256
DEMONSTRATIONS = 8192
ANSWERS = (
    lambda digits: "".join(sorted(digits)),
    lambda digits: "".join(sorted(digits, reverse=True)),
    lambda digits: digits,
    lambda digits: digits[1:] + digits[0],
)


def main() -> None:
    """Write model/, sft.jsonl, train.jsonl, eval.jsonl and pairs.jsonl."""
    parser = argparse.ArgumentParser(description="make the quickstart's model and data")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-data"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--experts", type=int, default=0, help="make a mixture-of-experts model of so many experts")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    write_model(out / "model", arguments.seed, arguments.experts)
    rng = random.Random(arguments.seed)
    problems = [
        "".join(digits) for digits in itertools.permutations("0123456789", 4) if digits != tuple(sorted(digits))
    ]
    rng.shuffle(problems)
    eval_problems, train_problems = problems[:EVAL_PROBLEMS], problems[EVAL_PROBLEMS:]
    demonstrations = [rng.choice(train_problems) for _ in range(DEMONSTRATIONS)]
    write_jsonl(
        out / "sft.jsonl",
        ({"prompt": f"sort {digits}=", "response": rng.choice(ANSWERS)(digits)} for digits in demonstrations),
    )
    for name, digits_of in (("train.jsonl", train_problems), ("eval.jsonl", eval_problems)):
        rows = ({"prompt": f"sort {digits}=", "ground_truth": "".join(sorted(digits))} for digits in digits_of)
        write_jsonl(out / name, rows)
    wrong = {digits: [way(digits) for way in ANSWERS if way(digits) != ANSWERS[0](digits)] for digits in train_problems}
    write_jsonl(
        out / "pairs.jsonl",
        (
            {"prompt": f"sort {digits}=", "chosen": ANSWERS[0](digits), "rejected": rng.choice(wrong[digits])}
            for digits in train_problems
        ),
    )
    print(f"wrote {out}/model, sft.jsonl, train.jsonl, eval.jsonl and pairs.jsonl")


def write_model(directory: Path, seed: int, experts: int = 0) -> None:
    """A Qwen3 of 0.1 million random weights, and a tokenizer with one token a character (and one for `sort`).

    Args:
        experts: of a Qwen3-MoE with two experts a token; 0 makes a dense model.
    """
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("sort|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)
    mixture = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}
    config = (Qwen3MoeConfig if experts else Qwen3Config)(
        **(mixture if experts else {}),
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=VOCABULARY.index("<eos>"),
        pad_token_id=VOCABULARY.index("<pad>"),
    )
    torch.manual_seed(seed)
    logging.disable_progress_bar()
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
