import os
from pathlib import Path

import pytest

from pentad.errors import UserError
from pentad.rewards.load import load_reward

MODULE = """
import functools
def plain(prompt, response, ground_truth): return 1.0
def keywords(prompt, response, ground_truth, *, scale=1.0, **extra): return (scale, extra)
def needs(prompt, response, ground_truth, level, scale=1.0): return (level, scale)
def reordered(ground_truth, response, prompt): return (prompt, response, ground_truth)
def two(prompt, response): return (prompt, response)
def by_position(prompt, response, ground_truth, /): return 1.0
def without(text, ground_truth): return 1.0
def trained(completions, trainer_state): return [1.0]
class Uncallable: pass
class Judge:
    def __call__(self, prompt, response, ground_truth): return 0.25
judge = Judge()
number = 3
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    # A name of its own for each test: modules stay imported.
    (tmp_path / f"rewards_{tmp_path.name}.py").write_text(MODULE)
    return tmp_path


def name(directory: Path, function: str) -> str:
    return f"rewards_{directory.name}:{function}"


def test_functions_are_called_by_name(directory: Path) -> None:
    assert load_reward(name(directory, "plain"), {}, directory)("p", "r", "g", {"level": 3}) == 1.0
    assert load_reward(name(directory, "reordered"), {}, directory)("p", "r", "g", {}) == ("p", "r", "g")
    assert load_reward(name(directory, "judge"), {}, directory)("p", "r", "g", {}) == 0.25


def test_options_and_columns(directory: Path) -> None:
    reward = load_reward(name(directory, "keywords"), {"scale": 2.0}, directory)
    assert reward("p", "r", "g", {"level": 3, "scale": 9, "prompt": "other"}) == (2.0, {"level": 3})
    reward = load_reward(name(directory, "needs"), {}, directory)
    assert reward.requires == {"level"}
    assert reward("p", "r", "g", {"level": 3, "more": 4}) == (3, 1.0)
    reward = load_reward(name(directory, "needs"), {"level": 5}, directory)
    assert reward("p", "r", "g", {"level": 3}) == (5, 1.0)


def test_prompt_and_ground_truth_may_be_left_out(directory: Path) -> None:
    reward = load_reward(name(directory, "two"), {}, directory)
    assert reward.requires == frozenset()
    assert reward("p", "r", None, {"level": 3}) == ("p", "r")


def test_files_and_installed_modules(directory: Path, tmp_path: Path) -> None:
    assert load_reward(f"rewards_{directory.name}.py:plain", {}, directory)("", "", "", {}) == 1.0
    with pytest.raises(UserError, match=r"os.path:basename does not take response"):
        load_reward("os.path:basename", {}, directory)


@pytest.mark.parametrize(
    ("function", "options", "fragments"),
    [
        ("plian", {}, ["has no 'plian'", ":plain"]),
        ("number", {}, ["of type int"]),
        ("without", {}, ["does not take response", "(text, ground_truth)", "taken as they are"]),
        ("Uncallable", {}, ["is a class whose objects cannot be called"]),
        ("Judge", {"model": "x"}, ["making an object of the class with reward.options failed: TypeError"]),
        ("trained", {}, ["needs trainer_state, which only TRL's trainer has"]),
        ("by_position", {}, ["takes prompt by position only"]),
        ("plain", {"scale": 2}, ["reward.options.scale"]),
        ("keywords", {"prompt": "x"}, ["reward.options.prompt"]),
        ("needs", {"scael": 2}, ["reward.options.scael", "did you mean scale"]),
    ],
)
def test_what_cannot_be_called_is_refused(directory: Path, function: str, options: dict, fragments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_reward(name(directory, function), options, directory)
    for fragment in fragments:
        assert any(part in str(caught.value) for part in fragment.split("|")), str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("import nosuchlibrary", ["nosuchlibrary", "install nosuchlibrary"]),
        ("def f(:", ["SyntaxError"]),
        ("raise RuntimeError('not today')", ["RuntimeError: not today", ".py:1"]),
        ("import sys; sys.exit(3)", ["SystemExit"]),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path: Path, text: str, fragments: list[str]) -> None:
    (tmp_path / f"broken_{tmp_path.name}.py").write_text(text)
    with pytest.raises(UserError) as caught:
        load_reward(f"broken_{tmp_path.name}:f", {}, tmp_path)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_missing_modules_and_unknown_names(directory: Path) -> None:
    with pytest.raises(UserError, match="there is no module 'reward_") as caught:
        load_reward(f"reward_{directory.name}:plain", {}, directory)
    assert f"did you mean rewards_{directory.name}" in caught.value.fix
    with pytest.raises(UserError, match="there is no file"):
        load_reward(f"sub{os.sep}nothing.py:plain", {}, directory)
    with pytest.raises(UserError, match="neither built in") as caught:
        load_reward("gms8k", {}, directory)
    assert caught.value.fix == "set reward.name=gsm8k"
    with pytest.raises(UserError, match="takes none"):
        load_reward("gsm8k", {"strict": True}, directory)
