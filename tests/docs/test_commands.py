"""Commands and settings in the documentation are right: what a page tells to type is accepted by the command line.

Every bash block of README.md, CONTRIBUTING.md and docs/*.md is checked; `doc_commands` says how. Blocks that need a GPU
or the network say so in a comment before them, `<!-- needs: gpu -->`.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from doc_commands import OWN_CONFIGS, RUN_BY, UNCHECKED, mentioned, problems_of, simple_commands
from pages import REPOSITORY, Block, all_blocks, blocks, pages, prose, spans

from pentad.config.loading.keys import known_keys, section_names
from pentad.config.loading.load import load_settings

BASH = [block for block in all_blocks() if block.language == "bash"]
OWN = {
    "experiment": {"name": "mine"},
    "model": {"path": "Qwen/Qwen3-0.6B"},
    "data": {"train": "data/train.jsonl"},
    "trainer": {"total_steps": 100, "tokens_per_microbatch": 65536},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: a configuration, and the files that pages show (`# NAME.py` in the first line)."""
    made = tmp_path_factory.mktemp("reader")
    for name in OWN_CONFIGS:
        (made / name).write_text(yaml.safe_dump(OWN))
    evaluated = {**OWN, "data": {**OWN["data"], "eval": {"hard": "hard.jsonl"}}}
    (made / "mine.yaml").write_text(yaml.safe_dump(evaluated))
    for block in all_blocks():
        if block.language == "python" and (name := re.match(r"# (\w+\.py)\n", block.text)):
            (made / name[1]).write_text(block.text)
    return made


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def found(block: Block, folder: Path) -> list[str]:
    return list(problems_of(block, folder))


@pytest.mark.parametrize("block", BASH, ids=str)
def test_commands_are_right(block: Block, folder: Path) -> None:
    assert found(block, folder) == []


def test_no_command_hides_in_another_kind_of_block() -> None:
    """Only bash blocks are checked. Output and files are blocks of other languages."""
    for block in all_blocks():
        if block.language != "bash":
            # Output may end with commands to go on with, indented.
            assert not re.search(r"^(\$ *)?(pentad|make|python|pytest) ", block.text, re.MULTILINE), str(block)
    for path in pages():
        assert not re.search(r"^(    |\t)(pentad|make|python) ", prose(path.read_text()), re.MULTILINE), path.name


def test_tables_have_nothing_that_is_not_used() -> None:
    used = [words for block in BASH for words in simple_commands(block.text)]
    assert set(UNCHECKED) <= {words[0] for words in used}
    named = [" ".join(words[1:]) for words in used if words[0] == "pentad"]
    assert [name for name in RUN_BY if not any(text == name or text.startswith(f"{name} ") for text in named)] == []


WRONG = {
    "pentad trian run.yaml": "no command pentad trian",
    "pentad train run.yaml trainer.total_step=5": "trainer.total_step",
    "pentad train run.yaml rollout.n=many": "rollout.n",
    "pentad train run.yaml --dry": "unrecognized arguments: --dry",
    "pentad train run.yaml algorithm.name=sft rollout.n=4": "rollout.n",
    "pentad train run.yaml allocation=hf:d2+megatron:q2": "unknown dimension q",
    "pentad train run.yaml allocation=hf:d1|megatron:d1": "megatron:d1: no check is known",
    "pentad train run.yaml 'allocation=vllm:d1|megatron:d1'": "needs: gpu",
    "pentad train examples/none.yaml": "there is no examples/none.yaml",
    "pentad train examples/quickstart.yaml trainer.steps=3": "trainer.steps",
    "pentad init Qwen/Qwen3-0.6B data.csv": "needs: network",
    "pentad init models/mine data.csv rollout.samples=3": "rollout.samples",
    "pentad data gsm8k --out data": "needs: network",
    "pentad checkpoint list runs/mine": "invalid choice",
    "pentad convert models/mine --out x --layout t2q": "allocation",
    "pentad verify layouts qwen3 --allocations megatron:d2e2": "dense model",
    "pentad plan --model Qwen/Qwen3-8B --gpus 8 --gpu h900": "h900",
    "make everything": "no target everything",
    "python bench/none.py": "there is no bench/none.py",
    "python bench/staleness.py --seed 3": "no option --seed",
    "frobnicate --all": "no check is known",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_found(command: str, folder: Path) -> None:
    page = f"Text.\n\n```bash\n# first\nsleep 1 && {command}   # why\n```\n"
    (block,) = blocks(page, "docs/page.md")
    problems = found(block, folder)
    assert len(problems) >= 1 and any(WRONG[command] in problem for problem in problems), problems


def test_a_marker_is_read_and_an_unknown_one_is_found(folder: Path) -> None:
    text = "```bash\npentad data gsm8k --out data\n```\n"
    (marked,) = blocks(f"<!-- needs: network -->\n\n{text}", "page")
    (other,) = blocks(f"<!-- needs: luck, network -->\n{text}", "page")
    assert found(marked, folder) == []
    assert found(other, folder) == ["page:3: a block cannot need luck"]


def test_commands_of_a_script_are_found() -> None:
    text = "until a b; do\n  c=$?; [ $c -eq 2 ] && d 'e|f' \\\n  g > h   # i\ndone\n"
    assert simple_commands(text) == [["a", "b"], ["[", "$c", "-eq", "2", "]"], ["d", "e|f", "g"]]


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_in_sentences_exist(path: Path) -> None:
    for line, text in spans(path.read_text()):
        if re.match(r"(pentad|make) \w", text):
            assert list(mentioned(text)) == [], f"{path.name}:{line}: `{text}`"


def test_a_wrong_command_in_a_sentence_is_found() -> None:
    assert list(mentioned("pentad verify layouts MODEL --lora 8")) == []
    assert list(mentioned("pentad report RUN")) or "report" in RUN_BY
    assert list(mentioned("pentad frobnicate")) == ["there is no command 'frobnicate'"]
    assert list(mentioned("pentad train CONFIG --rehearse")) == ["--rehearse is no option of pentad train"]


def unknown_setting(text: str) -> bool:
    """Whether a span of code names a setting that does not exist, as `trainer.save_freqs=20`."""
    match = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(?:=.*|: .*)?", text)
    if match is None or match[1].endswith((".py", ".yaml", ".json")):
        return False
    name, keys = match[1], known_keys()
    module = REPOSITORY / "src" / "pentad" / f"{name.replace('.', '/')}.py"
    if name.partition(".")[0] not in {key.partition(".")[0] for key in keys} or module.exists():
        return False
    within = any(key.free and name.startswith(f"{key.name}.") for key in keys.values())
    return name not in keys and name not in section_names() and not within


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_settings_in_sentences_exist(path: Path) -> None:
    text = path.read_text()
    if path.name == "coming-from.md":  # the first column is of other systems, and what is said to be verl's
        text = re.sub(r"^\| .*?(?<!\\) \||^verl without .*", "|", text, flags=re.MULTILINE)
    assert [f"{path.name}:{line}: `{span}`" for line, span in spans(text) if unknown_setting(span)] == []


def test_a_wrong_setting_in_a_sentence_is_found() -> None:
    assert unknown_setting("trainer.save_freqs=20") and unknown_setting("rollout.vlm")
    assert not unknown_setting("trainer.save_freq=20") and not unknown_setting("rollout.vllm.enforce_eager")


def _merged(one: dict, other: dict) -> dict:
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


YAML = [block for block in all_blocks() if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=str)
def test_parts_of_configurations_load(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text(yaml.safe_dump(_merged(OWN, yaml.safe_load(block.text))))
    load_settings(path)


def test_what_is_quoted_is_one_word() -> None:
    assert shlex.split("'allocation=hf:d1|megatron:d1'") == ["allocation=hf:d1|megatron:d1"]
