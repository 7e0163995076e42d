"""The embedded engine keeps the contract."""

import pytest
from contract import EngineContract, Subject
from rollout_models import CONFIGS, checkpoint, endless, reference_model

from pentad.engines.hf.engine import EmbeddedEngine


class TestEmbeddedEngine(EngineContract):
    @pytest.fixture
    def subject(self) -> Subject:
        config = endless(CONFIGS["qwen3"])
        weights, others = (list(checkpoint(reference_model(config, seed)).items()) for seed in (0, 1))
        return Subject(lambda: EmbeddedEngine(config, batch_size=4), weights, others)
