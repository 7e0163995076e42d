"""From settings to an engine.

Invariant: the only place that knows which engines there are.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pentad.engines.protocol import Engine, EngineSpec, MakeEngine
from pentad.errors import UserError
from pentad.extras import require
from pentad.user_code import load_object, where

_VERBS = ("generate", "logprobs", "pause", "resume", "load_weights", "sleep", "wake", "close")
_WANTED = "def __init__(self, spec, **options)"


def make_engine(backend: str, spec: EngineSpec, user_directory: Path) -> Engine:
    """The engine that `rollout.engine` names, or else the one that the allocation names; without weights.

    Args:
        backend: of the allocation.
        spec: what it is made from.
        user_directory: where the user's module is looked for first.

    Raises:
        UserError: there is no such module or class, it is not an engine, or it does not take `rollout.engine_options`.
    """
    name = spec.settings.engine
    return _BACKENDS[backend](spec) if name is None else _users(name, spec, user_directory)


def _embedded(spec: EngineSpec) -> Engine:
    # transformers takes seconds to import, and a user's engine may have no use for it.
    from pentad.engines.hf.engine import EmbeddedEngine
    from pentad.weights.source import load_tokenizer

    return EmbeddedEngine(
        spec.directory,
        dtype=spec.dtype,
        device=spec.device,
        batch_size=spec.settings.batch_size,
        seed=spec.seed,
        tokenizer=load_tokenizer(spec.tokenizer),
        lora=spec.lora,
    )


def _vllm(spec: EngineSpec) -> Engine:
    require("vllm", "vllm", "vllm: in allocation", "generate with hf: in allocation")
    from pentad.engines.vllm.make import make_vllm

    return make_vllm(spec)


_BACKENDS: Mapping[str, Callable[[EngineSpec], Engine]] = {"hf": _embedded, "vllm": _vllm}


def _users(name: str, spec: EngineSpec, user_directory: Path) -> Engine:
    make: MakeEngine = load_object(name, "rollout.engine", user_directory)
    if not callable(make):
        raise UserError(
            f"rollout.engine={name} is of type {type(make).__name__}, neither a class nor a function",
            f"write a class with {_WANTED}",
        )
    _check_options(name, make, spec.settings.engine_options)
    try:
        engine = make(spec, **spec.settings.engine_options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"rollout.engine={name}: making it failed: {type(error).__name__}: {error}{where(error)}", "fix the engine"
        ) from error
    missing = [verb for verb in _VERBS if not inspect.iscoroutinefunction(getattr(engine, verb, None))]
    missing += [fact for fact in ("version", "features") if not hasattr(engine, fact)]
    if missing:
        raise UserError(
            f"rollout.engine={name} makes a {type(engine).__name__}, which lacks {', '.join(missing)}",
            "give it all members of pentad.engines.protocol.Engine, the verbs as `async def`",
        )
    return engine


def _check_options(name: str, make: MakeEngine, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some compiled classes hide theirs
        return
    try:
        signature.bind(None, **options)
    except TypeError as error:
        raise UserError(
            f"rollout.engine={name} cannot be called with (spec, {', '.join(options) or 'no options'}): {error}; its "
            f"signature is {signature}",
            f"change rollout.engine_options, or write {_WANTED}",
        ) from None
