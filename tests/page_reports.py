"""Reports that the tests of pages show: small ones by hand, and one of many attempts."""

import random

from millstream.diagram import Diagram, EdgeKind, TaskEdge, TaskNode
from millstream.report import ErrorReport, RunReport, TaskReport, TaskTrace
from millstream.values import Status

CREATED = 1700000000.0  #: when every run was made

#: Texts that mean something in HTML, in JSON, in a script, in a template or in a terminal, or cannot be written.
NASTY = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "</style><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    '" onfocus="window.pwned=1" autofocus="',
    "' onfocus='window.pwned=1",
    "javascript:window.pwned=1",
    "<!--",
    "<!--<script>",
    "-->",
    "]]>",
    "</title></pre></td></table></details>",
    "&lt;b&gt;&amp;&#60;",
    "$flow ${run} $$ $",
    "{0} {x} %s",
    "\u2028 \u2029",
    "lone \ud800 and \udfff",
    "\x00\x01\x08\x0b\x0c\x1b[31m\x7f\x80\x9b",
    "two\nlines\tand\r\na tab",
    "\u202eright to left",
    "\ufffe\uffff",
    "größe 東京 😀",
    "__proto__",
    " ",
]


class Shows:
    """A value with a ``repr`` of the test's choice."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


def error(message="boom", type="ValueError", traceback=None):
    return ErrorReport(type, message, f"Traceback:\n{type}: {message}\n" if traceback is None else traceback)


def attempt(task, begin, end, *, worker="w-1", id=None, number=1, status=Status.SUCCESS, why=None):
    """Return one attempt from ``begin`` to ``end``, in seconds after the start of the run."""
    return TaskTrace(task, task if id is None else id, number, status, CREATED + begin, CREATED + end, worker, why)


def row(status=Status.SUCCESS, **fields):
    known = {"attempt": 1, "runs": 1, "started_at": CREATED, "finished_at": CREATED + 0.25}
    return TaskReport(status, **known | fields)


def run(tasks=None, **fields):
    known = {
        "run_id": "orders-7",
        "flow": "orders",
        "metadata": {},
        "created_at": CREATED,
        "finished_at": CREATED + 1.5,
        "status": Status.SUCCESS,
        "tasks": {} if tasks is None else tasks,
    }
    return RunReport(**known | fields)


def everywhere(text):
    """Return a report that has a text wherever a report has one."""
    why = error(text, text, text)
    failed = row(Status.FAILED, error=why, result=Shows(text.ljust(40)))
    nodes = [
        TaskNode(text, f"{text}!", description=text, status=Status.FAILED),
        TaskNode("other", status=Status.SUCCESS),
    ]
    return run(
        {text: failed, "other": row(result=Shows(text.ljust(40)))},
        run_id=text,
        flow=text,
        metadata={text: text, 7: Shows(text)},
        status=Status.FAILED,
        trace=(
            attempt(text, 0.0, 0.5, worker=text, id=text + "#2", status=Status.FAILED, why=why),
            attempt("other", 0.5, 1.0, worker=text, id=f"{text}!", number=2),
        ),
        error=why,
        resumed_from=text,
        diagram=Diagram(text, nodes, [TaskEdge(text, "other", EdgeKind.DEPENDENCY)]),
    )


def many(count=10_000, tasks=24, workers=16):
    """Return a run of many attempts: always the same, with failures, retries and what was cancelled."""
    chance = random.Random(7)
    names = [f"task_{number}" for number in range(tasks)]
    free, runs, trace = [0.0] * workers, dict.fromkeys(names, 0), []
    for number in range(count):
        worker = free.index(min(free))
        begin = free[worker] + chance.random() * 0.002
        free[worker] = end = begin + chance.expovariate(50)
        task = names[number % tasks]
        runs[task] += 1
        status = Status.FAILED if number % 100 == 50 else Status.CANCELLED if number % 300 == 75 else Status.SUCCESS
        facts = {"worker": f"worker-{worker}", "id": f"{task}#{runs[task]}", "number": 1 + (number % 70 == 3)}
        why = error(f"no. {number % 4}") if status is Status.FAILED else None
        trace.append(attempt(task, begin, end, status=status, why=why, **facts))
    rows = {}
    for name in names:
        failed = next((each.error for each in trace if each.task == name and each.error), None)
        rows[name] = row(Status.FAILED if failed else Status.SUCCESS, runs=runs[name], error=failed, result=runs[name])
    nodes = [TaskNode(name, status=rows[name].status, runs=runs[name]) for name in names]
    edges = [TaskEdge(one, other) for one, other in zip(names, names[4:], strict=False)]
    return run(rows, finished_at=CREATED + max(free), trace=tuple(trace), diagram=Diagram("orders", nodes, edges))
