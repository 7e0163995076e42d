"""One tensor-parallel rank of vLLM's own models on the CPU, which takes weights and proves it.

    python vllm_loaders.py RANK RANKS PORT FOLDER

Dense models do so again with layers that have adapters, which are taken from the folder and proven, too.
vLLM's CPU build is not needed, but will do: nothing is computed, so the operations that its modules look up may be mere
names.
"""

import contextlib
import importlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.config.schema.lora import LoraSettings
from pentad.engines.vllm.certificate import Certificate
from pentad.engines.vllm.lora import HotLora, choose
from pentad.engines.vllm.worker import Publication, WeightKeeper
from pentad.engines.vllm.worker_adapters import AdapterOrder
from pentad.weights.checksum import checksum
from pentad.weights.mapping import expected_shapes
from pentad.weights.transport.channel import LocalTransport

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500,
    "max_position_embeddings": 512,
}  # fmt: skip
# The mixture first: vLLM makes its groups of expert-parallel ranks for the model that it starts with.
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3_moe": Qwen3MoeConfig(
        moe_intermediate_size=64, num_key_value_heads=2, head_dim=32, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
        architectures=["Qwen3MoeForCausalLM"], **SIZES,
    ),
    "llama": LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, architectures=["LlamaForCausalLM"], **SIZES),
    # One key/value head: with two ranks, both hold it.
    "qwen2": Qwen2Config(num_key_value_heads=1, tie_word_embeddings=False, architectures=["Qwen2ForCausalLM"], **SIZES),
}  # fmt: skip


# Its definitions go with it.
_NAMES = torch.library.Library("_C", "FRAGMENT")


def use_cpu() -> None:
    """Have vLLM take this machine for one that it has a CPU build for."""
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm._C")
    for name in ("silu_and_mul", "rms_norm", "fused_add_rms_norm", "rotary_embedding"):
        if not hasattr(torch.ops._C, name):
            _NAMES.define(f"{name}(Tensor a) -> Tensor")


def make_model(
    config: PretrainedConfig, rank: int, ranks: int, port: str, lora: HotLora | None = None
) -> tuple[torch.nn.Module, Any]:
    """vLLM's model, without weights, and what loads adapters for it."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        arguments = EngineArgs(
            model=folder, skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16", max_model_len=128,
            **({} if lora is None else lora.arguments()),
        )  # fmt: skip
        settings = arguments.create_engine_config()
    settings.parallel_config.tensor_parallel_size = ranks
    with set_current_vllm_config(settings):
        if not torch.distributed.is_initialized():
            init_distributed_environment(ranks, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        ensure_model_parallel_initialized(ranks, 1)
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = initialize_model(vllm_config=settings)
            if lora is None:
                return model, None
            from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

            loader = LRUCacheWorkerLoRAManager(settings, torch.device("cpu"), getattr(model, "embedding_modules", {}))
            return loader.create_lora_manager(model, settings), loader
        finally:
            torch.set_default_dtype(torch.float32)


def certify(config: PretrainedConfig, model: torch.nn.Module, ranks: int) -> None:
    """Three publications: the first through vLLM's loader, then straight to the places that it used."""
    shapes = expected_shapes(config)
    keeper = WeightKeeper(model, torch.device("cpu"))
    certificate = Certificate(shapes, "engine")
    transport = LocalTransport("shared", torch.bfloat16, 300_000, deadline_s=60)
    for version in range(3):
        generator = torch.Generator().manual_seed(version)
        tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
        channel = transport.open(version)
        sender = threading.Thread(target=channel.send, args=(tensors.items(),))
        sender.start()
        holding = keeper.receive(Publication(channel, shapes, record=version == 0))
        sender.join()
        held: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(held, (holding.slices, holding.problems, holding.sums))
        certificate.check_names(holding.sent, holding.repeated)
        if version == 0:
            certificate.learn([part[0] for part in held], [problem for part in held for problem in part[1]])
        found = certificate.check([part[2] for part in held], holding.checksums)
        assert found == {name: checksum(tensor) for name, tensor in tensors.items()}
    transport.close()


def certify_adapters(model: torch.nn.Module, loader: Any, lora: HotLora, folder: Path) -> None:
    """Twice: vLLM takes what has arrived; then a buffer is changed."""
    from vllm.lora.request import LoRARequest

    keeper = WeightKeeper(model, torch.device("cpu"), rank=torch.distributed.get_rank())
    for number in (1, 2):
        order = AdapterOrder(lora.rank, lora.scale, lora.shapes, folder / f"{type(model).__name__}-{number}")
        order.folder.mkdir(exist_ok=True)
        transport = LocalTransport("shared", torch.bfloat16, 300_000, deadline_s=60)
        generator = torch.Generator().manual_seed(number)
        tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in lora.shapes.items()}
        channel = transport.open(number)
        sender = threading.Thread(target=channel.send, args=(tensors.items(),))
        sender.start()
        keeper.receive(Publication(channel, {}, record=False, adapters=order))
        sender.join()
        transport.close()
        torch.distributed.barrier()
        loader.add_adapter(LoRARequest(f"adapter-{number}", number, str(order.folder)))
        assert keeper.adapters is not None
        assert keeper.adapters.problems(model.lora_manager, number) == []
    assert keeper.adapters.problems(model.lora_manager, 1) == ["adapter 1 is not in use"]
    for name, layer in model.lora_manager.modules.items():
        part = model.lora_manager.packed_modules.get(name, [name])[-1]
        for buffer, kind in ((layer.lora_a_stacked[-1], "A"), (layer.lora_b_stacked[-1], "B")):
            kept = buffer.clone()
            # The last row and column, which a rank below vLLM's leaves zero, and the first, which it does not.
            for place in (-1, 0):
                buffer[0, 0, place, place] += 1
                (problem,) = keeper.adapters.problems(model.lora_manager, 2)
                assert problem.startswith(f"{part}.lora_{kind}.weight is not what was sent"), problem
                buffer.copy_(kept)
    assert keeper.adapters.problems(model.lora_manager, 2) == []


if __name__ == "__main__":
    mine, world = int(sys.argv[1]), int(sys.argv[2])
    os.environ["VLLM_DIST_IDENT"] = f"loaders-{sys.argv[3]}"  # its CPU build's ranks meet under that name
    use_cpu()
    for family, wanted in CONFIGS.items():
        certify(wanted, make_model(wanted, mine, world, sys.argv[3])[0], world)
        print("certified", family, flush=True)
    for family in ("llama", "qwen2"):
        targets = ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"] if family == "llama" else "all-linear"
        hot = choose(CONFIGS[family], LoraSettings(rank=6, alpha=10, rslora=True, targets=targets))
        assert isinstance(hot, HotLora)
        adapted, its_loader = make_model(CONFIGS[family], mine, world, sys.argv[3], hot)
        certify(CONFIGS[family], adapted, world)
        certify_adapters(adapted, its_loader, hot, Path(sys.argv[4]))
        print("adapted", family, flush=True)
