import os
import sys

# Read by Ray when it is imported. If the driver was started by `uv run`, Ray would start every worker by `uv run` in a
# copy of the working directory, and so make an environment for each of them; workers use the driver's environment.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Read by the raylet that the driver starts. Ray lets workers run at niceness 15, so that any other process of the
# machine would take the processor from trainers and engines; here they are what the machine is for.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray colours its messages wherever they go; in a log they would be control codes.
if not (sys.stdout.isatty() and sys.stderr.isatty()):
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
