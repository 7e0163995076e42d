#!/usr/bin/env bash
# Makes the environment that uv.lock describes, in .venv. Needs bash and any Python 3 with pip; finds or installs the rest.
# A working uv is left at .cache/bin/uv for the Makefile. With --tests, optional packages that tests use are installed, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'bootstrap: %s\n' "$*" >&2; }

# A command that exists may still not run: a pyenv shim fails when its Python is not the active one.
works() { [ -n "${1:-}" ] && "$1" --version >/dev/null 2>&1; }

find_uv() {
    local candidate
    for candidate in "$(command -v uv || true)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" "$(user_base)/bin/uv" \
        .cache/uv/bin/uv; do
        if works "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

user_base() { python3 -m site --user-base 2>/dev/null || printf '%s/.local\n' "$HOME"; }

install_uv() {
    say "no working uv found; installing it with pip"
    python3 -m pip install --quiet --user uv >&2 && find_uv >/dev/null && return 0
    say "pip --user did not give a working uv; using a private environment in .cache/uv"
    python3 -m venv .cache/uv >&2 && .cache/uv/bin/python -m pip install --quiet uv >&2
}

is_312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "$(command -v python3.12 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python \
        "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && is_312 "$candidate"; then
            # The interpreter itself, not the shim that leads to it.
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

uv=$(find_uv) || { install_uv && uv=$(find_uv); } || {
    say "uv could not be installed; install it (https://docs.astral.sh/uv) and run this again"
    exit 1
}
mkdir -p .cache/bin
case $uv in /*) target=$uv ;; *) target=$PWD/$uv ;; esac
ln -sfn "$target" .cache/bin/uv

if [ -z "${UV_PYTHON:-}" ]; then
    UV_PYTHON=$(find_python) || {
        UV_PYTHON=3.12
        say "no Python 3.12 found; uv will fetch one"
    }
fi
export UV_PYTHON
# Compiled once here rather than by every worker process: where Python may not write its caches (read-only installs,
# PYTHONDONTWRITEBYTECODE), a trainer rank would otherwise take twice as long to start.
export UV_COMPILE_BYTECODE=1
say "uv $("$uv" --version | cut -d' ' -f2), Python $UV_PYTHON"
extras=()
if [ "${1:-}" = --tests ]; then
    if command -v cc >/dev/null || command -v gcc >/dev/null; then
        extras=(--extra reasoning-gym)
    else
        say "no C compiler: reasoning-gym is left out, and its tests are skipped"
    fi
fi
# Inexact: what an earlier call added stays.
exec "$uv" sync --locked --inexact "${extras[@]}"
