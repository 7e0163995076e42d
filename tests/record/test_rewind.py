"""Records of a run that goes on from an earlier step."""

import json

from pentad.record.rewind import rewind
from pentad.record.run_dir import RunDir


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_later_steps_are_cut_and_others_stay_byte_for_byte(tmp_path):
    run = RunDir(tmp_path)
    lines = [json.dumps({"step": step, "a/b": step / 3}) + "\n" for step in (0, 1, 2, 2, 3)]
    run.metrics.write_text("".join(lines) + '{"step": 3, "c')  # a killed process leaves half a line
    run.samples.write_text('{"step": 1, "prompt": "\\ud83d"}\n{"step": 3}\n')
    run.spans.write_text('{"step": 2, "after": false}\n{"step": 2, "after": true}\n{"step": 3, "after": false}\n')
    run.warnings.write_text('{"step": 2, "text": "a"}\n{"step": 3, "text": "b"}\n')
    run.outcome.write_text("{}")
    assert rewind(run, 2) == 1
    assert run.metrics.read_text() == "".join(lines[:4])
    assert rows(run.samples) == [{"step": 1, "prompt": "\ud83d"}]
    assert rows(run.spans) == [{"step": 2, "after": False}, {"step": 2, "after": True}]
    assert rows(run.warnings) == [{"step": 2, "text": "a"}]
    assert not run.outcome.exists()
    assert rewind(run, 2) == 0
    assert run.metrics.read_text() == "".join(lines[:4])


def test_without_records_there_is_nothing_to_do(tmp_path):
    assert rewind(RunDir(tmp_path), 5) == 0
