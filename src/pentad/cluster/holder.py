"""A process that holds a GPU for another one, which uses several.

Invariant: Ray gives a process the GPUs of one bundle, and a bundle here has one; so whoever needs more is told the
numbers of those that holders on the same machine were given. A holder itself never uses its GPU.
"""

import ray

from pentad.cluster.process import GROUPS, Process


@ray.remote(concurrency_groups=GROUPS)
class Holder(Process):
    """Holds one GPU."""

    def gpu(self) -> str:
        """The number of the GPU on its machine, as in CUDA_VISIBLE_DEVICES."""
        return str(ray.get_gpu_ids()[0])
