"""Environment variables of a run's processes.

Invariant: processes on other machines have what the user set for the run, and the driver's settings of NCCL and of
Hugging Face's libraries; no value is printed.
"""

from collections.abc import Mapping

from pentad.errors import UserError

# Of the driver's variables, those that processes on other machines are given, too.
PASSED_ON = ("NCCL_", "HF_")


def process_environment(wanted: Mapping[str, str | None], driver: Mapping[str, str], *, remote: bool) -> dict[str, str]:
    """Variables that processes do not have already.

    Args:
        wanted: `ray.env`; None stands for the driver's value.
        driver: the driver's environment.
        remote: the cluster was not started by the driver, so its processes have not inherited the driver's variables.

    Raises:
        UserError: a variable has no value.
    """
    found = {name: value for name, value in driver.items() if remote and name.startswith(PASSED_ON)}
    for name, value in wanted.items():
        if value is None and name not in driver:
            raise UserError(
                f"ray.env.{name} is null, which stands for the value that {name} has where the run is started; "
                "it has none there",
                f"export {name}, or remove ray.env.{name}",
            )
        found[name] = driver[name] if value is None else value
    return found
