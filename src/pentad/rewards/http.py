"""A reward that another process computes: a judge, a sandbox for code, a reward model behind HTTP.

Invariant: each sample is asked for until it is answered, refused for good, or its tries are used up; what went wrong
last is said.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

# Later tries may be answered: timeouts, too many requests, and servers that are not there yet.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 8.0


async def http(
    prompt: str,
    response: str,
    ground_truth: Any,
    *,
    url: str,
    retries: int = 3,
    try_s: float = 5.0,
    wait_s: float = 0.5,
    headers: Mapping[str, str] | None = None,
    token_env: str | None = None,
    **columns: Any,
) -> Any:
    """What the server answers to `POST url` with {prompt, response, ground_truth, columns} as JSON.

    It answers a number, or an object with `score` (or `reward`), whose other numbers are logged.

    Args:
        retries: tries after the first that fails; `reward.timeout_s` limits all of them together.
        try_s: longest time of one try, in seconds.
        wait_s: before the second try, in seconds; doubled for each further one, and varied at random.
        headers: of the request.
        token_env: environment variable with a token, sent as `Authorization: Bearer`.

    Raises:
        RuntimeError: no try was answered with such a value.
    """
    sent = {"prompt": prompt, "response": response, "ground_truth": ground_truth, "columns": columns}
    request = _request(url, sent, headers or {}, token_env)
    for number in range(retries + 1):
        try:
            return _value(await asyncio.to_thread(_post, request, try_s))
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING or number == retries:
                raise RuntimeError(f"{url} answered {error.code} {error.reason} ({number + 1} tries)") from error
        except (OSError, TimeoutError) as error:
            if number == retries:
                reason = getattr(error, "reason", error)
                raise RuntimeError(f"{url} did not answer: {reason} ({number + 1} tries)") from error
        await asyncio.sleep(min(wait_s * 2**number, _LONGEST_WAIT_S) * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


def _request(
    url: str, sent: Mapping[str, Any], headers: Mapping[str, str], token_env: str | None
) -> urllib.request.Request:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"reward.options.url={url} is no address; write http://HOST:PORT/PATH")
    body = json.dumps(sent, default=str, ensure_ascii=False).encode("utf-8", "replace")
    given = {"Content-Type": "application/json", **headers}
    if token_env is not None:
        if token_env not in os.environ:
            raise ValueError(f"reward.options.token_env names {token_env}, which is not set; export it")
        given["Authorization"] = f"Bearer {os.environ[token_env]}"
    return urllib.request.Request(url, data=body, headers=given, method="POST")


def _post(request: urllib.request.Request, timeout_s: float) -> bytes:
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return answer.read()


def _value(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise RuntimeError(f"the answer is not JSON: {body[:200]!r}") from error
    if isinstance(value, Mapping) and "score" not in value and "reward" in value:
        return {**{key: other for key, other in value.items() if key != "reward"}, "score": value["reward"]}
    return value
