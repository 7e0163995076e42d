"""Seeds of vLLM's random numbers.

Invariant: a completion's seed depends on the run's seed, its request's id and its sample alone; where vLLM gives it
in several parts, each part has a seed of its own.
"""

import hashlib

_BITS = 63


def sample_seed(seed: int, request_id: str, sample: int, part: int) -> int:
    """The seed of one part of a completion, below 2^63."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{part}/{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _BITS)
