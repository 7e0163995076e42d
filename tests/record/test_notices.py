"""Warnings of processes: collected where they are given, shown once by the driver."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import pytest

from pentad.record.notices import NoticeBoard, NoticeLog, collect_notices


@pytest.fixture
def log() -> Iterator[NoticeLog]:
    made = collect_notices()
    yield made
    logging.getLogger("pentad").removeHandler(made)


def test_a_process_keeps_the_warnings_of_pentad(log: NoticeLog) -> None:
    from pentad.engines.hf.graphs import logger

    for _ in range(3):
        logger.warning("decoding without CUDA graphs: %s", "no memory")
    logger.info("not a warning")
    logging.getLogger("megatron.core").warning("of another package")
    logging.getLogger("pentad.trainers").error("of ours")
    assert log.after(0) == ["decoding without CUDA graphs: no memory", "of ours"]
    assert log.after(1) == ["of ours"] and log.after(2) == []


def test_the_board_shows_each_text_once() -> None:
    told = {"engine 0": ["slow"], "engine 1": ["slow", "odd"], "engine 2": ["slow"]}
    asked: list[dict[str, int]] = []

    def fetch(known: Mapping[str, int]) -> Mapping[str, Sequence[str]]:
        asked.append(dict(known))
        return {name: texts[known.get(name, 0) :] for name, texts in told.items()}

    shown: list[str] = []
    board = NoticeBoard(fetch, shown.append)
    board.write(1, {})
    assert shown == ["warning of engine 0 and 2 more: slow", "warning of engine 1: odd"]
    told["engine 0"].append("odd")
    told["engine 2"].append("new")
    board.close()
    assert shown[2:] == ["warning of engine 2: new"]
    assert asked == [{}, {"engine 0": 1, "engine 1": 2, "engine 2": 1}]
