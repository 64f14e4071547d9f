"""Every example and highlight of the document of illumo-flow, in its order, as its counterpart in Millstream.

Nodes are tasks here: ``from_dsl(tasks=...)``, and in a file ``tasks:`` with ``callable:``, ``inputs:`` and
``outputs:``. What is shared is the context of a run; ``$payload.task`` is the newest output of a task.
"""

import json
import threading

import pytest

from millstream import (
    BindingError,
    ConfigError,
    Context,
    Flow,
    NextTask,
    RouteError,
    RunTimeoutError,
    Task,
    TaskOutput,
    TaskRunLimitError,
    TaskTimeoutError,
    cli,
)
from tests.conftest import WATCHDOG, executors

executor = executors(("inline", "thread", "thread-1", "asyncio", "pool"))


def step(fn, **options):
    """Make a task of a function that stays as it is, with options."""
    return Task("step", fn, **options)


def status_of(report):
    """Return the state of each task."""
    return {name: str(row.status) for name, row in report.tasks.items()}


# ---- quick example ----------------------------------------------------------------------------------


def extract(payload=None):
    return {"customer_id": 42, "source": "demo"}


def transform(payload):
    return {**payload, "normalized": True}


def load(payload):
    return f"stored:{payload['customer_id']}"


STEPS = {"extract": extract, "transform": transform, "load": load}
NORMALIZED = {"customer_id": 42, "source": "demo", "normalized": True}


def quick_example(executor=None, **options):
    """Make the flow of the quick example: each step reads a place of the context, and writes to the next."""
    return Flow.from_dsl(
        tasks={
            "extract": step(extract, outputs="$ctx.data.raw"),
            "transform": step(transform, inputs="$ctx.data.raw", outputs="$ctx.data.normalized"),
            "load": step(load, inputs="$ctx.data.normalized", outputs="$ctx.data.persisted"),
        },
        entry="extract",
        edges=["extract >> transform", "transform >> load"],
        executor=executor,
        **options,
    )


def test_quick_example(executor):
    """Each step takes its payload from the context and puts its output there; the outputs stand under their names."""
    with quick_example(executor) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"load": "stored:42"}
        assert run.context["data"] == {
            "raw": {"customer_id": 42, "source": "demo"},
            "normalized": NORMALIZED,
            "persisted": "stored:42",
        }
        assert [run.context[name] for name in STEPS] == [extract(), NORMALIZED, "stored:42"]


def test_quick_example_with_a_context_of_the_caller(executor):
    """A context that is handed in has what the run has put there, besides what was in it."""
    context = Context()
    context.set("data", {"kept": True})
    with quick_example(executor) as flow:
        flow.run(context=context)
    assert context["data"]["persisted"] == "stored:42"
    assert context["data"]["kept"] is True


def test_a_mapping_as_context_is_copied():
    """A mapping that is handed in as context is not changed; as first argument it is refused, with the mend."""
    mine = {"data": {"kept": True}}
    with quick_example("inline") as flow:
        run = flow.start(context=mine)
        assert run.context["data"]["persisted"] == "stored:42"
        assert mine == {"data": {"kept": True}}
        with pytest.raises(TypeError, match="context="):
            flow.run({})


def test_a_second_run_begins_anew():
    """Runs do not find what earlier ones have left."""
    with quick_example("inline") as flow:
        contexts = [flow.start().context for _ in range(2)]
        assert contexts[0]["data"] == contexts[1]["data"]
        assert contexts[0]["data"] is not contexts[1]["data"]


def test_the_same_tasks_in_two_flows():
    """A task belongs to no flow: two flows may share it, by other names."""
    shared = step(transform, inputs="$ctx.data.raw")
    for name in ("one", "other"):
        with Flow.from_dsl(
            tasks={"extract": step(extract, outputs="$ctx.data.raw"), name: shared},
            edges=[f"extract >> {name}"],
            executor="inline",
        ) as flow:
            assert flow.run() == {name: NORMALIZED}


def test_steps_by_edges_alone():
    """Without places in the context, what the step before has returned is the payload."""
    with Flow.from_dsl(tasks=STEPS, entry="extract", edges="extract >> transform >> load", executor="inline") as flow:
        assert flow.run() == {"load": "stored:42"}


# ---- the command and the configuration --------------------------------------------------------------

YAML = """
flow:
  name: linear_etl
  entry: extract
  tasks:
    extract:
      callable: ops.extract
      outputs: $ctx.data.raw
    transform:
      callable: ops.transform
      inputs:
        payload: $ctx.data.raw
      outputs: $ctx.data.normalized
    load:
      callable: ops.load
      inputs:
        payload: $ctx.data.normalized
      outputs: $ctx.data.persisted
  edges:
    - extract >> transform
    - transform >> load
"""


@pytest.fixture
def linear_etl(tmp_path):
    """The flow of the quick example in a YAML file."""
    path = tmp_path / "linear_etl.yaml"
    path.write_text(YAML)
    return path


def test_yaml_configuration(linear_etl):
    """A flow in YAML gives what the one in Python gives."""
    pytest.importorskip("yaml")
    ops = {f"ops.{name}": fn for name, fn in STEPS.items()}
    with Flow.from_config(linear_etl, callables=ops) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"load": "stored:42"}
        assert run.context["data"]["persisted"] == "stored:42"
        assert flow.entry == "extract"


def test_json_configuration(linear_etl, tmp_path):
    """The same as JSON, and as a mapping."""
    content = pytest.importorskip("yaml").safe_load(YAML)
    path = tmp_path / "linear_etl.json"
    path.write_text(json.dumps(content))
    ops = {f"ops.{name}": fn for name, fn in STEPS.items()}
    for config in (path, content):
        with Flow.from_config(config, callables=ops) as flow:
            assert flow.run() == {"load": "stored:42"}


def test_the_command_runs_it(linear_etl, tmp_path, monkeypatch, capsys):
    """``millstream run linear_etl.yaml`` imports the functions, and prints the output of the last step."""
    pytest.importorskip("yaml")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ops_of_illumo.py").write_text(
        "def extract():\n    return {'customer_id': 42}\n\n"
        "def transform(payload):\n    return {**payload, 'normalized': True}\n\n"
        "def load(payload):\n    return f\"stored:{payload['customer_id']}\"\n"
    )
    linear_etl.write_text(YAML.replace("ops.", "ops_of_illumo."))
    assert cli.main(["run", "linear_etl.yaml"]) == 0
    assert capsys.readouterr() == ("load: stored:42\n", "")


def test_callables_are_chosen_when_the_flow_is_loaded():
    """No data of a run chooses code: a callable is a name, and an expression for it is refused."""
    config = {"flow": {"tasks": {"only": {"callable": "$ctx.registry.my_func"}}}}
    with pytest.raises(ConfigError, match=r"flow\.tasks\.only\.callable"):
        Flow.from_config(config, callables={"my_func": extract})
    config["flow"]["tasks"]["only"]["callable"] = "my_func"
    with Flow.from_config(config, callables={"my_func": extract}) as flow:
        assert flow.run() == {"only": extract()}


def test_which_code_runs_is_chosen_by_routes():
    """What a registry of functions in the context is for there, is a choice between tasks here."""
    with Flow.from_dsl(
        tasks={"choose": lambda which: which, "upper": lambda: "UPPER", "lower": lambda: "lower"},
        entry="choose",
        edges=["choose >> (upper | lower)"],
        executor="inline",
    ) as flow:
        assert flow.run(inputs={"which": "upper"}) == {"upper": "UPPER"}
        assert flow.run(inputs={"which": "lower"}) == {"lower": "lower"}


# ---- expressions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("$ctx.data.raw", [1, 2]),
        ("$.data.raw", [1, 2]),
        ("{{ ctx.data.raw }}", [1, 2]),
        ("{{ $ctx.data.raw }}", [1, 2]),
        ("$ctx.data.raw.1", 2),
        ("$payload.before", {"rows": 3}),
        ("$payload.before.rows", 3),
        ("$env.ILLUMO_FLOW_REGION", "eu"),
        ("Hello {{ $ctx.user.name }}", "Hello Ada"),
        ("Hello {{ ctx.user.name }}", "Hello Ada"),
        ("{{ $payload.before.rows }} rows for {{ $env.ILLUMO_FLOW_REGION }}", "3 rows for eu"),
        ("$ctx.user.title ?? 'Dr'", "Dr"),
        ("ctx.data.raw", "ctx.data.raw"),  # a text without a sign is a text
        ("5 $$", "5 $"),
        (7, 7),
    ],
)
def test_expressions(monkeypatch, expression, value):
    """Inputs may be any of the expressions, alone or in a text."""
    monkeypatch.setenv("ILLUMO_FLOW_REGION", "eu")
    with Flow.from_dsl(
        tasks={
            "before": lambda: {"rows": 3},
            "look": step(lambda found: found, inputs={"found": expression}),
        },
        edges=["before >> look"],
        executor="inline",
    ) as flow:
        assert flow.run(context={"data": {"raw": [1, 2]}, "user": {"name": "Ada"}}) == {"look": value}


def test_what_a_join_has_waited_for():
    """$joins reads what a task has waited for, by the names of the tasks before it."""
    with Flow.from_dsl(
        tasks={
            "left": lambda: {"n": 1},
            "right": lambda: {"n": 2},
            "both": step(lambda a, b: a + b, inputs={"a": "$joins.both.left.n", "b": "$joins.both.right.n"}),
        },
        edges=["(left & right) >> both"],
        executor="inline",
    ) as flow:
        assert flow.run() == {"both": 3}


@pytest.mark.parametrize("expression", ["$ctx.data.missing", "$payload.before.missing", "$env.ILLUMO_FLOW_NOT_SET"])
def test_a_path_that_leads_nowhere_is_an_error(monkeypatch, expression):
    """What is not there is told, and does not become None."""
    monkeypatch.delenv("ILLUMO_FLOW_NOT_SET", raising=False)
    with (
        Flow.from_dsl(
            tasks={"before": lambda: TaskOutput({}), "look": step(lambda found: found, inputs={"found": expression})},
            edges=["before >> look"],
            executor="inline",
        ) as flow,
        pytest.raises(BindingError, match="leads nowhere"),
    ):
        flow.run(context={"data": {}})


# ---- payload and context ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, (1, 2), {"a": 1}], ids=repr)
def test_the_payload_is_what_was_returned(value):
    """Whatever a task returns is the payload of the next one, and stands under its name, unchanged."""
    with Flow.from_dsl(
        tasks={"give": lambda: TaskOutput(value), "take": lambda payload: [payload]},
        edges=["give >> take"],
        executor="inline",
    ) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"take": [value]}
        assert run.context["give"] == value


def test_the_first_task_gets_what_the_run_was_given():
    """The payload of the entry is given by the caller."""
    with Flow.from_dsl(tasks={"first": lambda payload: payload * 2}, entry="first", executor="inline") as flow:
        assert flow.run(inputs={"payload": "ab"}) == {"first": "abab"}


def test_only_a_task_that_asks_for_the_context_has_it(executor):
    """A task has the context when it has a parameter for it: a counter that several tasks add to is one update."""

    def plain(payload):
        return payload + 1

    def counting(payload, ctx):
        ctx.update("metrics", lambda count: count + 1, default=0)
        return payload + 1

    with Flow.from_dsl(
        tasks={"first": lambda: 1, "counted": counting, "again": counting, "plain": plain},
        edges=["first >> counted >> again >> plain"],
        executor=executor,
    ) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"plain": 4}
        assert run.context["metrics"] == 2


def test_outputs_never_overwrite_what_stands_in_their_way():
    """A path through a value that is no mapping is an error, and the value stays."""
    with Flow.from_dsl(tasks={"write": step(lambda: 1, outputs="$ctx.data.raw.deep")}, executor="inline") as flow:
        run = flow.start(context={"data": {"raw": "text"}})
        with pytest.raises(ConfigError, match=r"\$ctx\.data\.raw is a value of type str"):
            run.result(WATCHDOG)
        assert run.context["data"] == {"raw": "text"}


# ---- branching --------------------------------------------------------------------------------------


def branching(chosen, executor="inline"):
    """Make a router with three branches, each of which tells its payload."""
    return Flow.from_dsl(
        tasks={
            "decide": lambda: chosen,
            "approve": lambda payload: ("approve", payload),
            "reject": lambda payload: ("reject", payload),
            "audit": lambda payload: ("audit", payload),
            "archive": lambda approve: f"archived {approve[1]}",
        },
        entry="decide",
        edges=["decide >> (approve | reject | audit)", "approve >> archive"],
        executor=executor,
    )


def test_a_mapping_chooses_one_successor(executor):
    """The key is the task that runs, the value its payload; what is not chosen does not run."""
    with branching({"reject": "too late"}, executor) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"reject": ("reject", "too late")}
        assert status_of(run.report()) == {
            "decide": "SUCCESS", "approve": "SKIPPED", "reject": "SUCCESS", "audit": "SKIPPED", "archive": "SKIPPED",
        }  # fmt: skip


def test_a_mapping_chooses_several_successors(executor):
    """All that are named run, each with its own payload, and what follows them."""
    with branching({"approve": 1, "audit": 2}, executor) as flow:
        assert flow.run() == {"audit": ("audit", 2), "archive": "archived 1"}


def test_an_empty_mapping_stops(executor):
    """{} chooses nothing: the run ends well, and nothing behind it is called."""
    with branching({}, executor) as flow:
        run = flow.start()
        assert run.result(WATCHDOG) == {"decide": {}}
        assert status_of(run.report())["archive"] == "SKIPPED"
        assert str(run.status) == "SUCCESS"


def test_a_key_that_is_no_successor_is_an_error(executor):
    """A misspelt successor is told with the nearest name, and nothing behind it runs."""
    with branching({"aprove": 1}, executor) as flow, pytest.raises(RouteError, match="approve"):
        flow.run()


def test_an_early_stop_in_a_chain(executor):
    """A task without routes stops what follows it by an empty list of next tasks."""
    called = []
    with Flow.from_dsl(
        tasks={
            "guard": lambda: TaskOutput("nothing to do", next_tasks=[]),
            "work": lambda: called.append("work"),
            "report": lambda: called.append("report"),
        },
        entry="guard",
        edges=["guard >> work >> report"],
        executor=executor,
    ) as flow:
        assert flow.run() == {"guard": "nothing to do"}
    assert called == []


# ---- highlights -------------------------------------------------------------------------------------


def test_a_join_waits_for_all_its_parents(executor):
    """Several parents: the payload is a mapping of their outputs by name, once all have ended."""
    with Flow.from_dsl(
        tasks={
            "a": lambda: 1,
            "b": lambda: 2,
            "c": lambda: 3,
            "sum": lambda payload: (list(payload), sum(payload.values())),
        },
        edges=["(a & b & c) >> sum"],
        executor=executor,
    ) as flow:
        assert flow.run() == {"sum": (["a", "b", "c"], 6)}


def test_fan_out_and_fan_in(executor):
    """One task is followed by several, and these by one: & is all of them."""
    with Flow.from_dsl(
        tasks={
            "start": lambda payload: payload,
            "double": lambda payload: payload * 2,
            "square": lambda payload: payload**2,
            "merge": lambda payload: payload,
        },
        entry="start",
        edges=["start >> (double & square) >> merge"],
        executor=executor,
    ) as flow:
        assert flow.run(inputs={"payload": 5}) == {"merge": {"double": 10, "square": 25}}


def test_a_fan_out_is_in_parallel():
    """The branches of a fan-out run at the same time."""
    both = threading.Barrier(2, timeout=WATCHDOG)
    with Flow.from_dsl(
        tasks={"start": lambda: 0, "left": lambda: both.wait() >= 0, "right": lambda: both.wait() >= 0},
        edges=["start >> (left & right)"],
        max_workers=2,
    ) as flow:
        assert flow.run() == {"left": True, "right": True}


def test_a_join_behind_a_choice(executor):
    """A join behind a router goes on with the branches that were chosen, and does not wait for the others."""
    with Flow.from_dsl(
        tasks={
            "decide": lambda: {"a": 1, "b": 2},
            "a": lambda payload: payload,
            "b": lambda payload: payload,
            "c": lambda payload: payload,
            "join": lambda payload: payload,
        },
        entry="decide",
        edges=["decide >> (a | b | c)", "(a & b & c) >> join"],
        executor=executor,
    ) as flow:
        assert flow.run() == {"join": {"a": 1, "b": 2}}


def test_a_loop_over_items(executor):
    """What a loop node with its body does: the body is called for each item, and the results are in order."""
    with Flow.from_dsl(
        tasks={
            "items": lambda: ["a", "b", "c"],
            "body": step(lambda item, index: f"{index}{item}", for_each="items"),
        },
        entry="items",
        edges=["items >> body"],
        executor=executor,
    ) as flow:
        assert flow.run() == {"body": ["0a", "1b", "2c"]}


def test_a_loop_over_items_in_a_file():
    """The same from a configuration; a task behind it gets the whole list."""
    config = {
        "flow": {
            "executor": "inline",
            "entry": "items",
            "tasks": {"items": "items", "body": {"callable": "body", "for_each": "items"}, "collect": "collect"},
            "edges": ["items >> body >> collect"],
        }
    }
    calls = {"items": lambda: [1, 2, 3], "body": lambda payload: payload * 10, "collect": lambda payload: payload}
    with Flow.from_config(config, callables=calls, allow=[]) as flow:
        assert flow.run() == {"collect": [10, 20, 30]}


def test_a_loop_whose_body_is_several_tasks(executor):
    """Items with several steps each are spawned, and joined."""
    with Flow(executor) as flow:
        flow.add_task(
            "loop",
            lambda items: [
                *(NextTask("first", {"n": item}, spawn_another=True) for item in items),
                NextTask("collect", join=True),
            ],
        )
        flow.add_task("first", lambda n: NextTask("second", {"n": n + 1}, spawn_another=True))
        flow.add_task("second", lambda n, ctx: ctx.append("seen", n * 10))
        flow.add_task("collect", lambda ctx: sorted(ctx.get("seen")))
        results = flow.run("loop", inputs={"items": [1, 2, 3]})
    assert results["collect"] == [20, 30, 40]


def test_a_loop_by_routes(executor):
    """A route may lead back: the loop goes on until something else is chosen."""

    def worker(payload, ctx):
        ctx.append("seen", len(payload))
        return {"loop": payload}

    with Flow.from_dsl(
        tasks={
            "loop": lambda payload: {"worker": payload[1:]} if payload else {"done": "empty"},
            "worker": worker,
            "done": lambda payload: payload,
        },
        entry="loop",
        edges=["loop >> (worker | done)", "worker >> (loop | done)"],
        executor=executor,
    ) as flow:
        run = flow.start(inputs={"payload": [1, 2, 3]})
        assert run.result(WATCHDOG) == {"done": "empty"}
        assert run.context["seen"] == [2, 1, 0]


def test_a_task_that_chooses_itself(executor):
    """A self edge is a route to itself."""
    with Flow.from_dsl(
        tasks={
            "loop": lambda payload: {"loop": payload - 1} if payload else {"end": "reached"},
            "end": lambda payload: payload,
        },
        entry="loop",
        edges=["loop >> (loop | end)"],
        executor=executor,
    ) as flow:
        assert flow.run(inputs={"payload": 50}) == {"end": "reached"}


def test_a_limit_on_steps_ends_an_endless_loop(executor):
    """What FLOW_DEBUG_MAX_STEPS is for there: a run with more task runs is an error, and never ends quietly."""
    with (
        Flow.from_dsl(
            tasks={"loop": lambda: "loop", "end": lambda: None},
            entry="loop",
            edges=["loop >> (loop | end)"],
            max_task_runs=200,
            executor=executor,
        ) as flow,
        pytest.raises(TaskRunLimitError, match="200"),
    ):
        flow.run()


def test_fail_fast(executor):
    """The first failure ends the run: it is raised as it is, and nothing behind it is called."""
    called = []

    def fails(payload):
        raise LookupError("no such customer")

    with Flow.from_dsl(
        tasks={"extract": extract, "fails": fails, "after": lambda payload: called.append(payload)},
        entry="extract",
        edges=["extract >> fails >> after"],
        executor=executor,
    ) as flow:
        run = flow.start()
        with pytest.raises(LookupError, match="no such customer"):
            run.result(WATCHDOG)
        assert status_of(run.report()) == {"extract": "SUCCESS", "fails": "FAILED", "after": "CANCELLED"}
    assert called == []


def test_a_timeout_of_a_task():
    """A task that takes longer than its timeout fails, though it does not stop by itself."""
    stop = threading.Event()
    with Flow.from_dsl(
        tasks={"slow": step(lambda: stop.wait(WATCHDOG), timeout=0.05), "after": lambda slow: slow},
        edges=["slow >> after"],
    ) as flow:
        try:
            with pytest.raises(TaskTimeoutError, match="slow"):
                flow.run()
        finally:
            stop.set()


def test_a_timeout_of_a_run():
    """So does a run, which waits for something that does not come."""
    waiting = Flow.from_dsl(tasks={"slow": lambda ctx: ctx.get("never", external=True)})
    with waiting as flow, pytest.raises(RunTimeoutError):
        flow.run(timeout=0.05)


def test_a_timeout_may_be_handled(executor):
    """What comes after a task whose time was up may run nevertheless."""
    with Flow.from_dsl(
        tasks={
            "slow": step(lambda ctx: ctx.get("never", external=True), timeout=0.05),
            "fallback": step(lambda upstream: upstream.get("slow", "in time"), on_dep_failure="run-anyway"),
        },
        edges=["slow >> fallback"],
        executor=executor,
        on_error="continue",
    ) as flow:
        assert flow.run() == {"fallback": "in time"}


def test_edges_as_text():
    """Chains, joins and choices in one text are the same edges as written one by one."""
    tasks = dict.fromkeys("ABCDE", dict)
    written = Flow.from_dsl(tasks=tasks, edges="(A & B) >> C >> (D | E)")
    single = Flow.from_dsl(tasks=tasks, edges=["A >> C", "B >> C", "C >> (D | E)"])
    assert written.dependencies == single.dependencies
    assert written.routes == single.routes == {"C": ("D", "E")}
    assert written.dependencies["C"] == ("A", "B")


def test_edges_that_are_wrong_are_told_at_once():
    """Names that are none are told when the flow is made, each with the nearest one."""
    with pytest.raises(ConfigError) as caught:
        Flow.from_dsl(tasks=STEPS, entry="extarct", edges=["extract >> transfrom", "transform >> laod"])
    told = " ".join(str(problem) for problem in caught.value.problems)
    for name in STEPS:
        assert f"Did you mean {name}?" in told
