"""Flows that are written down: what a file may say, what is refused and how that is told, and what it never does."""

from __future__ import annotations

import copy
import difflib
import json
import os
import string
import sys
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import millstream.config
from millstream import (
    BindingError,
    CheckpointError,
    ConfigError,
    CycleError,
    Flow,
    FlowClosedError,
    JSONFileStore,
    NextTask,
    Rate,
    Retry,
    RouteError,
    SQLiteStore,
    Status,
    Task,
    TaskRunLimitError,
    TaskTimeoutError,
    task,
)
from millstream.config.edges import parse
from millstream.config.expressions import compile_text, compile_value
from millstream.config.files import MAX_ALIASED, MAX_BYTES
from millstream.config.loader import EXECUTORS, FLOW, JOB, RATE, SETTINGS, STORE, TASK
from millstream.schedule import Scheduler
from millstream.task import Options
from tests.conftest import WATCHDOG

SCHEMA = json.loads((Path(millstream.config.__file__).parent / "schema.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)
EXAMPLES = Path(__file__).parent.parent / "examples" / "declared"

checked = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    """Stores that are named in flows are made in a folder of their own."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("config"))
    yield
    os.chdir(before)


def f(payload=None):
    return payload


def g(payload=None):
    return payload


CALLABLES = {"f": f, "g": g}


def load(config, allow=None, callables=CALLABLES):
    """Return a flow that was loaded and closed."""
    with Flow.from_config(config, allow=allow, callables=callables) as flow:
        return flow


def of_tasks(**settings):
    """Return the configuration of a flow with a task, and further settings."""
    return {"flow": {"tasks": {"a": "f"}} | settings}


def of_task(**options):
    """Return the configuration of a flow with one task, and options of that."""
    return {"flow": {"tasks": {"a": {"callable": "f"} | options}}}


def refused(config, **options):
    """Return the problems of what cannot be loaded, by their paths."""
    with pytest.raises(ConfigError) as error:
        load(config, **options)
    return told(error.value)


def told(error):
    """Return the problems of an error by their paths, without the name of the file before them."""
    if error.problems:
        found = {}
        for each in error.problems:
            assert each.where not in found, f"{each.where} is told twice"
            found[each.where] = each.problem
        return found
    return {error.where.partition(": ")[2] or error.where: error.problem}


def as_toml(value):
    """Return plain data as one TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def as_yaml(value):
    import yaml

    return yaml.safe_dump(value, sort_keys=False)


WRITERS = {
    ".yaml": as_yaml,
    ".yml": as_yaml,
    ".json": json.dumps,
    ".toml": lambda config: "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in config.items()),
}


def written(folder, content, name="flow.yaml"):
    """Write a file; return its path."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- modules that tasks are in -----------------------------------------------------------------------

KIOSK = {
    "kiosk/__init__.py": "from os import system\n",
    "kiosk/ops.py": """
import functools, os
from builtins import eval as evil
from json import loads
from os import system
from millstream import TaskBase, task

NUMBER = 5
half = functools.partial(os.system, "true")

class LoadError(Exception):
    pass

class Counter:
    def add(self, payload=None):
        return "added"
    @staticmethod
    def static():
        return "static"
    def __call__(self, payload=None):
        return "called"

counter = Counter()

def load(payload=None):
    return "loaded"

@task(retries=2, timeout=3.0)
def known(payload=None):
    return "known"

class Written(TaskBase):
    retries = 4
    def run(self):
        return "written"

class Odd(TaskBase):
    def __new__(cls):
        raise RuntimeError("it cannot be made")

def __getattr__(name):
    if name == "boom":
        raise RuntimeError("it cannot be looked at")
    raise AttributeError(name)
""",
    "kiosk/deep/__init__.py": "",
    "kiosk/deep/down.py": "def load(): return 'deep'\n",
    "kiosk/broken.py": "raise RuntimeError('half finished')\n",
    "kiosk/exits.py": "import sys\nsys.exit(3)\n",
    "kiosk/needs.py": "import no_such_module_at_all\n",
    "kiosk/syntax.py": "def (\n",
    "kiosks/__init__.py": "def load(): return 'another one'\n",
}


@pytest.fixture
def kiosk(tmp_path, monkeypatch):
    """A package that can be imported, with a sibling whose name begins the same way."""
    for name, source in KIOSK.items():
        path = tmp_path / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("kiosk", "kiosks"):
            del sys.modules[name]


# ---- the same flow in each format --------------------------------------------------------------------


def orders(base=2):
    """What the flow of orders calls."""
    tries = []

    def extract(name):
        tries.append(name)
        if len(tries) == 1:
            raise OSError("not there yet")
        return [1, 2, 3]

    return {
        "extract": extract,
        "double": lambda item, factor: item * factor,
        "judge": lambda payload: {"large": payload} if sum(payload) > 10 else "small",
        "large": lambda payload, greeting: f"{greeting}: {payload}",
        "small": lambda: "small",
    }


ORDERS = {
    "$schema": "schema.json",
    "flow": {
        "name": "orders",
        "entry": "extract",
        "executor": "inline",
        "max_task_runs": 100,
        "limits": {"db": 2, "api": {"count": 1000, "per": 1.5}},
        "tasks": {
            "extract": {
                "callable": "extract",
                "outputs": "$ctx.data.rows",
                "retry": {"attempts": 2, "base": 0, "on": ["OSError"]},
                "uses": ["db", "api"],
            },
            "double": {"callable": "double", "for_each": "$ctx.data.rows", "inputs": {"factor": 2}},
            "judge": {"callable": "judge", "routes": ["large", "small"]},
            "large": {"callable": "large", "inputs": {"greeting": "Für {{ ctx.reader ?? 'alle' }}, $$5"}},
            "small": "small",
        },
        "edges": ["extract >> double", ["double", "judge"]],
    },
}


@pytest.mark.parametrize("suffix", [None, *WRITERS])
def test_the_same_flow_in_each_format(tmp_path, suffix):
    """YAML, TOML, JSON and a mapping say the same."""
    config = ORDERS if suffix is None else written(tmp_path, WRITERS[suffix](ORDERS), f"orders{suffix}")

    with Flow.from_config(config, callables=orders()) as flow:
        assert flow.name == "orders"
        assert flow.run(inputs={"name": "x"}) == {"large": "Für alle, $5: [2, 4, 6]"}
        assert flow.context["data"] == {"rows": [1, 2, 3]}
        assert flow.dependencies == {
            "extract": (),
            "double": ("extract",),
            "judge": ("double",),
            "large": (),
            "small": (),
        }
        assert flow.tasks["judge"].routes == ("large", "small")
        assert flow.tasks["extract"].retry == Retry(2, base=0, on=OSError)


def test_a_path_may_be_a_text(tmp_path):
    """A file is named by a text or a ``Path``; a byte order mark before its content is none of it."""
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(of_tasks()).encode(), "flow.JSON")

    assert [*load(path).tasks] == [*load(str(path)).tasks] == ["a"]


def test_a_mapping_is_not_changed():
    """What is given stays as it is, and belongs to whoever gave it."""
    config = copy.deepcopy(ORDERS)

    Flow.from_config(config, callables=orders()).close()

    assert config == ORDERS


def test_a_subclass_makes_flows_of_its_own():
    """``from_config`` and ``from_dsl`` of a subclass make that."""

    class Mine(Flow):
        pass

    assert type(Mine.from_config(of_tasks(), callables=CALLABLES)) is Mine
    assert type(Mine.from_dsl({"a": f})) is Mine


# ---- every option has its key ------------------------------------------------------------------------

#: A value for each setting, and what the flow makes of it. A new setting without an entry here fails.
SETTING_CASES = {
    "name": ("orders", "orders"),
    "executor": ("asyncio", "asyncio"),
    "max_workers": (3, 3),
    "max_parallel": (2, 2),
    "limits": (
        {"db": 2, "api": {"count": 10, "per": 0.5}, "web": {"count": 3}},
        {"db": 2, "api": Rate(10, per=0.5), "web": Rate(3)},
    ),
    "on_error": ("continue", "continue"),
    "max_task_runs": (50, 50),
    "entry": ("a", "a"),
    "store": ("runs.db", SQLiteStore),
}

#: The same for the options of tasks; the shorts for a ``Retry`` give one.
TASK_CASES = {
    "callable": ("g", g),
    "executor": ("inline", "inline"),
    "timeout": (2.5, 2.5),
    "description": ("Loads.", "Loads."),
    "depends_on": (["b"], ("b",)),
    "routes": (["b"], ("b",)),
    "on_dep_failure": ("run-anyway", "run-anyway"),
    "for_each": ("$ctx.rows", "$ctx.rows"),
    "inputs": ({"payload": "$ctx.rows"}, {"payload": "$ctx.rows"}),
    "outputs": ("$ctx.data", "$ctx.data"),
    "retry": ({"attempts": 4, "backoff": "linear", "base": 2, "max_delay": 9, "jitter": 0.5, "on": "OSError"},
              Retry(4, "linear", base=2, max_delay=9, jitter=0.5, on=OSError)),
    "max_parallel": (2, 2),
    "uses": (["db"], ("db",)),
    "resources": ({"num_cpus": 0.5}, {"num_cpus": 0.5}),
    "priority": (-3, -3),
    "version": ("2", "2"),
    "retries": (2, Retry(3, "none")),
    "max_attempts": (2, Retry(2, "none")),
    "backoff": ("linear", Retry(3, "linear")),
    "backoff_base": (0.5, Retry(3, base=0.5)),
    "backoff_max": (5, Retry(3, max_delay=5)),
    "retry_on": (["OSError", "TaskTimeoutError"], Retry(3, "none", on=(OSError, TaskTimeoutError))),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [None, ".yaml", ".json", ".toml"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_has_its_key(tmp_path, setting, suffix):
    """What ``Flow`` takes and is data can be written down, and reaches the flow."""
    value, reached = SETTING_CASES[setting]
    config = of_tasks(**{setting: value})
    assert not [*VALID.iter_errors(config)]

    flow = load(config if suffix is None else written(tmp_path, WRITERS[suffix](config), f"flow{suffix}"))

    found = {"name": flow.name, **flow._settings}[setting]
    assert found == reached if setting != "store" else isinstance(found, reached)


@pytest.mark.parametrize("suffix", [None, ".yaml", ".json", ".toml"])
@pytest.mark.parametrize("option", TASK)
def test_every_option_of_a_task_has_its_key(tmp_path, option, suffix):
    """What a task takes can be written down, and reaches the task."""
    value, reached = TASK_CASES[option]
    facts = {"callable": "f", option: value}
    if option in Options.SHORT and option not in ("retries", "max_attempts"):
        facts["retries"] = 2
    config = {"flow": {"tasks": {"a": facts, "b": "f"}, "limits": {"db": 1}}}
    assert not [*VALID.iter_errors(config)]

    flow = load(config if suffix is None else written(tmp_path, WRITERS[suffix](config), f"flow{suffix}"))

    made = flow.tasks["a"]
    assert getattr(made, {"callable": "fn"}.get(option, "retry" if option in Options.SHORT else option)) == reached


def test_the_tables_are_complete():
    """Whatever ``Flow`` and tasks take has a key, but for objects."""
    assert {*SETTINGS} == {*Flow._OPTIONS} - {"context", "hooks", "logger"}
    assert {*TASK} == {"callable", *Options.NAMES}


def test_none_is_the_same_as_to_leave_it_out(tmp_path):
    """``timeout:`` with nothing behind it is no timeout."""
    flow = load(
        written(
            tmp_path, "flow:\n  name:\n  edges:\n  schedule:\n  tasks: {a: {callable: f, timeout: , retry: , inputs: }}"
        )
    )

    assert (flow.tasks["a"].timeout, flow.tasks["a"].retry, flow.tasks["a"].inputs) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("runs.db", SQLiteStore),
        ({"path": "runs2.db", "kind": "sqlite", "sync": "each"}, SQLiteStore),
        ({"path": "runs.json", "kind": "json", "sync": "each"}, JSONFileStore),
    ],
)
def test_a_store_is_the_flows_own(tmp_path, given, kind):
    """A store is a path, or a mapping of its options; it keeps runs, and is closed with the flow."""
    given = str(tmp_path / given) if isinstance(given, str) else given | {"path": str(tmp_path / given["path"])}
    path = Path(given if isinstance(given, str) else given["path"])
    flow = Flow.from_config(of_tasks(store=given), callables=CALLABLES)
    flow.run("a", {"payload": 5}, run_id="r")
    store = flow._settings["store"]
    assert type(store) is kind
    flow.close()

    assert path.exists()
    if kind is SQLiteStore:
        with pytest.raises(CheckpointError, match="closed"):
            store.run("r")
    with Flow.from_config(
        of_tasks(store=given), callables={"f": lambda payload: pytest.fail("it was called again")}
    ) as again:
        assert again.resume("r", on_code_change="ignore") == {"a": 5}


def test_what_cannot_be_loaded_makes_no_store(tmp_path):
    """A flow with a problem leaves no file and no thread behind."""
    config = {"flow": {"store": str(tmp_path / "runs.db"), "tasks": {"a": "f", "b": "f"}, "edges": ["a >> b >> a"]}}

    with pytest.raises(ConfigError):
        load(config)

    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("edges", [["a >> a"], ["a >> b"], ["a"]])
def test_what_cannot_be_loaded_leaves_no_flow_open(edges):
    """Each flow that is made on the way is closed; the one that is returned is not."""
    made = []

    class Seen(Flow):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    config = {"flow": {"name": "x", "entry": "a", "tasks": {"a": "f"}, "edges": edges}}
    try:
        made.remove(Seen.from_config(config, callables=CALLABLES))
    except ConfigError:
        assert edges != ["a"]
    else:
        assert edges == ["a"]

    assert made
    for flow in made:
        with pytest.raises(FlowClosedError):
            flow.add_task("b", f)


def test_settings_do_what_they_do_in_python():
    """A flow that was written down behaves as one that was made by hand."""
    config = {
        "flow": {
            "executor": "inline",
            "on_error": "continue",
            "tasks": {
                "bad": "bad",
                "after": {"callable": "f", "depends_on": ["bad"], "on_dep_failure": "skip"},
                "beside": "f",
            },
        }
    }

    def bad():
        raise OSError("bad")

    with Flow.from_config(config, callables={**CALLABLES, "bad": bad}) as flow:
        assert flow.run() == {"beside": None}
        assert {name: row.status for name, row in flow.report().tasks.items()} == {
            "bad": Status.FAILED,
            "after": Status.SKIPPED,
            "beside": Status.SUCCESS,
        }


# ---- schedules ---------------------------------------------------------------------------------------

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize("suffix", [None, *WRITERS])
def test_a_schedule_starts_its_tasks(tmp_path, suffix):
    """Each job starts its task with its inputs when it is due."""
    seen = []
    config = of_tasks(
        executor="inline",
        schedule=[
            {"task": "a", "every": 3600, "inputs": {"payload": "hourly"}},
            {
                "task": "a",
                "cron": "30 14 * * *",
                "tz": "Europe/Berlin",
                "inputs": {"payload": "daily"},
                "name": "daily",
            },
            {
                "task": "a",
                "at": "2026-03-02T14:00:00+01:00",
                "inputs": {"payload": "once"},
                "overlap": "parallel",
                "missed": "once",
            },
        ],
    )
    assert not [*VALID.iter_errors(config)]
    if suffix is not None:
        config = written(tmp_path, WRITERS[suffix](config), f"flow{suffix}")

    scheduler = Scheduler.from_config(config, callables={"f": lambda payload: seen.append(payload)})

    with scheduler.flow:
        assert "daily" in [job.name for job in scheduler.jobs]
        for minutes in (0, 30, 60, 90, 120):
            for run in scheduler.tick(NOON + timedelta(minutes=minutes)):
                run.result(WATCHDOG)
            seen.append(minutes)
    position = {entry: place for place, entry in enumerate(seen)}
    assert seen.count("hourly") == 2
    assert seen.count("daily") == seen.count("once") == 1
    assert position[60] < position["daily"] < position[90]
    assert position[30] < position["once"] < position[60]
    assert seen[0] == 0


def test_instants_of_yaml_need_no_quotes(tmp_path):
    """YAML reads an instant by itself."""
    text = "flow: {tasks: {a: f}, schedule: [{task: a, at: 2026-03-02T14:00:00+01:00}]}"

    scheduler = Scheduler.from_config(written(tmp_path, text), callables=CALLABLES)

    with scheduler.flow:
        assert [len(scheduler.tick(NOON + timedelta(hours=n))) for n in (0, 1, 2)] == [0, 1, 0]


def test_a_scheduler_needs_jobs():
    """``Scheduler.from_config`` of a flow without any is refused; the flow alone may be loaded."""
    for config in (of_tasks(), of_tasks(schedule=[])):
        with pytest.raises(ConfigError, match=r"flow\.schedule: it has no jobs"):
            Scheduler.from_config(config, callables=CALLABLES)
    load(of_tasks(schedule=[{"task": "a", "every": 5}]))


@pytest.mark.parametrize(
    ("job", "path", "problem"),
    [
        (5, "flow.schedule[0]", "it is a mapping, not an int"),
        ({"task": "a"}, "flow.schedule[0]", "one of cron, every and at"),
        ({"task": "a", "every": 5, "cron": "* * * * *"}, "flow.schedule[0]", "one of cron, every and at"),
        ({"every": 5}, "flow.schedule[0]", "it has no task"),
        ({"task": "b", "every": 5}, "flow.schedule[0]", "Task b not found. This flow has: a"),
        ({"task": "a", "every": 0}, "flow.schedule[0]", "too often"),
        ({"task": "a", "every": "1h"}, "flow.schedule[0]", "takes seconds"),
        ({"task": "a", "every": float("nan")}, "flow.schedule[0]", "never comes"),
        ({"task": "a", "cron": "* * *"}, "flow.schedule[0]", "has 3 fields instead of 5"),
        ({"task": "a", "cron": "* * * * *", "tz": "Mars/Base"}, "flow.schedule[0]", "Zone 'Mars/Base' is unknown"),
        ({"task": "a", "every": 5, "tz": "UTC"}, "flow.schedule[0].tz", "only cron takes a time zone"),
        ({"task": "a", "at": "soon"}, "flow.schedule[0]", "soon"),
        ({"task": "a", "at": "2026-03-02T14:00:00"}, "flow.schedule[0]", "has no time zone"),
        ({"task": "a", "at": 5}, "flow.schedule[0]", "datetime"),
        ({"task": "a", "every": 5, "overlap": "never"}, "flow.schedule[0]", "overlap is 'skip', 'queue' or 'parallel'"),
        ({"task": "a", "every": 5, "inputs": 5}, "flow.schedule[0]", "inputs"),
        ({"task": "a", "interval": 5}, "flow.schedule[0].interval", "did you mean every?"),
    ],
)
def test_a_job_that_is_none_is_refused_with_the_flow(job, path, problem):
    """Jobs are checked when the flow is loaded, each at its place."""
    found = refused(of_tasks(schedule=[job]))

    assert problem in found[path]


# ---- what is wrong -----------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    """Each problem has its path in the file, and says how to mend it; the error begins with the file."""
    config = {
        "flwo": 1,
        "flow": {
            "nme": "x",
            "on_error": "stop",
            "max_task_runs": 0,
            "executor": "threads",
            "entry": "c",
            "limits": {"db": {"count": 1, "pre": 2}, "api": {"per": 1}},
            "store": {"path": "../runs.db"},
            "tasks": {
                "a": {"callable": "ff", "tiemout": 3},
                "b": {"timeout": -1, "retry": {"attempts": 0, "no": 1}, "depends_on": ["d"], "routes": "a"},
                "c#1": "f",
                "e": {
                    "callable": "f",
                    "inputs": {"x": "$5.00"},
                    "outputs": {"k": "$env.X"},
                    "retry_on": "OSEror",
                    "retries": 1,
                },
                "g": {"function": "f"},
            },
            "edges": ["a >> z", "a >>", ["b"], "b | e", 5],
            "schedule": [{"task": "a"}, {"task": "q", "every": 5}],
        },
    }
    path = written(tmp_path, json.dumps(config), "flow.json")

    with pytest.raises(ConfigError) as error:
        load(path)

    found = told(error.value)
    assert {
        "flwo", "flow.nme", "flow.on_error", "flow.max_task_runs", "flow.executor", "flow.entry", "flow.limits.db.pre",
        "flow.limits.api", "flow.store", "flow.tasks.a.tiemout", "flow.tasks.a.callable", "flow.tasks.b",
        "flow.tasks.b.timeout", "flow.tasks.b.retry.no", "flow.tasks.b.retry", "flow.tasks.b.depends_on[0]",
        "flow.tasks.b.routes", "flow.tasks.c#1", "flow.tasks.e.inputs.x", "flow.tasks.e.outputs.k",
        "flow.tasks.e.retry_on",
        "flow.tasks.g.function", "flow.tasks.g", "flow.edges[0]", "flow.edges[1]", "flow.edges[2]", "flow.edges[3]",
        "flow.edges[4]", "flow.schedule[0]", "flow.schedule[1]",
    } == {*found}  # fmt: skip
    assert str(error.value).startswith(
        f"{path}: {len(found)} problems\n  flwo: there is no such key: did you mean flow?"
    )
    assert "did you mean name?" in found["flow.nme"]
    assert "did you mean timeout?" in found["flow.tasks.a.tiemout"]
    assert "did you mean callable?" in found["flow.tasks.g.function"]
    assert "did you mean f?" in found["flow.tasks.a.callable"]
    assert "Task z not found. This flow has: a, b, c#1, e, g." in found["flow.edges[0]"]


def test_one_problem_is_one_line(tmp_path):
    """The file, the path inside it, and the mend."""
    path = written(tmp_path, json.dumps(of_task(tiemout=3)), "flow.json")

    with pytest.raises(ConfigError) as error:
        load(path)

    assert str(error.value) == f"{path}: flow.tasks.a.tiemout: there is no such key: did you mean timeout?"
    with pytest.raises(ConfigError, match=r"^config: flow\.tasks\.a\.tiemout: "):
        load(of_task(tiemout=3))


@pytest.mark.parametrize(
    ("key", "ours"),
    [("nodes", "tasks"), ("steps", "tasks"), ("backend", "executor"), ("max_worker", "max_workers"), ("edge", "edges")],
)
def test_keys_of_other_libraries_are_told_ours(key, ours):
    """A key that means something elsewhere names ours; so does a misspelt one."""
    assert refused(of_tasks(**{key: 1}))[f"flow.{key}"] == f"there is no such key: did you mean {ours}?"


@pytest.mark.parametrize(
    "config",
    [
        None,
        5,
        [],
        "",
        of_tasks()["flow"],
        {"flow": []},
        {"flow": None},
        {"flow": {}},
        {"flow": {"tasks": []}},
        {"flow": {"tasks": {}}},
        {5: 6},
    ],
)
def test_what_describes_no_flow_is_refused(tmp_path, config):
    """Whatever is no mapping with a flow in it is a ``ConfigError``, from a file and otherwise."""
    if isinstance(config, str):
        config = [config]
    with pytest.raises(ConfigError):
        load(config)
    if config != {5: 6}:
        with pytest.raises(ConfigError):
            load(written(tmp_path, json.dumps(config), "flow.json"))


@pytest.mark.parametrize(
    "config",
    [
        {"flow": {"tasks": {"a": "f", "b": "f"}, "edges": ["a >> b >> a"]}},
        of_task(for_each="nope"),
        of_task(inputs="$payload.nope.x"),
        of_task(depends_on=["a"]),
    ],
)
def test_what_a_check_of_the_whole_flow_finds_is_told_once(config):
    """Circles, and names of no task in expressions, are one problem each."""
    refused(config)


def test_max_workers_is_told_with_the_rest():
    """Every problem, with its path: also that of a setting which depends on another one."""
    assert {*refused({"flow": {"tasks": {"a": "nope"}, "max_workers": 0}})} == {
        "flow.tasks.a.callable",
        "flow.max_workers",
    }


def test_limits_that_are_none_are_told_with_their_paths():
    """A limit that tasks use and the flow lacks."""
    config = {"flow": {"tasks": {"a": {"callable": "f", "uses": ["x"]}, "b": {"callable": "f", "uses": ["y"]}}}}

    assert all(path.startswith("flow.tasks.") for path in refused(config))


@pytest.mark.parametrize(("given", "path"), [({"x": "$5.00"}, ".x"), ({"x": {"y": [1, "$5.00"]}}, ".x.y[1]")])
def test_an_input_is_told_with_its_whole_path(given, path):
    """The path goes on to the text that is wrong."""
    assert f"flow.tasks.a.inputs{path}" in refused(of_task(inputs=given))


@pytest.mark.parametrize("edges", ["nope", ["nope"], ["nope & a"]])
def test_a_name_alone_among_the_edges_is_looked_up(edges):
    """A text without ``>>`` makes no edge, and still names a task: ``from_dsl`` refuses it."""
    with pytest.raises(ConfigError):
        Flow.from_dsl({"a": f}, edges=edges)

    assert "Task nope not found" in str(refused(of_tasks(edges=edges)))


@pytest.mark.parametrize("path", ["$nope.x", "$ctx", "$ctx.rows ?? []"])
def test_a_for_each_that_is_no_path_is_refused(path):
    """What can be refused is refused when the flow is loaded."""
    assert "flow.tasks.a.for_each" in refused(of_task(for_each=path))


def test_an_empty_list_of_errors_is_refused():
    """As by ``Retry(on=())``, and by the schema."""
    assert "flow.tasks.a.retry_on" in refused(of_task(retries=1, retry_on=[]))


@pytest.mark.parametrize(
    "config",
    [of_tasks(executor="deep"), of_tasks(store={"path": "deep"}), of_tasks(store={"path": "x.db", "kind": "deep"})],
)
def test_a_value_of_any_depth_is_refused(config):
    """A list that is deeper than the stack is told as anything else that is wrong."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    flow = config["flow"]
    for mapping in (flow, flow.get("store")):
        for key, value in (mapping or {}).items():
            if value == "deep":
                mapping[key] = deep

    refused(config)


@pytest.mark.parametrize(
    "option", [option for option in TASK if option not in ("callable", "executor", "uses", "retry_on")]
)
def test_a_value_of_any_depth_is_refused_by_tasks(option):
    """The same for the options of tasks, at their paths."""
    deep = []
    for _ in range(100_000):
        deep = [deep]

    assert all(path.startswith("flow.tasks.a") for path in refused(of_task(**{option: deep})))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"allow": "kiosk"}, "allow is a list of names of modules"),
        ({"allow": 5}, "allow is a list of names"),
        ({"allow": ["kiosk", 5]}, "and has 5"),
        ({"callables": [f]}, "callables is a mapping"),
        ({"callables": {"f": 5}}, "callables is a mapping of names to functions, and has 'f': 5"),
        ({"callables": {5: f}}, "and has 5"),
    ],
)
def test_arguments_of_another_kind_are_type_errors(arguments, sentence):
    """The arguments are no part of the file, so what is wrong with them is no ``ConfigError``."""
    with pytest.raises(TypeError, match=sentence):
        Flow.from_config(of_tasks(), **arguments)


# ---- what may be imported ----------------------------------------------------------------------------


def called(name, allow=None, **options):
    """Return what a task gives whose callable has this name."""
    with Flow.from_config(
        {"flow": {"executor": "inline", "tasks": {"a": {"callable": name, **options}}}}, allow=allow
    ) as flow:
        return flow.run()["a"]


@pytest.mark.parametrize(
    ("name", "gives"),
    [
        ("kiosk.ops.load", "loaded"),
        ("kiosk.ops:load", "loaded"),
        ("kiosk.ops.counter", "called"),
        ("kiosk.ops.counter.add", "added"),
        ("kiosk.ops.Counter.static", "static"),
        ("kiosk.ops:Counter.static", "static"),
        ("kiosk.ops.known", "known"),
        ("kiosk.ops.Written", "written"),
        ("kiosk.deep.down.load", "deep"),
    ],
)
@pytest.mark.parametrize("allow", [None, ["kiosk"], ["json", "kiosk"]])
def test_a_callable_is_named_by_its_module(kiosk, name, gives, allow):
    """Functions, objects that can be called, tasks and classes of tasks are found by module and name."""
    assert called(name, allow) == gives


REFUSED = {
    "os.system": "is in os, and may not be imported",
    "posix.system": "is in posix",
    "builtins.eval": "is in builtins",
    "importlib.import_module": "is in importlib",
    "subprocess.Popen": "is in subprocess",
    "kiosk.system": "is in posix",
    "kiosk.ops.system": "is in posix, and may not be imported",
    "kiosk.ops:system": "is in posix",
    "kiosk.ops.os.system": "leads through kiosk.ops to another module",
    "kiosk.ops.evil": "is in builtins",
    "kiosk.ops.loads": "is in json",
    "kiosk.ops.half": "is in posix",
    "kiosk.ops.functools.reduce": "leads through kiosk.ops to another module",
    "kiosk.ops.__class__": "reaches for an attribute of Python's own",
    "kiosk.ops.load.__globals__": "reaches for an attribute of Python's own",
    "kiosk.ops.__builtins__.eval": "reaches for an attribute of Python's own",
    "kiosk.ops:load.__call__": "reaches for an attribute of Python's own",
    "kiosk.__init__.system": "reaches for an attribute of Python's own",
    "../kiosk.ops": "is no name of a function",
    "..kiosk.ops": "is no name of a function",
    ".ops.load": "is no name of a function",
    "kiosk/ops.load": "is no name of a function",
    "kiosk..ops": "is no name of a function",
    "kiosk.ops.load()": "is no name of a function",
    "kiosk.ops:load:x": "is no name of a function",
    "kiosk.ops.load\n": "is no name of a function",
    " kiosk.ops.load": "is no name of a function",
    "kiosk": "is no name of a function",
    "eval": "is no name of a function",
    "": "is no name of a function",
    "$ctx.callable": "is no name of a function",
    "{{ ctx.callable }}": "is no name of a function",
    "kiosk.ops.lod": "kiosk.ops has no lod: did you mean load?",
    "kiosk.opps.load": "kiosk has no opps: ",
    "kiosk.broken.load": "importing kiosk.broken failed: RuntimeError: half finished",
    "kiosk.exits.load": "importing kiosk.exits failed: SystemExit: 3",
    "kiosk.needs.load": "importing kiosk.needs failed: No module named 'no_such_module_at_all'",
    "kiosk.syntax.load": "importing kiosk.syntax failed: SyntaxError",
}


@pytest.mark.parametrize(
    ("name", "allow"),
    [
        (name, allow)
        for name, problem in REFUSED.items()
        for allow in (None, ["kiosk"])
        if allow is not None or not problem.startswith("is in ")
    ],
)
def test_what_may_not_be_called_is_refused(kiosk, name, allow):
    """What is not allowed; and always what is reached through another module, or by an attribute of Python's own."""
    found = refused({"flow": {"tasks": {"a": name}}}, allow=allow)["flow.tasks.a.callable"]

    assert REFUSED[name] in found


@pytest.mark.parametrize("name", ["antigravity.fly", "this.s", "kiosks.load", "kiosk.broken.load"])
def test_what_may_not_be_imported_is_not_imported(kiosk, name):
    """The check comes before the import, so nothing of the module is executed."""
    for module in ("antigravity", "this", "kiosks", "kiosk.broken"):
        sys.modules.pop(module, None)

    found = refused({"flow": {"tasks": {"a": name}}}, allow=["kiosk.ops"])

    assert "may not be imported: only what is in kiosk.ops may be: add it to allow=" in found["flow.tasks.a.callable"]
    assert name.rpartition(".")[0] not in sys.modules


@pytest.mark.parametrize(
    ("allow", "name", "gives"),
    [
        (["kiosk"], "kiosks.load", None),
        (["kiosks"], "kiosks.load", "another one"),
        (["kiosks"], "kiosk.ops.load", None),
        (["kiosk.deep"], "kiosk.deep.down.load", "deep"),
        (["kiosk.deep"], "kiosk.ops.load", None),
        (["kiosk.deep.down"], "kiosk.deep.down.load", "deep"),
        (["kiosk.deep.do"], "kiosk.deep.down.load", None),
        (["kiosk.deep.down.load"], "kiosk.deep.down.load", None),
        ([], "kiosk.ops.load", None),
        (["Kiosk"], "kiosk.ops.load", None),
        ([""], "kiosk.ops.load", None),
        (["kiosk"], "json.loads", None),
    ],
)
def test_allow_is_a_module_and_what_is_below_it(kiosk, allow, name, gives):
    """A module that is allowed brings what is below it, and no sibling whose name begins the same way."""
    if gives is None:
        assert "may not be imported" in refused({"flow": {"tasks": {"a": name}}}, allow=allow)["flow.tasks.a.callable"]
    else:
        assert called(name, allow) == gives


def test_modules_of_python_are_allowed_by_name(kiosk):
    """``allow`` opens what is named, for callables and what they resolve to."""
    for name, allow in [("json.loads", ["json"]), ("kiosk.ops.loads", ["kiosk", "json"])]:
        with Flow.from_config(
            {"flow": {"tasks": {"a": {"callable": name, "inputs": {"s": "[5]"}}}}}, allow=allow
        ) as flow:
            assert flow.run() == {"a": [5]}
    assert "is in json" in str(refused({"flow": {"tasks": {"a": "kiosk.ops.loads"}}}, allow=["kiosk"]))


def test_callables_are_found_by_their_names_alone(kiosk):
    """A name in ``callables`` goes before any import, and needs no ``allow``; it may be any text."""
    given = {
        "kiosk.ops.load": lambda: "mine",
        "a b": lambda: "spaces",
        "eval": lambda: "no eval",
        "t": task(retries=3)(f),
    }
    config = {"flow": {"executor": "inline", "tasks": {"a": "kiosk.ops.load", "b": "a b", "c": "eval", "d": "t"}}}

    with Flow.from_config(config, allow=[], callables=given) as flow:
        assert flow.run(["a", "b", "c", "d"]) == {"a": "mine", "b": "spaces", "c": "no eval", "d": None}
        assert flow.tasks["d"].retry == Retry(4, "none")


def test_options_of_a_file_go_before_those_of_a_task(kiosk):
    """A callable that is a task brings its own options, and the file changes them."""
    config = {
        "flow": {
            "tasks": {
                "a": "kiosk.ops.known",
                "b": {"callable": "kiosk.ops.known", "retries": 5},
                "c": {"callable": "kiosk.ops.known", "timeout": 9},
            }
        }
    }

    tasks = load(config).tasks

    assert [(tasks[name].retry.attempts, tasks[name].timeout) for name in "abc"] == [(3, 3.0), (6, 3.0), (3, 9)]


def test_errors_are_named_as_callables_are(kiosk):
    """Those of Python and of Millstream by name alone, others by where they are, if that may be imported."""
    config = of_task(retries=1, retry_on=["OSError", "TaskTimeoutError", "kiosk.ops.LoadError"])

    on = load(config, allow=["kiosk"]).tasks["a"].retry.on

    assert [error.__name__ for error in on] == ["OSError", "TaskTimeoutError", "LoadError"]
    for name, problem in {
        "kiosk.ops.LoadError": "may not be imported",
        "print": "is no class of errors",
        "list": "is no class of errors",
        "OSEror": "is no name of a",
        "__import__": "no class of errors",
        5: "is the name of an error",
    }.items():
        for option in ({"retries": 1, "retry_on": name}, {"retry": {"on": [name]}}):
            assert any(problem in each for each in refused(of_task(**option), allow=[]).values()), name


@pytest.mark.parametrize("allow", [None, ["kiosk"]])
def test_what_cannot_be_called_is_told_so(kiosk, allow):
    """A number is no function; that it is one of ``builtins`` says nothing."""
    found = refused({"flow": {"tasks": {"a": "kiosk.ops.NUMBER"}}}, allow=allow)

    assert "is an int, and cannot be called" in found["flow.tasks.a.callable"]


@pytest.mark.parametrize("name", ["kiosk.ops.boom", "kiosk.ops.Odd"])
def test_code_that_fails_while_a_name_is_looked_up_is_a_problem(kiosk, name):
    """A module that raises from ``__getattr__``, and a task that cannot be made."""
    assert "it cannot be" in refused({"flow": {"tasks": {"a": name}}})["flow.tasks.a.callable"]


# ---- files -------------------------------------------------------------------------------------------


def file_refused(folder, content, name="flow.yaml"):
    """Return the problem of a file, without its path."""
    path = written(folder, content, name)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert error.value.where.startswith(str(path))
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["flow", "flow.txt", "flow.py", "flow.yaml.bak", ".yaml", "flow.pickle"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    """The suffix says what a file is."""
    assert "ends in .yaml, .yml, .toml, .json: rename it" in file_refused(tmp_path, json.dumps(of_tasks()), name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    """Missing, a directory, or under a file."""
    (tmp_path / "folder.json").mkdir()
    written(tmp_path, "{}", "file.json")
    for name, reason in [
        ("no.json", "No such file"),
        ("folder.json", "directory"),
        ("file.json/x.json", "Not a directory"),
    ]:
        with pytest.raises(ConfigError, match=f"it cannot be read .*{reason}.*: check the path"):
            load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    """No permission is told as such."""
    path = written(tmp_path, json.dumps(of_tasks()), "flow.json")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path)


def test_a_path_with_a_zero_byte_is_refused():
    """A path that no system takes is one that cannot be read."""
    try:
        load("flow\0.json")
    except ConfigError:
        return


@pytest.mark.parametrize("name", ["flow.yaml", "flow.json", "flow.toml"])
def test_a_file_in_another_encoding_is_refused(tmp_path, name):
    """Whatever is not UTF-8 is told so, and not guessed."""
    for content in (b"# gr\xfc\xdfe", "flow: x".encode("utf-16"), b"\xff\xfe\x00", b"\x80"):
        assert "is no text in UTF-8" in file_refused(tmp_path, content, name)


@pytest.mark.parametrize("name", ["flow.yaml", "flow.json", "flow.toml"])
def test_a_file_that_is_too_large_is_refused_unread(tmp_path, name):
    """A flow is small."""
    assert "more than 10,000,000 bytes" in file_refused(tmp_path, b" " * (MAX_BYTES + 1), name)


def test_yaml_needs_its_library(tmp_path, monkeypatch):
    """Without it the error says what to install; JSON and TOML go on without it."""
    monkeypatch.setitem(sys.modules, "yaml", None)

    assert "pip install 'millstream[yaml]', or write TOML or JSON" in file_refused(tmp_path, "flow: {}")
    load(written(tmp_path, json.dumps(of_tasks()), "flow.json"))
    load(written(tmp_path, WRITERS[".toml"](of_tasks()), "flow.toml"))


# ---- YAML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch hacked']",
        "!!python/object/new:os.system ['touch hacked']",
        "!!python/object:kiosk.ops.Counter {}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!include other.yaml",
        "!custom x",
        "!<tag:yaml.org,2002:python/name:os.system> ''",
    ],
)
def test_no_tag_makes_an_object(tmp_path, monkeypatch, tag):
    """What is no plain data is refused, and nothing is called."""
    monkeypatch.chdir(tmp_path)

    for text in (
        f"flow: {tag}",
        f"? {tag}\n: 1\nflow: {{}}",
        f"flow: {{tasks: {{a: {{callable: f, inputs: {{x: {tag} }}}}}}}}",
    ):
        assert "it is no YAML: could not determine a constructor" in file_refused(tmp_path, text)
    assert {path.name for path in tmp_path.iterdir()} == {"flow.yaml"}


def laughs(levels, width=10, how="[{}]"):
    """Return a text in which each level has the one before many times."""
    lines = [f"l0: &l0 {how.format(', '.join(['x: 1' if 'x' in how else 'ha'] * (1 if 'x' in how else width)))}"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} {how.format(', '.join([f'*l{level - 1}'] * width))}")
    return "\n".join(lines)


def test_aliases_that_stand_for_too_much_are_refused(tmp_path):
    """The billion laughs: a few lines that stand for more values than there is memory."""
    for levels in (7, 50, 90):
        assert f"its aliases stand for more than {MAX_ALIASED:,} values: write them out" in file_refused(
            tmp_path, laughs(levels)
        )


def test_merge_keys_that_stand_for_too_much_are_refused(tmp_path):
    """The same by ``<<``, which copies what it names."""
    lines = ["l0: &l0 {k0: 1, k1: 2, k2: 3}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 10)}], own{n}: 1}}" for n in range(1, 40)]

    assert "write them out" in file_refused(tmp_path, "\n".join(lines))


def test_an_alias_of_itself_is_refused(tmp_path):
    """A value that has itself in it is told with its line."""
    for text in (
        "flow: &a\n  tasks: *a",
        "flow:\n  &a [1, *a]",
        "flow:\n  &a {<<: *a}",
        "flow:\n  &a [&b {x: *a}]",
        "&a ? *a\n: 1",
    ):
        found = file_refused(tmp_path, text)
        assert "has itself in it, by an alias" in found or "it is no YAML" in found


def test_aliases_and_merge_keys_are_for_sharing(tmp_path):
    """Their honest use works."""
    text = """
    flow:
      executor: inline
      tasks:
        a: &base {callable: f, retries: 2, timeout: 5}
        b: {<<: *base, timeout: 7}
        c: *base
    """
    tasks = load(written(tmp_path, text)).tasks

    assert [(made.retry.attempts, made.timeout) for made in tasks.values()] == [(3, 5), (3, 7), (3, 5)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flow:\n  tasks: {a: f}\n  tasks: {b: f}", 3),
        ("flow: {tasks: {a: f, a: g}}", 1),
        ("flow:\n  tasks:\n    a: f\n    'a': g", 4),
        ("a: 1\nb: [{x: 1,\n x: 2}]", 3),
    ],
)
def test_a_key_that_comes_twice_is_refused(tmp_path, text, line):
    """At any depth, with its line; no value is dropped quietly."""
    assert f"line {line} has the key " in file_refused(tmp_path, text)
    assert "again: take one of the two out" in file_refused(tmp_path, text)


def test_on_off_yes_and_no_are_texts(tmp_path):
    """As YAML 1.2 has it: ``on`` is a key of ours, and a task may be called ``no``."""
    options = "callable: f, retry: {attempts: 2, on: OSError}, inputs: {x: [yes, off, y, true, False]}"
    text = f"flow:\n  tasks:\n    no: {{{options}}}"

    (made,) = load(written(tmp_path, text), callables={"f": lambda x: x}).tasks.values()

    assert (made.name, made.retry) == ("no", Retry(2, on=OSError))
    assert made.inputs == {"x": ["yes", "off", "y", True, False]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("flow: {tasks: {a: f}}\n---\nflow: {tasks: {b: f}}", "expected a single document"),
        ("flow: {", "it is no YAML"),
        ("flow: [}", "it is no YAML"),
        ("flow:\n\t- x", "it is no YAML"),
        ("flow: *a", "undefined alias"),
        ("? [a]\n: 1", "unhashable key"),
        ("flow: 2026-99-99", "it cannot be read"),
        ("", "it is a mapping, not nothing"),
        ("# nothing", "it is a mapping, not nothing"),
        ("just text", "it is a mapping, not a str"),
        ("- flow", "it is a mapping, not a list"),
    ],
)
def test_yaml_that_is_none_is_refused(tmp_path, text, problem):
    """One sentence, on one line for each problem, with the line and column of the file."""
    assert problem in file_refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["[" * 5_000, "{a: " * 5_000, "- " * 5_000, "[" * 101 + "]" * 101, "? " * 5000],
    ids=lambda text: text[:4],
)
def test_yaml_that_is_too_deep_is_refused(tmp_path, text):
    """Lists and mappings in each other have a limit, and no text exhausts the stack."""
    assert "lists and mappings stand in each other" in file_refused(tmp_path, text)


@pytest.mark.parametrize("character", ["\0", "\7", "\x1b", "\ufffe"])
def test_yaml_with_a_control_character_is_refused(tmp_path, character):
    """Such a file is no YAML."""
    assert "it is no YAML" in file_refused(tmp_path, f"flow: a{character}b")


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!int _", "!!float ''", "!!bool maybe", "!!timestamp soon", "!!bool {=: x}"]
)
def test_yaml_with_a_tag_that_does_not_fit_is_refused(tmp_path, value):
    """A tag of YAML itself before something else."""
    file_refused(tmp_path, f"flow: {value}")


# ---- JSON and TOML -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"flow": {}, "flow": {}}', "the key 'flow' comes twice"),
        ('{"flow": {"tasks": {"a": "f", "a": "g"}}}', "the key 'a' comes twice in one mapping"),
        ('{"a": [{"x": 1, "\\u0078": 2}]}', "the key 'x' comes twice"),
        ("[" * 100_000, "stand in each other too deeply"),
        ('{"a":' * 100_000, "stand in each other too deeply"),
        ("", "it cannot be read: Expecting value: line 1 column 1"),
        ("{", "line 1 column 2"),
        ("{'flow': 1}", "it cannot be read"),
        ('{"flow": 1,}', "it cannot be read"),
        ('{"flow": {}} x', "Extra data"),
        ("1" * 10_000, "it cannot be read"),
        ('{"flow": "\x01"}', "Invalid control character"),
    ],
)
def test_json_that_is_none_is_refused(tmp_path, text, problem):
    """With line and column, where there are such."""
    assert problem in file_refused(tmp_path, text, "flow.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_where_they_stand(tmp_path, number):
    """What JSON of Python reads beyond JSON is refused by whatever wants a number."""
    for option, path in [
        (f'"timeout": {number}', "timeout"),
        (f'"max_parallel": {number}', "max_parallel"),
        (f'"priority": {number}', "priority"),
        (f'"resources": {{"x": {number}}}', "resources"),
        (f'"retry": {{"base": {number}}}', "retry"),
    ]:
        if path == "resources" and number in ("Infinity", "1e999"):
            continue  # an amount like any other, which no machine has
        assert f"flow.tasks.a.{path}" in file_refused(
            tmp_path, f'{{"flow": {{"tasks": {{"a": {{"callable": "f", {option}}}}}}}}}', "flow.json"
        )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("flow = ", "it cannot be read"),
        ("[flow]\nname = 'a'\nname = 'b'", "Cannot overwrite a value"),
        ("[flow]\n[flow]", "Cannot declare"),
        ("a = [1\n", "Unclosed array"),
        ("a = " + "[" * 100_000, "too deeply"),
        ("x = " + "{a=" * 5000, "too deeply"),
        ("a = 1" + "0" * 5000, "it cannot be read"),
        ("a = 1979-99-99", "line 1, column"),
        ("", "flow: it is missing"),
    ],
)
def test_toml_that_is_none_is_refused(tmp_path, text, problem):
    """With line and column, where there are such."""
    assert problem in file_refused(tmp_path, text, "flow.toml")


# ---- the schema --------------------------------------------------------------------------------------

GOOD = {
    "orders": ORDERS,
    "one task": of_tasks(),
    "everything": {
        "flow": {
            **{setting: value for setting, (value, _) in SETTING_CASES.items()},
            "tasks": {
                **{
                    f"of {option}": {"callable": "f", option: value}
                    | ({"retries": 2} if option in ("backoff", "backoff_base", "backoff_max", "retry_on") else {})
                    for option, (value, _) in TASK_CASES.items()
                },
                "a": "f",
                "b": "f",
            },
            "edges": "a >> b",
            "schedule": [
                {
                    "task": "a",
                    "cron": "@hourly",
                    "tz": "UTC",
                    "overlap": "queue",
                    "missed": "once",
                    "name": "x",
                    "inputs": {"n": 1},
                },
                {"task": "a", "every": 0.5},
                {"task": "b", "at": "2026-12-24T18:00:00+01:00"},
            ],
        }
    },
    "store": of_tasks(store={"path": "runs.sqlite", "kind": "sqlite", "sync": "full", "lease": 5, "retention": 0.5}),
    "edges": {"flow": {"tasks": {"a": "f", "b c": "f"}, "edges": ["a >> 'b c'", ["a", "b c"]]}},
}

BAD = {
    "nothing": {},
    "a list": [],
    "no flow": {"flows": {}},
    "a further key": {**of_tasks(), "further": 1},
    "a flow that is a list": {"flow": []},
    "no tasks": {"flow": {}},
    "no task": {"flow": {"tasks": {}}},
    "tasks in a list": {"flow": {"tasks": ["f"]}},
    "an unknown setting": of_tasks(hooks=[]),
    "a name that is none": of_tasks(name=5),
    "an executor that is none": of_tasks(executor="ray"),
    "no workers": of_tasks(max_workers=0),
    "half a worker": of_tasks(max_workers=1.5),
    "a text for a number": of_tasks(max_parallel="2"),
    "a truth for a number": of_tasks(max_task_runs=True),
    "a limit of none": of_tasks(limits={"x": 0}),
    "a rate without a count": of_tasks(limits={"x": {"per": 1}}),
    "a rate with more": of_tasks(limits={"x": {"count": 1, "burst": 1}}),
    "a rate of no time": of_tasks(limits={"x": {"count": 1, "per": 0}}),
    "an on_error that is none": of_tasks(on_error="stop"),
    "an entry that is none": of_tasks(entry=["a"]),
    "a store without a path": of_tasks(store={"kind": "json"}),
    "a store of no name": of_tasks(store=""),
    "a store of another kind": of_tasks(store={"path": "x", "kind": "redis"}),
    "a store with more": of_tasks(store={"path": "x", "url": "x"}),
    "a store that syncs never": of_tasks(store={"path": "x", "sync": "never"}),
    "edges that are a number": of_tasks(edges=5),
    "edges of three": of_tasks(edges=[["a", "a", "a"]]),
    "edges of numbers": of_tasks(edges=[5]),
    "a schedule that is no list": of_tasks(schedule={"task": "a", "every": 5}),
    "a job without a task": of_tasks(schedule=[{"every": 5}]),
    "a job that is never due": of_tasks(schedule=[{"task": "a"}]),
    "a job that is due twice": of_tasks(schedule=[{"task": "a", "every": 5, "cron": "@hourly"}]),
    "a job with more": of_tasks(schedule=[{"task": "a", "every": 5, "jitter": 1}]),
    "a job that overlaps never": of_tasks(schedule=[{"task": "a", "every": 5, "overlap": "never"}]),
    "a task that is a number": {"flow": {"tasks": {"a": 5}}},
    "a task without a callable": {"flow": {"tasks": {"a": {"retries": 1}}}},
    "a task with a number": {"flow": {"tasks": {"a#1": "f"}}},
    "a callable that is none": of_task(callable=5),
    "an unknown option": of_task(tiemout=5),
    "an executor of a task that is none": of_task(executor="ray"),
    "no time": of_task(timeout=0),
    "a description that is none": of_task(description=5),
    "a dependency that is a text": of_task(depends_on="a"),
    "a dependency that is a number": of_task(depends_on=[5]),
    "routes that are a mapping": of_task(routes={"a": 1}),
    "an on_dep_failure that is none": of_task(on_dep_failure="stop"),
    "a for_each of nothing": of_task(for_each=""),
    "inputs in a list": of_task(inputs=["$ctx.a"]),
    "outputs that are no path": of_task(outputs="data"),
    "outputs to elsewhere": of_task(outputs="$env.X"),
    "outputs of nothing": of_task(outputs={}),
    "a retry that is a number": of_task(retry=3),
    "a retry without attempts": of_task(retry={"attempts": 0}),
    "a retry with more": of_task(retry={"times": 3}),
    "a retry that jitters too much": of_task(retry={"jitter": 2}),
    "a retry on a number": of_task(retry={"on": 5}),
    "retries below none": of_task(retries=-1),
    "a backoff that is none": of_task(retries=1, backoff="fast"),
    "a wait below none": of_task(retries=1, backoff_base=-1),
    "a limit that is a text": of_task(uses="db"),
    "an amount of none": of_task(resources={"cpu": 0}),
    "a priority that is a text": of_task(priority="high"),
    "a version that is a number": of_task(version=2),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_schema_takes_what_the_loader_takes(name):
    """A flow that can be loaded is valid."""
    VALID.validate(GOOD[name])
    if name == "everything":
        config = copy.deepcopy(GOOD[name])
        for name in ("of depends_on", "of routes"):
            config["flow"]["tasks"][name] = "f"
        load(config)
    else:
        load(GOOD[name], callables={**CALLABLES, **orders()})


@pytest.mark.parametrize("name", BAD)
def test_the_schema_refuses_what_the_loader_refuses(name):
    """A flow that is not valid cannot be loaded."""
    assert [*VALID.iter_errors(BAD[name])]
    refused(BAD[name])


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.[yjt]*ml")) + sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name
)
def test_the_examples_are_valid(path, monkeypatch):
    """Each example is valid by the schema, and can be loaded when only its own module is allowed."""
    import tomllib

    import yaml

    readers = {".json": json.loads, ".toml": tomllib.loads, ".yaml": yaml.safe_load}
    VALID.validate(readers[path.suffix](path.read_text()))
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "shop", raising=False)

    flow = load(path, allow=["shop"], callables=None)

    monkeypatch.delitem(sys.modules, "shop", raising=False)
    assert flow.entry in flow.tasks


def test_the_keys_of_the_schema_are_those_of_the_loader():
    """No key is in the one and not in the other, down to the mappings inside; the words are the same, too."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    defs = {name: part["properties"] for name, part in SCHEMA["$defs"].items()}
    assert {*SCHEMA["properties"]} == {"flow", "$schema"}
    assert {name: {*part} for name, part in defs.items()} == {
        "flow": {*FLOW},
        "task": {*TASK},
        "store": {*STORE},
        "job": {*JOB},
    }
    assert (*defs["task"]["retry"]["properties"],) == Retry.FIELDS
    assert (*defs["flow"]["limits"]["additionalProperties"]["anyOf"][1]["properties"],) == RATE
    assert (*defs["flow"]["executor"]["enum"],) == (*defs["task"]["executor"]["enum"],) == EXECUTORS
    assert all(part["additionalProperties"] is False for part in SCHEMA["$defs"].values())
    assert all("description" in value for part in defs.values() for value in part.values())


@pytest.mark.parametrize("option", ["lease", "retention"])
def test_a_store_in_json_lacks_some_options(option):
    """A JSON file has one owner and forgets nothing: the schema and the loader say so, at the path of the option."""
    config = of_tasks(store={"path": "x.json", "kind": "json", option: 5})

    found = refused(config)

    assert f"flow.store.{option}" in found
    assert "__init__" not in str(found)
    assert [*VALID.iter_errors(config)]


# ---- from_dsl ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edges",
    [
        "a >> (b & c) >> d",
        ["a >> b >> d", "a >> c >> d"],
        ["a >> (b & c)", ("b", "d"), ["c", "d"]],
        (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")),
        iter(["a >> b >> d", "a >> c >> d"]),
    ],
    ids=["text", "texts", "mixed", "pairs", "iterator"],
)
def test_edges_of_from_dsl(edges):
    """A text, texts, pairs, and both together."""
    tasks = {"a": lambda: 1, "b": lambda a: a + 1, "c": lambda a: a + 2, "d": lambda upstream: upstream}

    with Flow.from_dsl(tasks, entry="a", edges=edges, executor="inline", name="diamond") as flow:
        assert (flow.name, flow.entry) == ("diamond", "a")
        assert flow.dependencies == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
        assert flow.run() == {"d": {"b": 2, "c": 3}}


def test_an_iterator_of_edges_is_checked_as_a_list_is():
    """A name of no task is a ``ConfigError`` at its place."""
    try:
        Flow.from_dsl({"a": f}, edges=iter(["a >> b"]))
    except Exception as error:
        assert isinstance(error, ConfigError)  # noqa: PT017 - of another kind


def test_tasks_of_from_dsl_keep_their_options():
    """``Task`` objects bring their options, and get the name under which they are given."""

    @task("other name", retries=2, inputs={"payload": "$ctx.n"}, outputs="$ctx.out")
    def made(payload):
        return payload

    with Flow("inline") as other:
        other.add_task("x", f, timeout=5)
        tasks = {"a": made, "b": Task("c", g, priority=3), "d": other["x"]}

        with Flow.from_dsl(tasks, edges=["a >> b"], executor="inline") as flow:
            assert [*flow.tasks] == ["a", "b", "d"]
            assert (flow.tasks["a"].retry, flow.tasks["a"].outputs) == (Retry(3, "none"), "$ctx.out")
            assert (flow.tasks["b"].priority, flow.tasks["d"].timeout) == (3, 5)
            assert flow.run("a", context={"n": 5}) == {"b": 5}
            assert flow.context["out"] == 5


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"tasks": {}}, TypeError, "takes a mapping of names"),
        ({"tasks": [f]}, TypeError, "takes a mapping of names"),
        ({"tasks": {"a": 5}}, TypeError, "needs a callable"),
        ({"tasks": {"a#": f}}, ValueError, "'#'"),
        ({"tasks": {"a": f}, "entry": "b"}, ConfigError, "entry: Task b not found. This flow has: a"),
        ({"tasks": {"a": f}, "edges": "a >> b"}, ConfigError, "edges: Task b not found"),
        (
            {"tasks": {"a": f}, "edges": ["a", "b", ("a", "c")]},
            ConfigError,
            r"edges\[1\]: Task b(.|\n)*edges\[2\]: Task c",
        ),
        ({"tasks": {"a": f}, "edges": "a >>"}, ConfigError, "is the end, and a name is due"),
        ({"tasks": {"a": f}, "edges": [("a",)]}, ConfigError, "is no edge"),
        ({"tasks": {"a": f}, "edges": {"a": "a"}}, ConfigError, "holds no edges"),
        ({"tasks": {"a": f}, "edges": "a >> a"}, ExceptionGroup, "1 problem"),
        ({"tasks": {"a": f}, "max_wrokers": 2}, TypeError, "max_workers"),
        ({"tasks": {"a": f}, "executor": "threads"}, ValueError, "thread"),
    ],
)
def test_from_dsl_refuses(arguments, error, sentence):
    """What is wrong is told as from the methods that it calls."""
    with pytest.raises(error, match=sentence):
        Flow.from_dsl(**arguments)


# ---- routes: R58 -------------------------------------------------------------------------------------


def routed(choice, kind):
    """Return the flow of a router, made in one of the ways."""
    seen = []
    tasks = {
        "choose": lambda: choice,
        **{name: lambda payload=None, name=name: seen.append((name, payload)) for name in "abc"},
    }
    if kind == "dsl":
        flow = Flow.from_dsl(tasks, entry="choose", edges="choose >> (a | b | c)", executor="inline")
    else:
        config = {"flow": {"executor": "inline", "entry": "choose", "tasks": {name: name for name in tasks}}}
        if kind == "edges":
            config["flow"]["edges"] = ["choose >> (a | b)", "choose >> (b | c)"]
        else:
            config["flow"]["tasks"]["choose"] = {"callable": "choose", "routes": ["a", "b", "c"]}
        flow = Flow.from_config(config, callables=tasks)
    return flow, seen


@pytest.mark.parametrize("kind", ["dsl", "edges", "routes"])
@pytest.mark.parametrize(
    ("choice", "ran"),
    [
        ({"b": {"x": 1}}, [("b", {"x": 1})]),
        ({"b": None}, [("b", None)]),
        ({"c": 1, "a": (1, 2)}, [("c", 1), ("a", (1, 2))]),
        ({}, []),
        ([], []),
        ("b", [("b", None)]),
        (["a", "c"], [("a", None), ("c", None)]),
    ],
)
def test_r58_exactly_what_a_router_returns_runs(kind, choice, ran):
    """A mapping of names to payloads runs these; an empty one stops."""
    flow, seen = routed(choice, kind)
    with flow:
        flow.run()
        assert sorted(seen) == sorted(ran), "in a fixed order, which is that of the routes"
        rows = flow.report().tasks
        assert all(rows[name].status is Status.SKIPPED for name in "abc" if name not in dict(ran) and name in rows)
        assert flow.report().status is Status.SUCCESS


@pytest.mark.parametrize("kind", ["dsl", "edges", "routes"])
@pytest.mark.parametrize("choice", [{"d": 1}, {"a": 1, "choose": 2}, "A", ["a", "nope"]])
def test_r58_a_name_that_is_no_route_is_an_error(kind, choice):
    """Nothing of such a choice runs."""
    flow, seen = routed(choice, kind)
    with flow:
        with pytest.raises(RouteError, match="which is none of its routes"):
            flow.run()
        assert seen == []


# ---- loops, joins, routes and nesting: R61, R62 ------------------------------------------------------


def looping():
    """What a flow calls in which a router goes back."""

    def more(payload):
        return {"again": payload} if payload < 5 else {"end": payload}

    return {
        "begin": lambda payload: payload,
        "left": lambda payload: payload + 1,
        "right": lambda payload: payload * 10,
        "join": lambda payload: payload["left"],
        "more": more,
        "again": lambda payload: {"begin": payload},
        "end": lambda payload: f"end {payload}",
    }


LOOP_EDGES = ["begin >> (left & right) >> join >> more >> (again | end)", "again >> (begin | end)"]


def test_r61_loops_joins_and_routes_are_the_same_in_yaml_as_in_python(tmp_path):
    """A loop over a join, by edges in Python, by edges in YAML, and by options in YAML."""
    names = ", ".join(f"{name}: {name}" for name in looping())
    by_edges = f"flow: {{executor: inline, entry: begin, tasks: {{{names}}}, edges: {json.dumps(LOOP_EDGES)}}}"
    by_options = """
    flow:
      executor: inline
      entry: begin
      tasks:
        begin: begin
        left: {callable: left, depends_on: [begin]}
        right: {callable: right, depends_on: [begin]}
        join: {callable: join, depends_on: [left, right]}
        more: {callable: more, depends_on: [join], routes: [again, end]}
        again: {callable: again, routes: [begin, end]}
        end: end
    """
    flows = [
        Flow.from_dsl(looping(), entry="begin", edges=LOOP_EDGES, executor="inline"),
        Flow.from_config(written(tmp_path, by_edges), callables=looping()),
        Flow.from_config(written(tmp_path, by_options), callables=looping()),
    ]

    by_hand = Flow("inline", entry="begin")
    for name, fn in looping().items():
        by_hand.add_task(name, fn)
    by_hand["begin"] >> (by_hand["left"] & by_hand["right"]) >> by_hand["join"] >> by_hand["more"]
    by_hand["more"] >> (by_hand["again"] | by_hand["end"])
    by_hand["again"] >> (by_hand["begin"] | by_hand["end"])
    for flow in [*flows, by_hand]:
        with flow:
            assert flow.dependencies == by_hand.dependencies
            assert flow.run(inputs={"payload": 0}) == {"end": "end 5"}
            assert flow.report().tasks["join"].runs == 5


@pytest.mark.parametrize(
    "edges",
    [
        "a >> b >> c >> d",
        ["a >> (b >> c) >> d"],
        ["(a >> b) >> (c >> d)"],
        ["a >> b", "b >> c", ["c", "d"]],
        "a>>((b)>>(c))>>d",
    ],
)
def test_r61_chains_and_nested_brackets(edges):
    """However a chain is written, it is the chain."""
    tasks = dict.fromkeys("abcd", "f")

    flow = load({"flow": {"tasks": tasks, "edges": edges}})

    assert flow.dependencies == {"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}


def test_r61_nested_groups_and_routes():
    """Groups in groups, and a choice of groups."""
    flow = load(
        {"flow": {"tasks": dict.fromkeys("abcdef", "f"), "edges": ["a >> (b & (c >> d)) >> e", "e >> ((f) | a)"]}}
    )

    assert flow.dependencies == {"a": (), "b": ("a",), "c": ("a",), "d": ("c",), "e": ("b", "d"), "f": ()}
    assert flow._registry.routes == {"e": ("f", "a")}


@pytest.mark.parametrize("entry", ["a", "x", None])
@pytest.mark.parametrize(
    "edges", [["a >> b >> c >> a"], ["x >> a >> b >> c >> a"], ["a >> a"], ["a >> b", ["b", "c"], "c >> a"]]
)
def test_r62_a_circle_of_dependencies_is_refused_with_its_path(edges, entry):
    """Whether the entry is in it or not; ``from_dsl`` says the same."""
    tasks = dict.fromkeys("abcx", f)
    circle = "a >> a" if edges == ["a >> a"] else "a >> b >> c >> a"

    with pytest.raises(ConfigError, match=circle):
        load({"flow": {"tasks": dict.fromkeys(tasks, "f"), "edges": edges, "entry": entry}})
    with pytest.raises(ExceptionGroup) as found:
        Flow.from_dsl(tasks, entry=entry, edges=edges)
    (error,) = found.value.exceptions
    assert isinstance(error, CycleError)
    assert " >> ".join(error.path) == circle


@pytest.mark.parametrize("over", ["$ctx.rows", "rows"])
def test_r62_a_loop_reads_its_sequence_once(over):
    """What is iterated is asked for its items one time, and changing it meanwhile changes nothing."""
    asked = []

    class Rows(list):
        def __iter__(self):
            asked.append(1)
            return super().__iter__()

    rows = Rows([1, 2, 3])

    def each(item):
        rows.append(item)
        return item * 2

    config = {
        "flow": {
            "executor": "inline",
            "tasks": {"rows": "rows", "each": {"callable": "each", "for_each": over, "depends_on": ["rows"]}},
        }
    }
    with Flow.from_config(config, callables={"rows": lambda: rows, "each": each}) as flow:
        assert flow.run(timeout=WATCHDOG) == {"each": [2, 4, 6]}
    assert asked == [1]


@pytest.mark.parametrize("kind", ["config", "dsl"])
def test_r62_max_task_runs_raises(kind):
    """A loop that never ends is ended by an error, and not quietly."""
    if kind == "dsl":
        flow = Flow.from_dsl(
            {"a": lambda: "b", "b": lambda: "a"},
            entry="a",
            edges=["a >> (b | b)", "b >> (a | a)"],
            max_task_runs=20,
            executor="inline",
        )
    else:
        config = {
            "flow": {
                "entry": "a",
                "max_task_runs": 20,
                "executor": "inline",
                "tasks": {"a": {"callable": "f", "routes": ["b"]}, "b": {"callable": "g", "routes": ["a"]}},
            }
        }
        flow = Flow.from_config(config, callables={"f": lambda: "b", "g": lambda: [NextTask("a")]})
    with flow:
        with pytest.raises(TaskRunLimitError, match="20"):
            flow.run(timeout=WATCHDOG)
        assert flow.report().status is Status.FAILED


# ---- data is data: R57, R59 --------------------------------------------------------------------------


def test_r57_no_data_selects_code(kiosk):
    """What is called is settled when the flow is loaded: no value, of whatever name or form, changes it."""
    nasty = {"callable": "kiosk.ops.load", "routes": ["b"], "__class__": "kiosk.ops.Counter", "x": "$ctx.secret"}
    config = {
        "flow": {
            "executor": "inline",
            "tasks": {
                "a": {"callable": "f", "inputs": {"payload": "$ctx.callable", "callable": "kiosk.ops.load"}},
                "b": "g",
            },
            "edges": ["a >> b"],
        }
    }
    calls = {"f": lambda payload, **rest: [payload, rest["callable"]], "g": lambda payload: payload}

    with Flow.from_config(config, callables=calls, allow=[]) as flow:
        assert flow.run("a", {"callable": "kiosk.ops.load"}) == {"b": ["kiosk.ops.load", "kiosk.ops.load"]}
        assert flow.run("a", context={"callable": nasty, "secret": 1}) == {"b": [nasty, "kiosk.ops.load"]}
    assert "kiosk" not in sys.modules


def test_r57_the_keys_of_inputs_in_a_file_are_parameters():
    """Inside ``inputs`` a key is the name of a parameter, also one that is an option outside of it."""
    config = of_task(inputs={"routes": ["b"], "retries": 9, "depends_on": {"callable": "os.system"}})

    with Flow.from_config(config, callables={"f": lambda **rest: rest}) as flow:
        assert flow.run() == {"a": {"routes": ["b"], "retries": 9, "depends_on": {"callable": "os.system"}}}
        assert (flow.tasks["a"].routes, flow.tasks["a"].retry, flow.tasks["a"].depends_on) == (None, None, None)


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".toml"])
def test_r59_literals_of_a_file_stay_what_they_are(tmp_path, suffix, monkeypatch):
    """Numbers, truths, lists and texts without a dollar sign arrive as they were written."""
    monkeypatch.setenv("MILLSTREAM_TEST", "set")
    given = {
        "n": 5,
        "x": -0.5,
        "t": True,
        "l": [1, ["a"]],
        "m": {"k": {}},
        "s": "payload",
        "e": "env.HOME",
        "p": "$$5.00",
    }
    config = of_task(inputs={**given, "v": "$env.MILLSTREAM_TEST"})

    with Flow.from_config(
        written(tmp_path, WRITERS[suffix](config), f"f{suffix}"), callables={"f": lambda **rest: rest}
    ) as flow:
        assert flow.run() == {"a": {**given, "p": "$5.00", "v": "set"}}


def test_r59_missing_paths_and_prices_are_errors(monkeypatch):
    """A path that leads nowhere fails the task; ``$5.00`` is refused with the flow, and both tell the mend."""
    monkeypatch.delenv("MILLSTREAM_UNSET", raising=False)
    for text, problem in [
        ("$ctx.typo", "Key typo not found"),
        ("$env.MILLSTREAM_UNSET", r"Set it, or give a default by \?\?"),
    ]:
        with (
            Flow.from_config(of_task(inputs=text), callables=CALLABLES) as flow,
            pytest.raises(BindingError, match=problem),
        ):
            flow.run()
    assert "write '$$' for a dollar sign" in refused(of_task(inputs="$5.00"))["flow.tasks.a.inputs"]


# ---- whatever is given -------------------------------------------------------------------------------

WORDS = [
    "", "a", "b", "f", "g", "os.system", "f.g", "..", "#", "a >> b", "a >> (b | c)", "$ctx.a", "$5", "{{ x }}",
    "{{ ctx.a }}", "inline", "process", "runs.db", "json", "none", "OSError", "retry", "callable", "flow", "on",
    "x" * 300, "\0", "é", "@hourly", "UTC", "2026-01-01T00:00:00Z", "nan",
]  # fmt: skip
KEYS = st.sampled_from([*FLOW, *TASK, *JOB, *STORE, *RATE, *Retry.FIELDS, "a", "b", ""]) | st.text(max_size=3)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def survives(config):
    """Load whatever it is: nothing but a ``ConfigError`` may come of it."""
    try:
        flow = Flow.from_config(config, allow=[], callables={**CALLABLES, **orders()})
    except ConfigError:
        return
    flow.close()


def places(value, path=()):
    """Return the paths of everything in plain data."""
    found = [path] if path else []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(each, (*path, key))
    return found


@st.composite
def mutated(draw):
    """A good flow in which a few things are something else, or missing, or have others beside them."""
    config = copy.deepcopy(draw(st.sampled_from([ORDERS, GOOD["everything"], GOOD["store"], GOOD["edges"]])))
    for _ in range(draw(st.integers(1, 3))):
        options = places(config)
        if not options:
            break
        *path, last = draw(st.sampled_from(options))
        holder = config
        for key in path:
            holder = holder[key]
        way = draw(st.sampled_from(["put", "put", "delete", "add"]))
        if way == "delete":
            del holder[last]
        elif way == "add" and isinstance(holder[last], dict):
            holder[last][draw(KEYS)] = draw(JUNK)
        else:
            holder[last] = draw(JUNK)
    return config


@checked
@given(mutated())
def test_a_flow_with_anything_changed_is_loaded_or_refused(config):
    """Whatever stands in the place of whatever, nothing but ``ConfigError`` is raised."""
    survives(config)


@checked
@given(
    JUNK
    | st.dictionaries(KEYS, JUNK)
    | st.fixed_dictionaries({"flow": st.fixed_dictionaries({}, optional=dict.fromkeys(FLOW, JUNK))})
)
def test_any_data_is_loaded_or_refused(config):
    """Plain data of any shape; a text would be the path of a file."""
    if not isinstance(config, str):
        survives(config)


@checked
@given(st.fixed_dictionaries({"callable": st.just("f")}, optional=dict.fromkeys(TASK[1:], JUNK)))
def test_any_options_of_a_task_are_loaded_or_refused(task):
    """Each option with any value."""
    survives({"flow": {"tasks": {"a": task, "b": "f"}}})


def survives_text(suffix, text):
    path = Path(f"any{suffix}")
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    survives(path)


YAML = [
    "flow:", "tasks:", "a: f", "\n", "\n  ", "\n    ", "- ", "? ", ": ", ", ", "{", "}", "[", "]", "&a ", "*a",
    "<<: ", "!!str ", "!!set ", "!x ", "'", '"', "\\", "|\n", ">\n", "# ", "---\n", "...", "%YAML 1.1\n", "\t", "1",
    "1.5", "0x", "2026-01-01", "~", "on", "é", "=", "@", "`",
]  # fmt: skip
TOML = [
    "[flow]", "[flow.tasks]", "a", "f", " = ", "'", '"', '"""', "{", "}", "[", "]", "[[", "]]", ".", ",", "\n", "#",
    "1", "1e5", "inf", "0x", "1979-05-27", "T07:32:00", "true", "\\u00", "\\", "\0", "\t", "é",
]  # fmt: skip
JSON = [
    "{", "}", "[", "]", ":", ",", '"flow"', '"tasks"', '"a"', '"f"', '"', "\\u", "\\ud800", "1", "-", "e5", ".",
    "NaN", "null", "true", " ", "\n", "\0", "é",
]  # fmt: skip


@checked
@given(
    st.lists(st.sampled_from(YAML), max_size=30).map("".join)
    | st.text(string.printable.replace("\x0b", "").replace("\x0c", ""), max_size=40)
)
def test_any_yaml_is_loaded_or_refused(text):
    """Random texts of the signs of YAML; what is known to come through has tests of its own above."""
    survives_text(".yaml", text)


@checked
@given(st.lists(st.sampled_from(TOML), max_size=30).map("".join) | st.text(max_size=40))
def test_any_toml_is_loaded_or_refused(text):
    """Random texts of the signs of TOML, and any characters."""
    survives_text(".toml", text)


@checked
@given(st.lists(st.sampled_from(JSON), max_size=30).map("".join) | st.text(max_size=40))
def test_any_json_is_loaded_or_refused(text):
    """Random texts of the signs of JSON, and any characters."""
    survives_text(".json", text)


@checked
@given(st.binary(max_size=60), st.sampled_from([".json", ".toml"]))
def test_any_bytes_are_loaded_or_refused(content, suffix):
    """Whatever a file holds."""
    path = Path(f"bytes{suffix}")
    path.write_bytes(content)
    survives(path)


SIGNS = [
    "$", "$$", "ctx", "payload", "joins", "inputs", "env", ".", "a", "0", "__", "??", " ", "{{", "}}", "{", "}", "[",
    "]", "'", '"', "\\", "5", "-1e3", "true", "null", "\n", "é", "?",
]  # fmt: skip


@settings(checked, max_examples=400)
@given(st.lists(st.sampled_from(SIGNS), max_size=15).map("".join) | st.text(max_size=20))
def test_any_text_is_an_expression_or_refused(text):
    """Compiling raises only ``ConfigError``, and looking up only ``LookupError``, whatever the text is."""

    def get(key, *default):
        if key in ("a", "ctx"):
            return {"a": [5, {"0": "zero"}], "0": 1}
        if default:
            return default[0]
        raise LookupError(key)

    try:
        compiled = compile_text(text, "here")
    except ConfigError:
        return
    try:
        compiled.find(get, {"a": 1})
    except LookupError:
        pass
    if "$" not in text and "{{" not in text:
        assert compiled.find(get, None) == text, "other text is text"


@checked
@given(JUNK)
def test_any_value_is_compiled_or_refused(value):
    """The same for values with texts in them; what has no expression comes out as it went in."""
    try:
        compiled = compile_value(value, "here")
    except ConfigError:
        return
    if not [*compiled.paths()] and "$" not in repr(value) and "{{" not in repr(value):
        assert repr(compiled.find(lambda key: None, None)) == repr(value)


def test_an_error_of_a_long_text_is_short():
    """However many dollar signs stand before a path in a text."""
    with pytest.raises(ConfigError) as error:
        compile_text("x" + "$" * 5001 + ".a", "here")

    assert len(str(error.value)) < 500


# ---- time --------------------------------------------------------------------------------------------

#: Seconds that none of these may take; each takes well below one, unless time grows faster than what is read.
LIMIT = 20.0


def takes(call, *texts):
    """Have something called with texts, refused or not, within the limit."""
    begun = time.monotonic()
    for text in texts:
        try:
            call(text)
        except ConfigError:
            pass
    assert time.monotonic() - begun < LIMIT


LONG = [
    "a",
    "a >> ",
    "(",
    ")",
    "a & ",
    "a | ",
    "-",
    "->",
    ">",
    " ",
    "\n",
    "\\",
    "é",
    ".",
    "'a' >> ",
    "(a) >> ",
    "(a & b) >> ",
    "#",
    "& ",
    ">>",
]


@pytest.mark.parametrize("piece", LONG)
def test_edges_take_time_by_their_length(piece):
    """A million characters of anything are parsed or refused at once."""
    for n in (40_000, 160_000):
        count = n // len(piece)
        takes(
            parse,
            piece * count,
            piece * (count - 20) + "!",
            "x >> " + piece * (count - 10),
            "'" + piece * (count - 10),
            '"' + "\\'" * (n // 3),
        )


def test_edges_of_large_groups_take_time_by_what_they_make():
    """Two groups of a thousand make a million edges, and no more than that."""
    group = " & ".join(f"t{n}" for n in range(1000))
    takes(parse, f"({group}) >> ({group})", " >> ".join([f"({group})"] * 50))


PIECES = [
    "$",
    "$$",
    "$.",
    "$ctx",
    "{",
    "{{",
    "}}",
    "{{ ctx.a }}",
    "{{ ctx.a",
    "'",
    "\"'",
    "\\",
    "?",
    "?? ",
    " ",
    "\n",
    "a",
    "5",
    "$ctx.a ?? ",
    "{{ '}}' }}",
    ".",
    "{{'",
]


@pytest.mark.parametrize("piece", PIECES)
def test_texts_take_time_by_their_length(piece):
    """Two hundred thousand characters are compiled or refused at once."""
    for n in (15_000, 60_000):
        count = n // len(piece)
        text = piece * count
        takes(
            lambda text: compile_text(text, "here"),
            text,
            "x" + text,
            "{{ " + text,
            "{{ ctx.a }}" + text,
            text + "$ctx.a",
            "$ctx." + text,
            "$" + text[:9000],
            "$ctx.a ?? " + text[:9000],
        )


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_behind_backslashes_take_time_by_their_length(quote):
    """Within braces that are never closed; at a quadratic rate this takes minutes."""
    takes(lambda text: compile_text(text, "here"), "{{ " + f"\\{quote}" * 100_000)


def test_files_take_time_by_their_length(tmp_path):
    """Flows of thousands of tasks, good and bad, in each format."""
    for n in (150, 600):
        tasks = {
            f"t{i}": {"callable": "f", "inputs": {"payload": f"{{{{ ctx.t{i} ?? 5 }}}} $$"}, "retries": 1}
            for i in range(n)
        }
        good = {"flow": {"tasks": tasks, "edges": [f"t{i} >> t{i + 1}" for i in range(n - 1)]}}
        for suffix in (".json", ".toml"):
            takes(load, good, written(tmp_path, WRITERS[suffix](good), f"good{suffix}"))
        bad = {"flow": {"tasks": {f"t{i}": {"callable": "nope", "tiemout": 1, "inputs": "$5"} for i in range(n)}}}
        begun = time.monotonic()
        assert len(refused(bad)) == 3 * n
        assert time.monotonic() - begun < LIMIT
    small = {"flow": {"tasks": {f"t{i}": "f" for i in range(400)}, "edges": [f"t{i} >> t{i + 1}" for i in range(399)]}}
    takes(load, written(tmp_path, WRITERS[".yaml"](small), "good.yaml"))


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".toml"])
@pytest.mark.parametrize(
    "piece", ["[", "{", '"', "'", "\\", "a", "- ", "a: ", "&a ", "*a ", "<<: ", "#", "\n", "[],", '"\\', "1", "? "]
)
def test_files_of_signs_take_time_by_their_length(tmp_path, piece, suffix):
    """Whatever is repeated in a file, it is refused soon."""
    n = 2_000 if suffix == ".yaml" else 200_000
    for size in (n // 4, n):
        takes(load, written(tmp_path, piece * (size // len(piece)), f"flow{suffix}"))


@pytest.mark.parametrize("what", ["edges", "inputs", "depends_on"])
def test_names_of_no_task_take_work_by_their_number(monkeypatch, what):
    """With four times the tasks and unknown names, about four times the names are compared."""
    compared = []
    near = difflib.get_close_matches

    def counted(word, possibilities, *args, **options):
        possibilities = list(possibilities)
        compared.append(len(possibilities))
        return near(word, possibilities, *args, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)

    def work(n):
        compared.clear()
        tasks = {f"t{i}": {"callable": "f"} for i in range(n)}
        config = {"flow": {"tasks": tasks}}
        for i in range(n):
            if what == "edges":
                config["flow"].setdefault("edges", []).append(f"t{i} >> x{i}")
            else:
                tasks[f"t{i}"][what] = {"payload": f"$payload.x{i}"} if what == "inputs" else [f"x{i}"]
        with pytest.raises(ConfigError) as error:
            load(config)
        assert str(error.value)
        return sum(compared)

    assert work(100) <= 6 * work(25)


def test_dotted_keys_take_memory_by_their_length(tmp_path):
    """With four times the parts a key takes about four times the memory; a limit on them would do."""

    def peak(parts):
        path = written(tmp_path, "a" + ".a" * parts + " = 1", "flow.toml")
        tracemalloc.start()
        try:
            refused(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    small = peak(10)
    assert peak(4000) - small <= 6 * (peak(1000) - small)
