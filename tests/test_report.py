"""Reports: rows, traces and text of a run, whatever its errors and results are."""

import gc
import json
import pickle
import threading
import weakref

import pytest

from millstream.report import ErrorReport, RunReport, TaskReport, TaskTrace
from millstream.values import Status

CREATED = 1700000000.0  #: when every run of this file was made


class BrokenError(Exception):
    """An exception that has no text."""

    def __str__(self):
        raise ValueError("no text")


class Unshowable:
    """A result that nobody can look at."""

    def __repr__(self):
        raise RuntimeError("no repr")


def raised(error):
    """Return an error as it is after somebody raised it."""
    try:
        raise error
    except BaseException as caught:
        return caught


def task_report(status=Status.SUCCESS, **fields):
    """Return a row, with the fields that matter to a test."""
    known = {"attempt": 1, "runs": 1, "started_at": CREATED, "finished_at": CREATED + 0.25}
    return TaskReport(status, **known | fields)


def run_report(**fields):
    """Return a report, with the fields that matter to a test."""
    known = {
        "run_id": "orders-7",
        "flow": "orders",
        "metadata": {"by": "a test"},
        "created_at": CREATED,
        "finished_at": CREATED + 1.5,
        "status": Status.SUCCESS,
        "tasks": {},
    }
    return RunReport(**known | fields)


def attempt(worker, begin, end, *, task="count", id=None, number=1, status=Status.SUCCESS):
    """Return one attempt from ``begin`` to ``end``, in seconds after the start of the run."""
    return TaskTrace(task, id or task, number, status, CREATED + begin, CREATED + end, worker)


# ---- errors ---------------------------------------------------------------------------------------


def test_an_error_is_described_by_type_message_and_traceback():
    """A report of an error says what Python would print of it."""
    error = ErrorReport.of(raised(ValueError("boom")))
    assert (error.type, error.message) == ("ValueError", "boom")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "in raised\n    raise error\n" in error.traceback
    assert error.traceback.endswith("ValueError: boom\n")


def test_the_type_of_an_error_is_qualified():
    """The module and the outer classes of an error's class are part of its name."""
    assert ErrorReport.of(BrokenError()).type == f"{__name__}.BrokenError"
    assert ErrorReport.of(json.JSONDecodeError("m", "d", 0)).type == "json.decoder.JSONDecodeError"

    class Inner(Exception):
        pass

    assert ErrorReport.of(Inner()).type == f"{__name__}.test_the_type_of_an_error_is_qualified.<locals>.Inner"
    Inner.__module__ = "__main__"
    assert ErrorReport.of(Inner()).type == "test_the_type_of_an_error_is_qualified.<locals>.Inner"


def test_the_traceback_has_causes_notes_and_groups():
    """What belongs to an error is in its traceback: its cause, its notes, its members."""
    error = ExceptionGroup("several", [raised(ValueError("member"))])
    error.__cause__ = raised(KeyError("cause"))
    error.add_note("a note")
    text = ErrorReport.of(error).traceback
    for said in ("KeyError: 'cause'", "direct cause", "several (1 sub-exception)", "ValueError: member", "a note"):
        assert said in text


def test_an_error_that_was_never_raised_is_described():
    """An error without a stack has a traceback of one line."""
    assert ErrorReport.of(ValueError("boom")).traceback == "ValueError: boom\n"


def test_an_error_without_text_is_described():
    """A broken __str__ does not break the report."""
    error = ErrorReport.of(raised(BrokenError()))
    assert error.message == "<a BrokenError that cannot be shown>"
    assert "in raised\n    raise error\n" in error.traceback
    assert "BrokenError" in error.traceback.splitlines()[-1]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
@pytest.mark.parametrize("broken", ["__notes__", "__cause__", "__suppress_context__", "__str__", "__traceback__"])
def test_describing_an_error_never_raises(kind, broken):
    """Whatever part of an error raises, and whatever it raises, type and stack are told."""

    def refuse(self):
        raise kind("no")

    part = refuse if broken == "__str__" else property(refuse)
    error = ErrorReport.of(raised(type("Hostile", (Exception,), {broken: part})("boom")))
    assert error.type == f"{__name__}.Hostile"
    assert error.message == ("<a Hostile that cannot be shown>" if broken == "__str__" else "boom")
    assert "Hostile" in error.traceback
    assert error.traceback.endswith("\n")


def test_where_no_traceback_can_be_made_the_stack_is_told():
    """When an error's own parts break its traceback, stack, type and message are left."""

    class Hostile(Exception):
        @property
        def __cause__(self):
            raise SystemExit("no")

    lines = ErrorReport.of(raised(Hostile("boom"))).traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in raised" in lines[1]
    assert lines[-1] == f"{Hostile.__module__}.{Hostile.__qualname__}: boom"


def test_a_str_that_gives_no_text_counts_as_broken():
    """A __str__ that returns something else is described as one that raises."""
    kind = type("Odd", (Exception,), {"__str__": lambda self: 5})
    assert ErrorReport.of(kind()).message == "<a Odd that cannot be shown>"


def test_the_report_of_an_unpicklable_error_can_be_pickled():
    """An error that cannot travel has a report that can."""
    error = ValueError("boom", threading.Lock())
    with pytest.raises(TypeError):
        pickle.dumps(error)
    report = run_report(error=ErrorReport.of(raised(error)))
    assert pickle.loads(pickle.dumps(report)) == report


def test_the_report_of_an_error_keeps_nothing_alive():
    """Neither the error nor the locals of its frames live on in its report."""

    class Large:
        pass

    def fail(large):
        raise ValueError("boom")

    large = Large()
    alive = weakref.ref(large)
    try:
        fail(large)
    except ValueError as error:
        report = ErrorReport.of(error)
    del large
    gc.collect()
    assert alive() is None
    assert report.message == "boom"


def test_an_error_report_is_a_dict_of_three_strings():
    """to_dict has the three fields."""
    assert ErrorReport("ValueError", "boom", "Traceback").to_dict() == {
        "type": "ValueError",
        "message": "boom",
        "traceback": "Traceback",
    }


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("boom", "boom"),
        ("\n first \nsecond", "first "),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("x" * 120, "x" * 120),
        ("x" * 121, "x" * 119 + "…"),
    ],
)
def test_the_first_line_of_a_message_fits_a_table(message, line):
    """The first line is that of the text, cut to a width; where there is no text it is the type."""
    assert ErrorReport("ValueError", message, "").first_line() == line


# ---- rows -----------------------------------------------------------------------------------------


def test_a_row_is_a_dict_with_its_result_as_it_is():
    """to_dict has the seven fields in their order; the status is a plain string, the result the object itself."""
    result = object()
    row = task_report(result=result).to_dict()
    assert row == {
        "status": "SUCCESS",
        "attempt": 1,
        "runs": 1,
        "started_at": CREATED,
        "finished_at": CREATED + 0.25,
        "error": None,
        "result": result,
    }
    assert list(row) == ["status", "attempt", "runs", "started_at", "finished_at", "error", "result"]
    assert type(row["status"]) is str


def test_the_error_of_a_row_is_a_dict():
    """A failed task's row has its error as a dict."""
    error = ErrorReport.of(ValueError("boom"))
    row = task_report(Status.FAILED, error=error).to_dict()
    assert row["error"] == error.to_dict()
    assert json.loads(json.dumps(row)) == row


def test_an_attempt_has_a_duration():
    """The duration of an attempt is what passed between its two times, never negative."""
    assert attempt("w", 0.5, 2.0).duration == 1.5
    assert attempt("w", 2.0, 0.5).duration == 0.0


# ---- reports --------------------------------------------------------------------------------------


def test_a_report_is_a_dict_of_seven_keys():
    """to_dict has just the promised keys in their order, and rows by name."""
    row = task_report(result=5)
    report = run_report(tasks={"b": row, "a": row}, trace=(), error=ErrorReport.of(ValueError()))
    told = report.to_dict()
    assert told == {
        "run_id": "orders-7",
        "flow": "orders",
        "metadata": {"by": "a test"},
        "created_at": CREATED,
        "finished_at": CREATED + 1.5,
        "status": "SUCCESS",
        "tasks": {"b": row.to_dict(), "a": row.to_dict()},
    }
    assert list(told) == ["run_id", "flow", "metadata", "created_at", "finished_at", "status", "tasks"]
    assert list(told["tasks"]) == ["b", "a"]
    assert type(told["status"]) is str
    assert json.loads(json.dumps(told)) == told


def test_what_is_changed_in_the_dict_does_not_change_the_report():
    """The dicts of to_dict are new ones."""
    report = run_report(tasks={"a": task_report()})
    told = report.to_dict()
    told["metadata"]["by"] = "another"
    told["tasks"]["a"]["status"] = "FAILED"
    del told["tasks"]["a"]
    assert report == run_report(tasks={"a": task_report()})


def test_reports_are_equal_by_their_fields():
    """Two reports of the same facts are equal; any other fact makes another report."""
    assert run_report(tasks={"a": task_report(result=[1])}) == run_report(tasks={"a": task_report(result=[1])})
    assert run_report(tasks={"a": task_report(result=[1])}) != run_report(tasks={"a": task_report(result=[2])})
    assert run_report(trace=()) != run_report()
    assert attempt("w", 0, 1) == attempt("w", 0, 1) != attempt("v", 0, 1)
    assert ErrorReport("E", "m", "t") == ErrorReport("E", "m", "t") != ErrorReport("E", "n", "t")


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([], "<RunReport orders-7: FAILED, 0 tasks>"),
        ([Status.FAILED], "<RunReport orders-7: FAILED, 1 task: 1 FAILED>"),
        (
            [Status.SUCCESS, Status.FAILED, Status.SUCCESS],
            "<RunReport orders-7: FAILED, 3 tasks: 1 FAILED, 2 SUCCESS>",
        ),
    ],
)
def test_the_repr_of_a_report_counts_its_tasks(statuses, said):
    """The repr is one line with the state of the run and how many tasks are in which."""
    tasks = {f"task-{number}": task_report(status) for number, status in enumerate(statuses)}
    assert repr(run_report(status=Status.FAILED, tasks=tasks)) == said


def test_a_result_that_cannot_be_shown_harms_no_text():
    """A broken repr of a result breaks neither repr nor table nor row."""
    row = task_report(result=Unshowable())
    report = run_report(tasks={"a": row})
    assert repr(report) == "<RunReport orders-7: SUCCESS, 1 task: 1 SUCCESS>"
    assert "a     SUCCESS" in report.to_text()
    assert repr(row).endswith("error=None, result=<a Unshowable that cannot be shown>)")
    assert isinstance(report.to_dict()["tasks"]["a"]["result"], Unshowable)


def test_a_report_as_text_is_a_table():
    """to_text has the run's state and error, and a line with six columns for each task."""
    broken = ErrorReport.of(BrokenError())
    error = ErrorReport.of(ValueError("no such file\nand more"))
    tasks = {
        "split": task_report(),
        "count": task_report(Status.FAILED, runs=120, attempt=3, finished_at=CREATED + 12.5, error=error),
        "merge": task_report(Status.PENDING, runs=0, attempt=0, started_at=None, finished_at=None),
        "odd": task_report(Status.FAILED, error=broken),
    }
    text = run_report(status=Status.FAILED, tasks=tasks, error=error).to_text()
    assert text.splitlines() == [
        "Run orders-7 of orders: FAILED after 1.500 s",
        "ValueError: no such file",
        "",
        "task   status   runs  attempt  seconds  error",
        "split  SUCCESS     1        1    0.250",
        "count  FAILED    120        3   12.500  no such file",
        "merge  PENDING     0        0        -",
        "odd    FAILED      1        1    0.250  <a BrokenError that cannot be shown>",
    ]


def test_a_run_that_is_under_way_has_a_text():
    """Without an end and without tasks the text is one line."""
    assert run_report(status=Status.RUNNING, finished_at=None).to_text() == "Run orders-7 of orders: RUNNING"


# ---- the chrome trace -----------------------------------------------------------------------------


def bars(text):
    """Return the bars of a trace as (row, name, begin, duration), and the names of its rows."""
    events = json.loads(text)["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    found = [event for event in events if event["ph"] == "X"]
    return [(rows[event["tid"]], event["args"]["id"], event["ts"], event["dur"]) for event in found], rows


def test_a_trace_names_its_rows_and_has_a_bar_for_each_attempt():
    """The whole of a small trace: metadata for the process and its workers, one complete event for each attempt."""
    trace = (
        attempt("worker-1", 0.001, 0.002, task="split"),
        attempt("worker-2", 0.0025, 0.0045, id="count#2", number=2, status=Status.FAILED),
    )
    assert json.loads(run_report(trace=trace).to_chrome_trace()) == {
        "traceEvents": [
            {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "orders"}},
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "worker-1"}},
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": 2, "args": {"name": "worker-2"}},
            {
                "name": "split",
                "cat": "task",
                "ph": "X",
                "ts": pytest.approx(1000, abs=1),
                "dur": pytest.approx(1000, abs=1),
                "pid": 1,
                "tid": 1,
                "args": {"id": "split", "attempt": 1, "status": "SUCCESS"},
            },
            {
                "name": "count",
                "cat": "task",
                "ph": "X",
                "ts": pytest.approx(2500, abs=1),
                "dur": pytest.approx(2000, abs=1),
                "pid": 1,
                "tid": 2,
                "args": {"id": "count#2", "attempt": 2, "status": "FAILED"},
            },
        ]
    }


def test_attempts_of_one_worker_share_its_row():
    """A worker that does one thing after the other has one row, in whatever order its attempts are listed."""
    trace = tuple(attempt("w", begin, begin + 1, id=f"count#{begin}") for begin in (3, 0, 2, 1))
    found, rows = bars(run_report(trace=trace).to_chrome_trace())
    assert rows == {1: "w"}
    assert found == [("w", f"count#{begin}", begin * 1e6, 1e6) for begin in range(4)]


def test_attempts_that_overlap_in_one_worker_get_rows_of_their_own():
    """Coroutines overlap in their loop; a row has no overlap, and there are no more rows than that takes."""
    trace = (
        attempt("loop", 0, 4, id="a"),
        attempt("loop", 1, 3, id="b"),
        attempt("thread", 2, 5, id="c"),
        attempt("loop", 3, 5, id="d"),
        attempt("loop", 4, 6, id="e"),
    )
    found, rows = bars(run_report(trace=trace).to_chrome_trace())
    assert rows == {1: "loop", 2: "loop (2)", 3: "thread"}
    assert [bar[:2] for bar in found] == [
        ("loop", "a"),
        ("loop (2)", "b"),
        ("thread", "c"),
        ("loop (2)", "d"),
        ("loop", "e"),
    ]


def test_a_clock_that_was_set_back_gives_no_negative_times():
    """Neither the begin nor the duration of a bar is below 0."""
    found, _ = bars(run_report(trace=(attempt("w", -5, -6),)).to_chrome_trace())
    assert found == [("w", "count", 0, 0)]


def test_a_run_without_tasks_has_a_trace():
    """A trace of nothing is a valid one."""
    assert bars(run_report(trace=()).to_chrome_trace()) == ([], {})


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_trace_is_written_where_it_is_told(kind, tmp_path):
    """The file has just the text that is returned."""
    path = tmp_path / "trace.json"
    report = run_report(flow="Mühle \ud800", trace=(attempt("w", 0, 1),))
    text = report.to_chrome_trace(kind(path))
    assert path.read_text(encoding="utf-8") == text == report.to_chrome_trace()
    assert json.loads(text)["traceEvents"][0]["args"]["name"] == "Mühle \ud800"


def test_a_run_that_kept_no_trace_says_how_to_keep_one(tmp_path):
    """Without a trace there is an error with the mend, and no file."""
    with pytest.raises(ValueError, match=r"^Run orders-7 kept no trace: run it with trace=True\.$"):
        run_report().to_chrome_trace(tmp_path / "trace.json")
    assert list(tmp_path.iterdir()) == []
