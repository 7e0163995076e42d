"""Several rewards at once, by data source, asynchronous, in batches, and from a server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pentad.config.schema.reward import RewardSettings
from pentad.data.rows import PromptRow
from pentad.errors import UserError
from pentad.loops.group import Group
from pentad.loops.sources import _components
from pentad.record.metric_table import find_metric
from pentad.rewards.builtin import format, length
from pentad.rewards.pool import RewardPool, check_rewards
from pentad.rewards.types import RewardItem, RewardResult
from pentad.workers.capacity import default_workers

MODULE = """
import asyncio, os, time
def fails(response): raise ValueError("never")
def half(response): return 0.5
async def later(response):
    if response == "hang": await asyncio.sleep(60)
    if response == "raise": raise KeyError("oops")
    await asyncio.sleep(0.2)
    return 0.25
def batch(completions, **kwargs):
    if "raise" in completions: raise KeyError("oops")
    if "die" in completions: os._exit(3)
    if "short" in completions: return [1.0] * (len(completions) + 1)
    return [float(len(completions))] * len(completions)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def items(*responses: str, truth: str = "2", source: str = "openai/gsm8k", row: str = "a:1") -> list[RewardItem]:
    return [RewardItem("p", each, truth, source, id=row, response_ids=tuple(range(len(each)))) for each in responses]


def pool_of(directory: Path, functions: dict[str, Any] | None = None, **more: Any) -> RewardPool:
    more = {"workers": 1, "timeout_s": 5.0, **more}
    return RewardPool(RewardSettings(functions=functions or {}, **more), directory)


def test_weighted_sums_and_data_sources(directory: Path) -> None:
    functions = {
        "right": "auto",
        "style": {"name": "format", "weight": 0.5, "options": {"pattern": ".*#### .*"}},
        "short": {"name": "length", "weight": 0.1, "options": {"limit": 6, "buffer": 2}},
        "other": {"name": "mine.py:half", "weight": -4, "data_sources": ["deepscaler*"]},
    }
    with pool_of(directory, functions) as pool:
        math = items(r"\boxed{2}", source="deepscaler/x")
        first, second, third = pool.score([*items("#### 2", "#### 33"), *math])
        assert first.components == {"right": 1.0, "style": 1.0, "short": -1.0}
        assert first.score == pytest.approx(1.4)
        assert second.score == pytest.approx(0.5 - 0.1)
        assert third.components == {"right": 1.0, "style": 0.0, "short": -1.0, "other": 0.5}
        assert third.score == pytest.approx(1.0 - 0.1 - 2.0)
        assert list(first.components) == ["right", "style", "short"], "in the order of the settings"
        assert pool.failures == dict.fromkeys(pool.failures, 0)


def test_a_sample_fails_with_one_of_its_parts(directory: Path) -> None:
    with pool_of(directory, {"half": "mine:half", "bad": {"name": "mine:fails", "weight": 0}}) as pool:
        (result,) = pool.score(items("x"))
        assert (result.score, result.failure, dict(result.components)) == (0.0, "exception", {"half": 0.5})
        assert result.message.startswith("bad: ValueError: never")
        assert pool.failures["exceptions"] == 1


def test_rows_that_no_part_is_for_are_refused(directory: Path) -> None:
    with pool_of(directory, {"half": {"name": "mine:half", "data_sources": "a"}}) as pool:
        pool.check(items("", source="a"))
        with pytest.raises(UserError, match=r"none of reward.functions \(half\) is for data_source 'b'"):
            pool.check(items("", source="b"))


@pytest.mark.parametrize(
    ("functions", "cause", "fix"),
    [
        ({"mean": "gsm8k"}, "reward/mean is a metric of its own", "another key"),
        ({"a/b": "gsm8k"}, "cannot name the metric", "letters"),
        ({"a": 3}, "reward.functions.a is 3", "a: module:function"),
        ({"a": {"weight": 1}}, "neither the name of a reward", "a: {name: module:function"),
        ({"a": {"name": "gsm8k", "wieght": 1}}, "reward.functions.a.wieght", "did you mean weight"),
        ({"a": {"name": "gsm8k", "weight": "1"}}, "reward.functions.a.weight is '1'", "a.weight=0.5"),
        ({"a": {"name": "gsm8k", "options": 1}}, "reward.functions.a.options is 1", "options: {"),
        ({"a": {"name": "gsm8k", "data_sources": [1]}}, "data_sources is [1]", "data_sources: [NAME]"),
        ({"a": {"name": "gsm8"}}, "reward.functions.a.name=gsm8", "set reward.functions.a.name=gsm8k"),
        ({"a": "gsm8"}, "reward.functions.a=gsm8 is neither", "set reward.functions.a=gsm8k"),
        ({"a": {"name": "gsm8k", "options": {"x": 1}}}, "reward.functions.a.options is set", "remove"),
    ],
)
def test_settings_that_are_not_well_formed(functions: dict[str, Any], cause: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        check_rewards(RewardSettings(functions=functions))
    assert cause in caught.value.cause
    assert fix in caught.value.fix


def test_asynchronous_calls_of_a_prompt_run_at_once(directory: Path) -> None:
    with pool_of(directory, name="mine:later", timeout_s=2.0) as pool:
        results = pool.score(items(*["x"] * 20, "raise", "hang"))
        assert [r.score for r in results] == [0.25] * 20 + [0.0, 0.0]
        assert [r.failure for r in results[20:]] == ["exception", "timeout"]
        assert "reward.timeout_s=2" in results[21].message
        assert pool.failures == {"timeouts": 1, "crashes": 0, "exceptions": 1, "bad_values": 0}
        assert sum(r.seconds for r in results) < 20 * 0.2, "one after the other they take 4 s, and the last 2 s more"


def test_a_batch_is_the_responses_to_one_prompt(directory: Path) -> None:
    with pool_of(directory, name="mine:batch") as pool:
        results = pool.score([*items("a", "b", "c"), *items("d", row="a:2"), *items("e", "f", row="a:3")])
        assert [r.score for r in results] == [3, 3, 3, 1, 2, 2]
        for bad, failure in (("raise", "exception"), ("die", "crash")):
            one, two, three = pool.score(items("x", bad, "y"))
            assert (one.score, two.failure, three.score) == (1.0, failure, 1.0), "asked again one by one"
        assert {r.failure for r in pool.score(items("x", "short"))} == {"bad_value"}
        assert pool.failures == {"timeouts": 0, "crashes": 1, "exceptions": 1, "bad_values": 2}
        assert "a list of as many numbers" in pool.first_messages["bad_values"]


def test_a_budget_of_failures(directory: Path) -> None:
    with pool_of(directory, name="mine:fails", max_failures=2) as pool:
        pool.score(items("x", "y"))
        with pytest.raises(
            UserError, match=r"^3 calls of the reward have failed \(3 exceptions\), more than"
        ) as caught:
            pool.score(items("z"))
        assert "ValueError: never" in caught.value.cause


def test_format_and_length() -> None:
    assert format(" <think>a\nb</think>\n<answer>1</answer>\n") == 1.0
    assert format("<answer>1</answer>") == format("x <think></think><answer>1</answer>") == 0.0
    assert format("yes", pattern="yes|no") == 1.0
    # DAPO, equation 13: limit 10, buffer 4.
    wanted = {5: 0.0, 6: 0.0, 7: -0.25, 8: -0.5, 9: -0.75, 10: -1.0, 11: -1.0, 50: -1.0}
    assert {n: length("", limit=10, buffer=4, response_ids=[0] * n) for n in wanted} == wanted
    assert length("", limit=10, response_ids=[0] * 10) == 0.0
    with pytest.raises(ValueError, match="tokens of the response are not known"):
        length("", limit=10)


def test_parts_are_metrics_that_the_table_knows() -> None:
    row = PromptRow("a", "a")
    results = (
        RewardResult(1.0, components={"right": 1.0, "style": 0.5}, metrics={"style.n/m": 2.0, "__": 3.0}),
        RewardResult(0.0, "exception", components={"style": 0.0}),
    )
    found = _components([Group(row, None, (), results, ())])  # type: ignore[arg-type]
    assert found == {"reward/right": 1.0, "reward/style": 0.25, "reward/style.n_m": 2.0, "reward/part": 3.0}
    part = find_metric("reward/right")
    assert part is not None
    assert part.name == "reward/<part>"
    assert (find_metric("reward/mean") or part).name == "reward/mean"


def test_workers_follow_the_cores(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)))
    assert default_workers() == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(300)))
    assert default_workers() == 32
    assert RewardSettings().workers is None


class Judge(BaseHTTPRequestHandler):
    """Answers by what the response says; `flaky` is answered at the third try."""

    tries: dict[str, int]

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = sent["response"]
        self.tries[text] = self.tries.get(text, 0) + 1
        status = {"broken": 500, "refused": 404, "flaky": 503 if self.tries[text] < 3 else 200}.get(text, 200)
        answer: Any = {"score": len(text), "length": 7, "token": 0}
        match text:
            case "bare":
                answer = 0.5
            case "reward":
                answer = {"reward": 0.75}
            case "echo":
                right = sent == {"prompt": "p", "response": text, "ground_truth": "2", "columns": sent["columns"]}
                answer = float(right and self.headers["Authorization"] == "Bearer secret")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"no JSON" if text == "text" else json.dumps(answer).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Judge.tries = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/score"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_reward_from_a_server(directory: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    options = {"url": url, "retries": 2, "wait_s": 0.01, "token_env": "JUDGE_TOKEN"}
    with pool_of(directory, name="http", options=options) as pool:
        good = pool.score(items("four", "bare", "reward", "echo", "flaky"))
        assert [(r.score, r.failure) for r in good] == [
            (4.0, None),
            (0.5, None),
            (0.75, None),
            (1.0, None),
            (5.0, None),
        ]
        assert good[0].metrics == {"length": 7.0, "token": 0.0}
        broken, refused, text = pool.score(items("broken", "refused", "text"))
        assert "answered 500 Internal Server Error (3 tries)" in broken.message
        assert "answered 404 Not Found (1 tries)" in refused.message
        assert "the answer is not JSON: b'no JSON'" in text.message
    assert {name: Judge.tries[name] for name in ("flaky", "broken", "refused")} == {
        "flaky": 3,
        "broken": 3,
        "refused": 1,
    }


def test_a_server_that_is_not_there(directory: Path) -> None:
    options = {"url": "http://127.0.0.1:9/score", "retries": 1, "wait_s": 0.01}
    with pool_of(directory, {"judge": {"name": "http", "options": options}}) as pool:
        (result,) = pool.score(items("x"))
    assert result.failure == "exception"
    assert "did not answer: [Errno 111] Connection refused (2 tries)" in result.message
