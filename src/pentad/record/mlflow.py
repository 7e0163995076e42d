"""Metrics in MLflow, an optional package.

Invariant: mlflow is imported only when `trainer.logger` names it. A server that does not answer costs its metrics, and
not the run; metrics.jsonl has them.
"""

import logging
import os
import time
from collections.abc import Mapping

from pentad.errors import UserError
from pentad.extras import require
from pentad.record.run_dir import RunDir
from pentad.record.run_list import flat_settings

_log = logging.getLogger(__name__)
_FIX = "set MLFLOW_TRACKING_URI to a server that answers, or unset it, or remove mlflow from trainer.logger"
# Most of one request, and the longest value of a parameter.
_BATCH, _LONGEST = 100, 6000


class MLflow:
    """Sends metrics to a run of the experiment `pentad`, at MLFLOW_TRACKING_URI, or in `<run>/mlruns` without that."""

    def __init__(self, run_dir: RunDir, *, name: str, settings: Mapping[str, object]) -> None:
        """Start the MLflow run; a run that goes on is the same run there, too.

        Raises:
            UserError: mlflow is not installed, or its server does not answer.
        """
        require("mlflow", "mlflow", "trainer.logger", "remove mlflow from trainer.logger")
        # Otherwise files are refused: MLflow would rather have a database, which takes more packages.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._errors = Metric, (MlflowException, OSError)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir.path.absolute() / "mlruns").as_uri()
        known = run_dir.mlflow_id
        try:
            self._client = MlflowClient(uri)
            if known.exists():
                self._id = known.read_text().strip()
                self._client.update_run(self._id, status="RUNNING")
                return
            experiment = self._client.get_experiment_by_name("pentad")
            where = experiment.experiment_id if experiment is not None else self._client.create_experiment("pentad")
            self._id = self._client.create_run(where, run_name=name).info.run_id
            flat = [Param(key, value[:_LONGEST]) for key, value in flat_settings(settings).items()]
            for first in range(0, len(flat), _BATCH):
                self._client.log_batch(self._id, params=flat[first : first + _BATCH])
        except self._errors as error:
            raise UserError(f"mlflow does not start: {_first_line(error)}", _FIX) from error
        partial = known.with_name(f".{known.name}.partial")
        partial.write_text(self._id + "\n")
        partial.replace(known)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step, or a part of them."""
        now = int(time.time() * 1000)
        rows = [self._metric(name, float(value), now, step) for name, value in metrics.items()]
        try:
            for first in range(0, len(rows), _BATCH):
                self._client.log_batch(self._id, metrics=rows[first : first + _BATCH])
        except self._errors as error:
            _log.warning("MLflow has no metrics of step %d: %s", step, _first_line(error))

    def close(self) -> None:
        """Tell the server that the run has ended."""
        try:
            self._client.set_terminated(self._id)
        except self._errors as error:
            _log.warning("MLflow does not know that the run has ended: %s", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
