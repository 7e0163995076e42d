"""The Ray cluster of a run, and where its processes are placed.

Invariant: leaving the context leaves no process of this run behind, whatever happened inside.
"""

import logging
import os
from types import TracebackType
from typing import Any, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError
from ray.util.client import ray as ray_client
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pentad.cluster.address import check_reachable, no_cluster
from pentad.cluster.environment import process_environment
from pentad.cluster.gang import Gang
from pentad.cluster.holder import Holder
from pentad.cluster.placement import crossing_groups, place, trainer_components
from pentad.cluster.processes import Processes
from pentad.cluster.ray_session import RaySession
from pentad.config.schema.ray import RaySettings
from pentad.errors import UserError
from pentad.layout import Allocation, Component

_PLACEMENT_S = 60.0


class Cluster:
    """A running cluster, or one started for this run.

    Args:
        settings: `ray.*`.
        allocation: what is to be placed.

    Attributes:
        on_gpus: the cluster has GPUs.
        notes: what the user should know of the placement.

    Raises:
        UserError: the cluster cannot be reached, has fewer GPUs than the allocation needs, or has them on machines
            between which a group of tensor-parallel ranks would be split.
    """

    def __init__(self, settings: RaySettings, allocation: Allocation) -> None:
        self.settings = settings
        self.allocation = allocation
        self.on_gpus = False
        self.notes: list[str] = []
        self.processes = Processes()
        self._session: RaySession | None = None
        self._group: PlacementGroup | None = None
        # Of each device.
        self._bundles: list[int] = []
        self._publishing: list[Gang] = []

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Otherwise Ray hides GPUs from, or shows all of them to, actors that ask for none.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        check_reachable(self.settings.address)
        if self.settings.address is None:
            options |= {"address": "local", "include_dashboard": False}
        else:
            options |= {"address": self.settings.address}
        remote = self.settings.address is not None
        if environment := process_environment(self.settings.env, os.environ, remote=remote):
            options["runtime_env"] = {"env_vars": environment}
        self._session = RaySession(options)
        try:
            self._session.start()
        except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
            self.close()
            if _asks_for_token(error):
                raise UserError(
                    f"ray.address: the Ray cluster {self.settings.address} asks for a token, and has not been given "
                    "the right one",
                    "export RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token",
                ) from None
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise no_cluster(self.settings.address or "on this machine", reason) from None
        except Exception as error:  # Ray raises a bare one when it is late
            self.close()
            raise UserError(
                f"Ray did not start: {(str(error).strip().splitlines() or [type(error).__name__])[0]}",
                "try again when the machine is less busy; Ray's own logs are in /tmp/ray/session_latest/logs",
            ) from error
        except BaseException:
            self.close()
            raise
        try:
            self._place()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill this run's actors; stop the cluster if it was started for the run. May be called again."""
        if ray.is_initialized():
            self.processes.kill()
            if self._group is not None:
                remove_placement_group(self._group)
                self._group = None
            ray.shutdown()
        if self._session is not None:
            self._session.end()
            self._session = None

    def _place(self) -> None:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.on_gpus = gpus > 0
        if not self.on_gpus:
            return
        world = self.allocation.world_size
        if world > gpus:
            raise UserError(
                f"allocation {self.allocation} needs {world} GPUs; the cluster has {gpus}",
                f"choose an allocation of at most {gpus}, or add nodes (ray.address)",
            )
        self._group = placement_group([{"GPU": 1.0}] * world, strategy="PACK")
        if not self._group.wait(timeout_seconds=_PLACEMENT_S):
            free = ray.available_resources().get("GPU", 0)
            raise UserError(
                f"{world} GPUs were not free within {_PLACEMENT_S:.0f} s ({free:g} of {gpus} are)",
                "wait for the other job, or choose a smaller allocation",
            )
        machines = placement_group_table(self._group)["bundles_to_node_id"]
        self._bundles = place(self.allocation, [machines[bundle] for bundle in range(world)])
        for component in trainer_components(self.allocation):
            ranks = self.allocation.devices(component)
            self.notes += crossing_groups(component, [machines[self._bundles[device]] for device in ranks])

    def spawn(
        self,
        actor_class: Any,
        name: str,
        component: Component,
        deadline_s: float,
        *,
        devices_each: int = 1,
        replaceable: bool = False,
        publishes: bool = True,
    ) -> Gang:
        """One process on each device of a component, or on each so many; these are on one machine.

        Args:
            actor_class: a Ray actor class with `pentad.cluster.process.Process` as its base.
            name: of one process, as in "trainer rank".
            deadline_s: longest time of one call, in seconds.
            devices_each: of a process; Ray gives it the first, and `Gang.reserved` the others.
            replaceable: a process that is lost can be replaced, and the run goes on.
            publishes: weights that are published are sent or received by it.
        """
        devices = self.allocation.devices(component)
        sharing = next(len(group) for group in self.allocation.groups if component in group)

        def start(kind: Any, rank: int, world_size: int, device: int) -> ActorHandle:
            options: dict[str, Any] = {"num_cpus": 0}
            if self._group is not None:
                options["num_gpus"] = 1.0 / sharing
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=self._bundles[device]
                )
            return kind.options(**options).remote(rank, world_size)

        def start_one(rank: int) -> ActorHandle:
            return start(actor_class, rank, size, devices[rank * devices_each])

        size = len(devices) // devices_each
        actors = [start_one(rank) for rank in range(size)]
        gang = Gang(name, actors, self.processes, deadline_s, start_one if replaceable else None)
        if publishes:
            self._publishing.append(gang)
        if devices_each > 1 and self._group is not None:
            others = [device for place, device in enumerate(devices) if place % devices_each]
            holders = [start(Holder, rank, len(others), device) for rank, device in enumerate(others)]
            gang.reserved = Gang(f"GPU of a {name}", holders, self.processes, deadline_s)
        return gang

    @property
    def host(self) -> str:
        """Address at which the processes reach the driver's machine."""
        return ray.util.get_node_ip_address()

    @property
    def on_one_machine(self) -> bool:
        """Whether all processes that send or receive weights are on the driver's machine, also those that replace one.

        To be asked when they have started.
        """
        machines = {gang.info(rank).machine for gang in self._publishing for rank in range(len(gang))}
        if self._group is None:  # what replaces a process may start on any machine
            machines |= {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        # A driver that came through Ray's client is on none of them.
        return not ray_client.is_connected() and machines == {ray.get_runtime_context().get_node_id()}

    def spawn_one(self, actor_class: Any, name: str, deadline_s: float) -> Gang:
        """One process that needs no device; see `spawn`."""
        return Gang(name, [actor_class.options(num_cpus=0).remote(0, 1)], self.processes, deadline_s)


def _asks_for_token(error: BaseException) -> bool:
    """Ray puts its AuthenticationError into the text of another error."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, AuthenticationError) or AuthenticationError.__name__ in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
