"""Who did what when: taken down with a clock of the test's, and what follows from it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_dirs import begun

from pentad.record import timeline as module
from pentad.record.occupancy import lanes_of, utilisation
from pentad.record.run_dir import RunDir
from pentad.record.spans import SpansLog, join_lanes, ranks_text, read_spans, thinned
from pentad.record.timeline import Span, Timeline, Window


class Clock:
    """Shows what it is set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def window(seconds: float, *spans: tuple[str, str, float, float]) -> Window:
    known = dict.fromkeys(who for who, *_ in spans)
    return Window(0.0, seconds, tuple(Span(*span) for span in spans), tuple(known))


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with begun(tmp_path / "run", "a: 1\n") as run_dir:
        yield run_dir


def test_what_goes_on_over_the_end_of_a_window_is_in_both() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    handle = timeline.begin("rollout engine 0", "generation")
    clock.now = 103
    with timeline.span(["trainer rank 0", "trainer rank 1"], "training"):
        clock.now = 104
    first = timeline.cut()
    clock.now = 106
    timeline.end(handle)
    timeline.end(handle)
    clock.now = 110
    second, third = timeline.cut(), timeline.cut()
    training = [Span(f"trainer rank {rank}", "training", 3.0, 4.0) for rank in range(2)]
    assert sorted(first.spans, key=lambda span: span.who) == [
        Span("rollout engine 0", "generation", 0.0, 4.0),
        *training,
    ]
    assert (first.began, first.seconds) == (0.0, 4.0)
    assert second.spans == (Span("rollout engine 0", "generation", 0.0, 2.0),)
    assert (second.began, second.seconds) == (4.0, 6.0)
    assert third.spans == () and third.seconds == 0.0
    assert set(third.known) == {"rollout engine 0", "trainer rank 0", "trainer rank 1"}


def test_a_call_that_was_made_before_the_window_begins_with_it() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    clock.now = 105
    timeline.cut()
    clock.now = 106
    handle = timeline.begin("trainer rank 0", "training", at=101.0)
    clock.now = 107
    timeline.end(handle)
    assert timeline.cut().spans == (Span("trainer rank 0", "training", 0.0, 2.0),)


def test_very_many_spans_are_joined_and_take_as_much_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy for 30 of 100 ms each time; joined spans may cover the gaps between, never more than the whole."""
    monkeypatch.setattr(module, "_MOST", 50)
    clock = Clock()
    timeline = Timeline(clock)
    for turn in range(5000):
        clock.now = 100 + 0.1 * turn
        handle = timeline.begin(f"rollout engine {turn % 2}", "generation")
        clock.now += 0.03
        timeline.end(handle)
    done = timeline.cut()
    assert len(done.spans) <= 50
    assert max(span.end for span in done.spans) <= done.seconds
    assert sum(span.end - span.begin for span in done.spans) <= 2 * done.seconds


def test_an_engine_that_takes_weights_does_not_generate_and_ranks_answer_in_turn() -> None:
    lanes = lanes_of(
        window(
            10.0,
            ("rollout engine 0", "asleep", 0.0, 10.0),
            ("rollout engine 0", "generation", 1.0, 8.0),
            ("rollout engine 0", "weight synchronisation", 4.0, 5.0),
            ("trainer rank 0", "training", 2.0, 6.0),
            ("trainer rank 0", "log-probs", 3.0, 7.0),
        )
    )
    assert lanes["rollout engine 0"] == [
        ("asleep", 0.0, 1.0),
        ("generation", 1.0, 4.0),
        ("weight synchronisation", 4.0, 5.0),
        ("generation", 5.0, 8.0),
        ("asleep", 8.0, 10.0),
    ]
    assert lanes["trainer rank 0"] == [("training", 2.0, 6.0), ("log-probs", 6.0, 7.0)]


def test_lanes_have_at_each_moment_what_any_order_of_the_spans_gives() -> None:
    """Against a count on a grid: a process is busy where any of its spans is."""
    rng = random.Random(3)
    for _ in range(50):
        spans = []
        for _ in range(rng.randrange(1, 12)):
            begin, end = sorted(rng.sample(range(60), 2))
            spans.append(("trainer rank 0", rng.choice(["training", "log-probs"]), float(begin), float(end)))
        parts = lanes_of(window(60.0, *spans))["trainer rank 0"]
        for tick in range(60):
            covering = [span for span in spans if span[2] <= tick < span[3]]
            found = [phase for phase, begin, end in parts if begin <= tick < end]
            assert len(found) == bool(covering)
            assert not covering or found[0] in {span[1] for span in covering}


def test_shares_of_turns_and_of_work_at_the_same_time() -> None:
    turns = window(
        10.0,
        ("rollout engine 0", "generation", 0.0, 4.0),
        ("rollout engine 1", "generation", 0.0, 2.0),
        ("trainer rank 0", "reference log-probs", 4.0, 5.0),
        ("trainer rank 0", "training", 5.0, 8.0),
        ("trainer rank 0", "weight synchronisation", 8.0, 10.0),
    )
    shares = {"util/engines": 0.3, "util/trainer": 0.4, "util/both": 0.0, "util/neither": 0.2}
    assert utilisation(lanes_of(turns), 10.0) == pytest.approx(shares)
    overlapping = window(10.0, ("rollout engine 0", "generation", 0.0, 9.0), ("trainer rank 0", "training", 2.0, 10.0))
    shares = {"util/engines": 0.9, "util/trainer": 0.8, "util/both": 0.7, "util/neither": 0.0}
    assert utilisation(lanes_of(overlapping), 10.0) == pytest.approx(shares)
    supervised = window(4.0, ("trainer rank 0", "training", 0.0, 1.0), ("trainer rank 1", "training", 0.0, 1.0))
    assert utilisation(lanes_of(supervised), 4.0) == {"util/trainer": 0.25}
    apart = window(
        10.0,
        ("rollout engine 0", "generation", 0.0, 4.0),
        ("trainer rank 0", "training", 4.0, 6.0),
        ("critic rank 0", "training of the critic", 3.0, 9.0),
        ("reference rank 0", "reference log-probs", 2.0, 3.0),
    )
    shares = {"util/engines": 0.4, "util/trainer": 0.2, "util/critic": 0.6, "util/reference": 0.1}
    shares |= {"util/both": 0.2, "util/neither": 0.1}
    assert utilisation(lanes_of(apart), 10.0) == pytest.approx(shares)
    idle = Window(0.0, 2.0, (), ("rollout engine 0", "trainer rank 0"))
    assert utilisation(lanes_of(idle), 2.0)["util/engines"] == 0.0


def test_a_line_a_step_and_processes_that_did_the_same_share_a_lane(run_dir: RunDir) -> None:
    ranks = [(f"trainer rank {rank}", "training", 1.0, 2.0 + rank / 10_000) for rank in range(9)]
    spans = window(3.0, *ranks, ("trainer rank 9", "training", 1.0, 2.5), ("rewards", "rewards", 0.0, 0.5))
    log = SpansLog(run_dir)
    log.write(1, 7.0, spans.seconds, lanes_of(spans))
    log.write(1, 10.0, spans.seconds, lanes_of(spans), after=True)
    log.close()
    notes: list[str] = []
    one, after = read_spans(run_dir.spans, notes)
    assert notes == [] and (one.step, one.after, one.seconds, after.after) == (1, False, 3.0, True)
    assert [(lane.who, lane.ranks) for lane in one.lanes] == [
        ("trainer rank", tuple(range(9))),
        ("trainer rank", (9,)),
        ("rewards", ()),
    ]
    assert one.lanes[1].parts == (("training", 1.0, 2.5),)
    assert '"ranks": "0-8"' in run_dir.spans.read_text()
    assert ranks_text((7, 0, 1, 2)) == "0-2,7"


def test_a_lane_has_at_most_so_many_spans() -> None:
    spans = [("rollout engine 0", "generation", i / 100, i / 100 + 0.004) for i in range(5000)]
    (lane,) = join_lanes(lanes_of(window(50.0, *spans)), 50.0)
    assert 1 <= len(lane.parts) <= 400
    assert all(a[2] <= b[1] for a, b in zip(lane.parts, lane.parts[1:], strict=False))


def test_the_file_stays_small_and_keeps_the_first_and_the_last_steps(run_dir: RunDir) -> None:
    log = SpansLog(run_dir, most_bytes=200_000)
    spans = window(3.0, *[(f"trainer rank {rank}", "training", 1.0, 1.5 + rank / 10) for rank in range(2)])
    for step in range(1, 5001):
        log.write(step, 3.0 * step, spans.seconds, lanes_of(spans))
        assert run_dir.spans.stat().st_size <= 200_000 + 1000
    log.close()
    steps = [row.step for row in read_spans(run_dir.spans, [])]
    assert steps == sorted(set(steps))
    assert steps[:16] == list(range(1, 17)) and steps[-64:] == list(range(4937, 5001))
    assert all(any(begin < step <= begin + 500 for step in steps) for begin in range(0, 5000, 500))


def test_lines_longer_than_the_file_may_be_leave_the_last() -> None:
    assert thinned([b"x" * 100] * 5, 150) == [b"x" * 100]
    assert thinned([b'{"step": 0, }' * 10] * 5, 150) == [b'{"step": 0, }' * 10]
    assert thinned([b"x" * 100, b"y" * 100], 50) == [b"y" * 100]


def test_a_disk_that_stays_full_ends_nothing(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing; metrics of such a run would end it, its spans do not."""
    monkeypatch.setattr("pentad.record.jsonl._MOST_WAITING", 2000)
    run_dir.spans = Path("/dev/full")
    log = SpansLog(run_dir)
    for step in range(1, 50):
        log.write(step, 0.0, 1.0, {"trainer rank 0": [("training", 0.0, 1.0)]})
    log.close()


def test_a_line_that_says_something_else_is_told(tmp_path: Path) -> None:
    good = {"step": 2, "seconds": 1.0, "lanes": [{"who": "rewards", "spans": [["rewards", 0, 1]]}]}
    (tmp_path / "spans.jsonl").write_text('{"step": 1, "lanes": 3}\n' + json.dumps(good) + "\n")
    notes: list[str] = []
    assert [row.step for row in read_spans(tmp_path / "spans.jsonl", notes)] == [2]
    assert notes == ["spans.jsonl: what it says of step 1 cannot be read."]
