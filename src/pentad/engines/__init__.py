"""Rollout engines: one replica each."""
