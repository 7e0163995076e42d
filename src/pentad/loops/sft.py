"""The loop of supervised fine-tuning.

Invariant: each step takes `trainer.prompts_per_step` rows, each exactly once an epoch.
"""

import asyncio

from pentad.algorithms.sft import SFTLoss
from pentad.data.prompts import EncodedExamples
from pentad.data.sampler import PromptSampler
from pentad.loops.session import Session
from pentad.record.metrics import merge
from pentad.samples.batch import Batch


def train_sft(session: Session) -> None:
    """`trainer.total_steps` optimizer steps on the wanted responses."""
    settings = session.prepared.settings
    data = session.prepared.train
    assert isinstance(data, EncodedExamples)
    sampler = PromptSampler(data, settings.experiment.seed, settings.data.shuffle)
    loss = SFTLoss(settings.algorithm)
    if settings.trainer.val_before_train:
        session.synchronize()
        session.evaluate(0)
    session.timer.metrics()
    total = settings.trainer.total_steps
    for step in range(1, total + 1):
        session.status.step = step
        batch = Batch.from_sequences(
            [data.examples[index] for index in sampler.next(settings.trainer.prompts_per_step)]
        )
        with session.timer.phase("train"):
            trained = asyncio.run(session.policy.train(batch, loss, 1.0, session.progress("training")))
        session.version += 1
        metrics = merge(trained.metrics, {"data/samples_consumed": len(trained.sample_ids)}, session.timer.metrics())
        metrics["perf/tokens_per_s"] = batch.num_tokens / metrics["time/step"]
        session.sinks.write(step, metrics)
        every = settings.trainer.test_freq
        if session.prepared.eval and (step == total or (every and step % every == 0)):
            session.synchronize()
            session.evaluate(step)
            session.timer.metrics()
