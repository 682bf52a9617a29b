import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

from inference_service.core.log_config import configure_logging, logging_job

OUTER = UUID(int=1)
INNER = UUID(int=2)
LOGGERS = ("urllib3", "httpx", "opentelemetry.trace", "alembic.runtime.plugins", "inference_service", None)
logger = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def other_handlers_set_aside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps pytest's handlers open, and restores all levels."""
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    yield
    logging.captureWarnings(False)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def log_inside_and_outside_of_jobs() -> None:
    logger.info("before")
    with logging_job(OUTER):
        logger.info("outer")
        with logging_job(INNER):
            logger.info("inner")
        logger.info("outer again")
    logger.info("after")


EXPECTED = [("before", "-"), ("outer", str(OUTER)), ("inner", str(INNER)), ("outer again", str(OUTER)), ("after", "-")]


def test_text_lines_contain_the_job_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    log_inside_and_outside_of_jobs()
    found = lines(capsys)
    assert len(found) == len(EXPECTED)
    for line, (message, job_id) in zip(found, EXPECTED, strict=True):
        assert line.endswith(f" INFO [MainProcess] [job {job_id}] tests.logs: {message}")


def test_json_lines_contain_the_job_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    log_inside_and_outside_of_jobs()
    records = [json.loads(line) for line in lines(capsys)]
    assert [(record["message"], record["job_id"]) for record in records] == EXPECTED
    for record in records:
        assert {"time", "level", "logger", "message", "job_id", "process"} <= set(record)
        assert (record["level"], record["logger"]) == ("INFO", "tests.logs")
        assert datetime.strptime(record["time"], "%Y-%m-%d %H:%M:%S,%f").year >= 2024


def test_json_lines_contain_the_trace_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    with logging_job(OUTER, "4bf92f3577b34da6a3ce929d0e0e4736"):
        logger.info("traced")
        with logging_job(INNER):
            logger.info("not traced")
    logger.info("after")
    found = [json.loads(line)["trace_id"] for line in lines(capsys)]
    assert found == ["4bf92f3577b34da6a3ce929d0e0e4736", "-", "-"]


def test_the_job_id_is_removed_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    with pytest.raises(KeyError), logging_job(OUTER):
        raise KeyError
    logger.info("after")
    assert [json.loads(line)["job_id"] for line in lines(capsys)] == ["-"]


def test_a_traceback_stays_on_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("a “quoted” message\nof two lines")
    (line,) = lines(capsys)
    record = json.loads(line)
    assert record["message"] == "a “quoted” message\nof two lines"
    assert "ValueError: two\nlines" in record["exc_info"]
    assert "“" in line


def test_lines_of_libraries_contain_the_job_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING", "text")
    with logging_job(OUTER):
        logging.getLogger("celery.worker").warning("theirs")
        logging.getLogger("celery.worker").info("too quiet")
    (line,) = lines(capsys)
    assert f"[job {OUTER}] celery.worker: theirs" in line


def test_libraries_log_nothing_that_quotes_messages_or_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """Celery quotes arguments in debug lines, urllib3 URLs in warnings, and httpx those of webhooks."""
    configure_logging("DEBUG", "text")
    logging.getLogger("inference_service.worker.task").debug("kept")
    logging.getLogger("celery.concurrency").debug("TaskPool: Apply (kwargs:'MUELLER^HANS')")
    logging.getLogger("celery.concurrency").info("kept")
    logging.getLogger("urllib3.connectionpool").warning("Failed to parse headers (url=/volumes/MUELLER^HANS)")
    logging.getLogger("urllib3.connectionpool").error("kept")
    logging.getLogger("httpx").info("HTTP Request: POST https://ris.example/hooks?token=secret")
    logging.getLogger("alembic.runtime.plugins").info("setup plugin")
    logging.getLogger("opentelemetry.trace.span").warning("Member doesn't match MUELLER^HANS")
    assert [line.rsplit(" ", 1)[-1] for line in lines(capsys)] == ["kept"] * 3


def test_a_warning_is_logged_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # As captureWarnings leaves it; pytest records warnings instead.
        warnings.showwarning = logging._showwarning  # type: ignore[attr-defined]
        warnings.warn("The value of PatientName, MUELLER^HANS, is invalid", UserWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert "py.warnings" in line
    assert line.endswith(": UserWarning")
    assert Path(__file__).name in line


def test_a_second_configuration_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    configure_logging("INFO", "json")
    logger.info("once")
    (line,) = lines(capsys)
    assert json.loads(line)["message"] == "once"
