"""The simulation of steps, against figures that follow from its settings, and its clock."""

import asyncio

import pytest
from async_sim import World, draw, simulate
from virtual_time import VirtualTimeLoop

# Every response has 100 tokens: an engine with k requests takes 100 * (8 + 0.5 k) ms for them.
EVEN = World(
    gpus=4,
    engine_gpus=2,
    prompts=4,
    n=2,
    prompt_tokens=50,
    length=100.5,  # cut down to a whole number
    sigma=0.0,
    decode_ms=8.0,
    decode_ms_per_request=0.5,
    train_us=100.0,
    train_fixed_s=0.3,
    publish_s=0.25,
    reward_s=0.05,
    steps=12,
)
# Two engines have four requests each; two ranks train on eight times 150 tokens.
GENERATION, TRAINING = 100 * (8 + 0.5 * 4) / 1e3, 0.3 + 8 * 150 * 100e-6 / 2


def test_a_synchronous_step_takes_all_its_phases() -> None:
    result = simulate(EVEN, 0)
    seconds = GENERATION + 0.05 + TRAINING + 0.25
    assert result.seconds == pytest.approx(seconds)
    assert result.tokens_per_s == pytest.approx(8 * 150 / seconds / 4)
    assert result.shares["util/engines"] == pytest.approx(GENERATION / seconds)
    assert result.shares["util/trainer"] == pytest.approx(TRAINING / seconds)
    assert result.shares["util/both"] == 0
    assert [line.strip()[:10] for line in draw(result.row).splitlines()][:2] == ["generation", "training  |"[:10]]


def test_stale_samples_let_engines_and_trainer_work_at_the_same_time() -> None:
    """No faster than either of them alone could be; a request never waits for longer than in synchronous training."""
    sync, stale = simulate(EVEN, 0), simulate(EVEN, 2)
    assert stale.seconds < sync.seconds - 0.1
    assert stale.seconds >= TRAINING + 0.25 - 1e-6
    assert stale.shares["util/both"] > 0.1


def test_an_engine_above_its_capacity_takes_requests_one_after_the_other() -> None:
    full = World(**{**vars(EVEN), "capacity": 1, "publish_s": 0.0, "reward_s": 0.0})
    assert simulate(full, 0).seconds == pytest.approx(4 * 100 * 8.5 / 1e3 + TRAINING)


def test_time_jumps_in_the_order_of_the_timers() -> None:
    seen: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name, seconds in (("late", 1e6), ("early", 0.5), ("between", 3600.0)):
                group.create_task(wait(name, seconds))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert [name for name, _ in seen] == ["early", "between", "late"]
    assert [at for _, at in seen] == pytest.approx([0.5, 3600.0, 1e6])


def test_a_loop_in_which_nothing_can_happen_says_so() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    # The runner would wait for the task, too.
    loop = VirtualTimeLoop()
    task = loop.create_task(main())
    with pytest.raises(RuntimeError, match="no timer is set"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
