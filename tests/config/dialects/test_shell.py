"""Words of launch scripts, compared with what bash makes of them."""

import shutil
import subprocess

import pytest

from pentad.config.dialects.hydra import read_command
from pentad.config.dialects.shell import commands

SCRIPTS = {
    "continuation": "echo a=1 \\\n  b=2",
    "quotes": "echo a='x y' b=\"$HOME/z\" c=\"['p', 'q']\" d=['console','tensorboard']",
    "variables": 'A=1\nexport B=${A}2 C=x\necho $A ${B} "$C" pre${A}post',
    "defaults": "N=${N:-8}\nM=${UNSET-m}\necho $N $M ${EMPTY:-e} ${HOME:-/root}",
    "nested default": "echo ${X:-${HOME}/y}",
    "arithmetic": "A=6\nB=7\necho $(($A * B)) $((A*(B+1)-2)) $((7/2))",
    "comments": "echo a # b\n# c\necho d#e",
    "array": "CMD=(echo a\n# comment\nb=c 'd e'\n)\n\"${CMD[@]}\"",
    "array appended": 'CMD=(echo a)\nCMD+=(b)\n"${CMD[@]}"',
    "separators": "A=1; echo $A && echo b",
    "redirection": "echo a >/dev/stdout 2>&1",
    "appended text": "A=x\nA+=y\necho $A",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash to compare with")
@pytest.mark.parametrize("case", SCRIPTS)
def test_words_are_those_of_bash(case: str) -> None:
    script = SCRIPTS[case].replace("echo", "printf '<%s>\\n' ")
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={"HOME": "/home/u"})
    words = [word for words in commands(SCRIPTS[case], {"HOME": "/home/u"}) for word in words if word.text != "echo"]
    assert "".join(f"<{word.text}>\n" for word in words) == ran.stdout
    assert not any(word.unresolved for word in words)


def test_what_is_not_known_is_named() -> None:
    script = "T=$(date)\nif true; then A=1; fi\nfor i in 1 2; do B=$i; done\necho $T $A $B $U ${V##*/} `id` $1 $@"
    (words,) = [words for words in commands(script, {}) if words[0].text == "echo"]
    assert [word.unresolved for word in words[1:]] == [
        ("$(date)",), ("$A",), ("$B",), ("$U",), ("${V##*/}",), ("`id`",), ("$1",), ("$@",)
    ]  # fmt: skip


def test_settings_of_a_command() -> None:
    script = (
        "python -m verl.trainer.main_ppo --config-name=ppo_trainer a.b=1 +c.d=x ++e.f=[1,2] ~g.h i.j=None k.l='' \\\n"
        "  m.n=a=b allocation_mode=sglang:d4t4+megatron:(attn:d1|ffn:e4) extra"
    )
    (words,) = commands(script, {})
    command = read_command(words, "run.sh")
    values = {entry.key: entry.value for entry in command.entries}
    assert values == {
        "a.b": 1,
        "c.d": "x",
        "e.f": [1, 2],
        "i.j": None,
        "k.l": None,
        "m.n": "a=b",
        "allocation_mode": "sglang:d4t4+megatron:(attn:d1|ffn:e4)",
    }
    assert (command.removed, command.modules) == (["g.h"], ["verl.trainer.main_ppo"])
    assert [entry.place for entry in command.entries][-1] == "run.sh:2"
    assert [word.text for word in command.others] == ["extra"]
