"""Routers and maps, sentence by sentence: what a task may choose, what arrives there, and ``for_each``."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from millstream import (
    BindingError,
    CycleError,
    Flow,
    Hook,
    NextTask,
    Retry,
    RouteError,
    StreamChunk,
    TaskNotFoundError,
    TaskOutput,
    TaskRunLimitError,
    TaskTimeoutError,
    current_task,
)
from tests.conftest import WATCHDOG, named


@pytest.fixture
def inline() -> Iterator[Flow]:
    """A flow in this very thread, for what no executor can change."""
    with Flow("inline") as flow:
        yield flow


@pytest.fixture(params=["inline", "thread", "asyncio"])
def each(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """A flow on each kind of worker: this thread, threads, and threads beside a loop."""
    with Flow(request.param) as flow:
        yield flow


@pytest.fixture(params=["inline", "thread"])
def either(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """A flow in this thread, and one on threads."""
    with Flow(request.param) as flow:
        yield flow


class Boom(Exception):
    """What the failing tasks here raise."""


def boom(*_: Any) -> Any:
    raise Boom("boom")


def rows(run: Any) -> dict[str, str]:
    """Return the status of every task in a run's report."""
    return {name: str(row.status) for name, row in run.report().tasks.items()}


def orders(flow: Flow, answer: Any, **options: Any) -> Flow:
    """Fill a flow with a router and two ways on, which meet again."""
    flow.add_task("check", answer if callable(answer) else lambda: answer, routes=["approve", "reject"], **options)
    flow.add_task("approve", lambda payload=None: ("approved", payload))
    flow.add_task("reject", lambda payload=None: ("rejected", payload))
    flow.add_task("notify", lambda upstream: upstream, depends_on=["approve", "reject"])
    return flow


# ---- what a router may return ------------------------------------------------------------------------


def test_a_name_chooses_one(each):
    """A router that returns a name runs that task; the other is skipped, and the run succeeds."""
    run = orders(each, "approve").start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"approve": ("approved", None)}}
    assert rows(run) == {"check": "SUCCESS", "approve": "SUCCESS", "reject": "SKIPPED", "notify": "SUCCESS"}
    assert run.status == "SUCCESS"


def test_a_list_of_names_chooses_several(each):
    """A router that returns a list of names runs all of them, and the join behind them once, with all outputs."""
    run = orders(each, ["reject", "approve"]).start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"approve": ("approved", None), "reject": ("rejected", None)}}
    assert run.report().tasks["notify"].runs == 1


def test_a_mapping_chooses_and_sends_payloads(each):
    """A router that returns ``{name: payload}`` runs those tasks, each with the payload that it sent there."""
    run = orders(each, {"approve": 10, "reject": 20}).start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"approve": ("approved", 10), "reject": ("rejected", 20)}}


@pytest.mark.parametrize("nothing", [[], {}])
def test_an_empty_choice_stops(each, nothing):
    """``[]`` and ``{}`` choose nothing: the routes and what can only be reached through them are skipped."""
    run = orders(each, nothing).start("check", timeout=WATCHDOG)
    assert run.result() == {"check": nothing}
    assert rows(run) == {"check": "SUCCESS", "approve": "SKIPPED", "reject": "SKIPPED", "notify": "SKIPPED"}
    assert run.status == "SUCCESS"


@pytest.mark.parametrize("value", [None, 0, 7, False, True, 1.5, b"approve", frozenset({"approve"}), object()])
def test_anything_else_is_a_plain_output(inline, value):
    """What is neither a name, a list of names nor a mapping chooses no route, and follows the static edges."""
    orders(inline, value)
    inline.add_task("log", lambda check: ("logged", check))
    run = inline.start("check")
    assert run.result() == {"log": ("logged", value)}
    assert rows(run) == {
        "check": "SUCCESS", "approve": "SKIPPED", "reject": "SKIPPED", "notify": "SKIPPED", "log": "SUCCESS",
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        lambda: NextTask("approve", {"payload": 1}),
        lambda: [NextTask("approve", {"payload": 1})],
        lambda: TaskOutput("out", [NextTask("approve", {"payload": 1})]),
        lambda: TaskOutput("out", iter([NextTask("approve", {"payload": 1})])),
    ],
    ids=["one", "list", "output", "lazy"],
)
def test_requests_are_a_choice_too(either, answer):
    """A router may return NextTasks, a list of them, or a TaskOutput with them, in place of names."""
    run = orders(either, answer).start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"approve": ("approved", 1)}}
    assert rows(run)["reject"] == "SKIPPED"


def test_a_name_inside_of_a_task_output_is_a_choice(inline):
    """``TaskOutput(name)`` is the same as the bare name."""
    assert orders(inline, TaskOutput("reject")).run("check") == {"notify": {"reject": ("rejected", None)}}


def test_a_name_beside_an_own_list_is_an_output(inline):
    """A TaskOutput with next_tasks has made its choice by these: its output is no second one."""
    run = orders(inline, lambda: TaskOutput("reject", [NextTask("approve")])).start("check")
    assert run.result() == {"notify": {"approve": ("approved", None)}}
    assert inline.context["check"] == "reject"


def test_a_coroutine_chooses(each):
    """An ``async def`` router chooses as a plain function does."""

    async def check() -> dict[str, int]:
        await asyncio.sleep(0)
        return {"approve": 5}

    assert orders(each, check).run("check", timeout=WATCHDOG) == {"notify": {"approve": ("approved", 5)}}


def test_a_generator_chooses_by_what_it_returns(each):
    """A router that streams values chooses by its return value."""

    def check() -> Iterator[str]:
        yield "thinking"
        return "reject"

    chunks = list(orders(each, check).stream("check", timeout=WATCHDOG))
    assert chunks[:2] == [StreamChunk("check", "thinking"), StreamChunk("check", "reject")]
    assert chunks[-1] == StreamChunk("notify", {"reject": ("rejected", None)})


def test_a_generator_chooses_by_what_it_yields(each):
    """A router that yields a NextTask has chosen; its return value is only an output."""

    def check() -> Iterator[NextTask]:
        yield NextTask("reject", {"payload": 1})
        return "approve"

    run = orders(each, check).start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"reject": ("rejected", 1)}}
    assert rows(run)["approve"] == "SKIPPED"


def test_routes_may_be_functions_and_edges(inline):
    """Routes are given as names, as functions, or as edges with ``|``."""

    def approve() -> str:
        return "yes"

    def reject() -> str:
        return "no"

    for function in (approve, reject):
        inline.add_task(function.__name__, function)
    inline.add_task("check", lambda: "approve", routes=[approve])
    inline.connect("check >> (reject | defer)")
    inline.add_task("defer", lambda: "later")
    assert dict(inline.routes) == {"check": ("approve", "reject", "defer")}
    assert inline.run() == {"approve": "yes"}


class Way(enum.StrEnum):
    APPROVE = "approve"
    REJECT = "reject"


@pytest.mark.parametrize("answer", [Way.APPROVE, [Way.APPROVE], {Way.APPROVE: 3}])
def test_a_member_of_a_string_enum_is_a_name(inline, answer):
    """Names may be members of a ``StrEnum``, which are strings."""
    assert "approve" in orders(inline, answer).run("check")["notify"]


@pytest.mark.parametrize(
    "mapping",
    [OrderedDict(approve=1), defaultdict(int, approve=1), Counter(approve=1)],
    ids=["ordered", "default", "counter"],
)
def test_any_kind_of_dict_chooses(inline, mapping):
    """``{name: payload}`` may be an instance of a class derived from ``dict``."""
    assert orders(inline, mapping).run("check") == {"notify": {"approve": ("approved", 1)}}


# ---- what is no route ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "notify",
        "aprove",
        "",
        ["approve", "nope"],
        {"approve": 1, "nope": 2},
        {"nope": None},
        {3: "approve"},
        lambda: NextTask("notify"),
        lambda: [NextTask("approve"), NextTask("notify")],
        lambda: TaskOutput(1, [NextTask("check")]),
        lambda: TaskOutput(1, iter([NextTask("notify")])),
    ],
)
def test_r58_a_name_that_is_no_route_is_an_error(inline, answer):
    """A choice of what is no route fails the router, and nothing of that choice runs."""
    orders(inline, answer)
    with pytest.raises(RouteError, match=r"^Task check chose .*none of its routes"):
        inline.run("check")
    assert {name for name, row in inline.report().tasks.items() if row.runs} <= {"check", "approve", "reject"}
    assert inline.report().tasks["check"].status == "FAILED"
    assert all(inline.report().tasks[name].attempt == 0 for name in ("approve", "reject", "notify"))


def test_r58_exactly_what_was_chosen_runs(each):
    """``{"b": x}`` runs only b, ``{}`` nothing."""
    ran: list[Any] = []
    each.add_task("a", lambda payload: payload, routes=["b", "c"])
    each.add_task("b", lambda payload: ran.append(("b", payload)))
    each.add_task("c", lambda payload: ran.append(("c", payload)))
    each.run("a", {"payload": {"b": "x"}}, timeout=WATCHDOG)
    each.run("a", {"payload": {}}, timeout=WATCHDOG)
    assert ran == [("b", "x")]


def test_a_wrong_name_that_a_generator_yields_is_its_failure(each):
    """A yielded NextTask is checked at once, where the generator yields it."""

    def check() -> Iterator[NextTask]:
        yield NextTask("approve")
        yield NextTask("notify")

    orders(each, check)
    with pytest.raises(RouteError, match="Task check chose notify"):
        each.run("check", timeout=WATCHDOG)


def test_the_message_names_the_routes(inline):
    """The error tells which routes there are, and the nearest one."""
    with pytest.raises(RouteError) as caught:
        orders(inline, "aprove").run("check")
    assert str(caught.value).startswith("Task check chose aprove, which is none of its routes.")
    assert "approve" in str(caught.value)
    assert (caught.value.task, caught.value.choice, caught.value.routes) == ("check", "aprove", ("approve", "reject"))


def test_a_wrong_choice_is_not_tried_again(inline):
    """What a router chose wrongly fails it for good: its code has not failed."""
    calls: list[int] = []
    orders(inline, lambda: calls.append(1) or "nope", retries=2)
    with pytest.raises(RouteError):
        inline.run("check")
    assert calls == [1]


def test_routes_of_a_task_that_does_not_exist_are_refused(inline):
    """A route that names no task is an error before anything runs."""
    calls: list[int] = []
    inline.add_task("check", lambda: calls.append(1), routes=["nope"])
    with pytest.raises(TaskNotFoundError, match="nope"):
        inline.run("check")
    assert calls == []


def test_a_router_that_is_tried_again_chooses_once(either):
    """Only the attempt that succeeds chooses."""

    def check() -> str:
        if current_task().attempt < 3:
            raise Boom
        return "approve"

    run = orders(either, check, retries=2).start("check", timeout=WATCHDOG)
    assert run.result() == {"notify": {"approve": ("approved", None)}}
    assert run.report().tasks["approve"].runs == 1


# ---- what arrives: payload -----------------------------------------------------------------------------

FALSY = [None, 0, "", (), [], {}, False, ("approve", 5), (1, 2), [("a", 1)], {"reject": 1}]


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_a_payload_beside_a_choice_is_kept_as_it_is(inline, value):
    """What a router sends along arrives unchanged: None is not replaced by the input, a pair is not split."""
    orders(inline, {"approve": value})
    [got] = inline.run("check", {"payload": "input"}).values()
    assert repr(got) == repr({"approve": ("approved", value)})


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_values_arrive_as_they_were_returned(inline, value):
    """What a task returns is what its dependant gets: by name, as payload and in the mapping."""
    inline.add_task("first", lambda: value)
    inline.add_task("then", lambda first, payload, upstream: (first, payload, upstream))
    [got] = inline.run(inputs={"x": "input"}).values()
    assert repr(got) == repr((value, value, {"first": value}))


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_the_payload_of_a_request_arrives_as_it_is(inline, value):
    """What a NextTask carries as payload arrives unchanged."""
    inline.add_task("ask", lambda: NextTask("get", {"payload": value}))
    inline.add_task("get", lambda payload: payload)
    assert repr(inline.run("ask", {"payload": "input"})) == repr({"get": value})


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_a_bare_name_gets_the_router_s_own_payload(inline, value):
    """A target that is chosen by its bare name gets what its router got."""
    orders(inline, lambda: "approve")
    assert repr(inline.run("check", {"payload": value})) == repr({"notify": {"approve": ("approved", value)}})


def test_the_own_payload_is_the_output_before_the_router(inline):
    """The payload that goes on is the output of the router's dependency, also when the router does not take it."""
    inline.add_task("read", lambda: "order 7")
    orders(inline, lambda: ["approve"], depends_on=["read"])
    assert inline.run() == {"notify": {"approve": ("approved", "order 7")}}


def test_the_own_payload_of_a_join_is_the_mapping(inline):
    """A router behind several tasks sends on the mapping of their outputs."""
    inline.add_task("left", lambda: 1)
    inline.add_task("right", lambda: 2)
    orders(inline, lambda: "approve", depends_on=["left", "right"])
    assert inline.run() == {"notify": {"approve": ("approved", {"left": 1, "right": 2})}}


def test_the_own_payload_at_the_entry_is_the_inputs(inline):
    """At the entry the payload is the run's inputs, or what these call payload."""
    orders(inline, lambda: "approve")
    assert inline.run("check", {"amount": 3}) == {"notify": {"approve": ("approved", {"amount": 3})}}
    assert inline.run("check", {"amount": 3, "payload": 4}) == {"notify": {"approve": ("approved", 4)}}


def test_a_payload_goes_from_router_to_router(inline):
    """Along bare names a payload travels on until somebody sends another one."""
    inline.add_task("a", lambda: "b", routes=["b"])
    inline.add_task("b", lambda: ["c"], routes=["c"])
    inline.add_task("c", lambda payload: {"d": payload + 1}, routes=["d"])
    inline.add_task("d", lambda payload: payload)
    assert inline.run("a", {"payload": 1}) == {"d": 2}


def test_what_a_router_sent_comes_before_the_dependencies(inline):
    """A chosen task with dependencies of its own gets what was sent as payload, and their outputs by name."""
    inline.add_task("rates", lambda: {"EUR": 1})
    inline.add_task("check", lambda: {"convert": 10}, routes=["convert"])
    inline.add_task("convert", lambda payload, rates, upstream: (payload, rates, upstream))
    assert inline.run() == {"convert": (10, {"EUR": 1}, {"rates": {"EUR": 1}})}


def test_a_route_is_no_dependency_by_name(inline):
    """A target does not see its router's output in its upstream: only dependencies are there."""
    inline.add_task("check", lambda: "next", routes=["next"])
    inline.add_task("next", lambda upstream, check=None: (upstream, check))
    assert inline.run() == {"next": ({}, None)}


def test_a_target_that_depends_on_its_router_waits_for_the_choice(either):
    """A task may be a route and a dependant of one task: it runs only if chosen, and sees the output."""
    either.add_task("check", lambda payload: payload, routes=["next"])
    either.add_task("next", lambda payload, check: (payload, check), depends_on=["check"])
    assert either.run("check", {"payload": {"next": 1}}, timeout=WATCHDOG) == {"next": (1, {"next": 1})}
    run = either.start("check", {"payload": None}, timeout=WATCHDOG)
    run.result()
    assert rows(run) == {"check": "SUCCESS", "next": "SKIPPED"}


def test_a_parameter_of_what_was_not_chosen_is_none(each):
    """A task behind several branches gets None, or its default, for a branch that did not run."""
    orders(each, "approve")
    each.add_task("mail", lambda approve, reject, upstream: (approve, reject, upstream))
    each.add_task("log", lambda approve, reject="nothing": (approve, reject), depends_on=["approve", "reject"])
    results = each.run("check", timeout=WATCHDOG)
    approved = ("approved", None)
    assert results["mail"] == (approved, None, {"approve": approved})
    assert results["log"] == (approved, "nothing")


# ---- what is skipped -----------------------------------------------------------------------------------


def test_r25_a_join_behind_a_router_runs_once_with_the_branches_taken(each):
    """Of three branches of different length two are taken: the join runs once, with these; the run succeeds."""
    calls: list[Any] = []
    each.add_task("route", lambda: ["short", "long"], routes=["short", "long", "none"])
    each.add_task("short", lambda: "s")
    each.add_task("long", lambda: "l1")
    each.add_task("longer", lambda long: long + "l2")
    each.add_task("none", lambda: "n")
    each.add_task("end", lambda upstream: calls.append(upstream), depends_on=["short", "longer", "none"])
    run = each.start("route", timeout=WATCHDOG)
    run.result()
    assert calls == [{"short": "s", "longer": "l1l2"}]
    assert (run.status, rows(run)["none"], rows(run)["end"]) == ("SUCCESS", "SKIPPED", "SUCCESS")


def test_a_skip_spreads_to_what_can_no_longer_be_reached(either):
    """What only a branch not chosen leads to is skipped as well, however far; what else leads to runs."""
    orders(either, "approve")
    either.add_task("refund", lambda reject: 1)
    either.add_task("letter", lambda refund: 2)
    either.add_task("archive", lambda letter, notify: ("archived", letter), on_dep_failure="fail")
    run = either.start("check", timeout=WATCHDOG)
    assert run.result() == {"archive": ("archived", None)}
    assert {name for name, status in rows(run).items() if status == "SKIPPED"} == {"reject", "refund", "letter"}


@pytest.mark.parametrize("policy", ["fail", "skip", "run-anyway"])
def test_a_branch_not_chosen_touches_no_policy(either, policy):
    """For ``on_dep_failure`` a task that was not chosen has not failed."""
    either.add_task("check", lambda: "approve", routes=["approve", "reject"])
    either.add_task("approve", lambda: 1)
    either.add_task("reject", lambda: 2)
    either.add_task("both", lambda upstream: upstream, depends_on=["approve", "reject"], on_dep_failure=policy)
    either.add_task("gone", lambda reject: 3, on_dep_failure=policy)
    run = either.start("check", timeout=WATCHDOG)
    assert run.result() == {"both": {"approve": 1}}
    assert (run.status, rows(run)["gone"]) == ("SUCCESS", "SKIPPED")


def test_skipped_tasks_have_no_run_and_no_attempt(inline):
    """The report of a skipped task: no run, no attempt, no result, no error, no start."""
    orders(inline, "approve").run("check")
    row = inline.report().tasks["reject"]
    assert (row.runs, row.attempt, row.result, row.error, row.started_at) == (0, 0, None, None, None)


def test_a_skip_is_told_to_hooks_once_and_to_streams_never():
    """Hooks hear of every task that is skipped, with a reason; a stream has no chunk of it."""
    told: list[tuple[str, str]] = []

    class Skips(Hook):
        def on_task_skip(self, event: Any) -> None:
            told.append((event.task, event.reason))

    with Flow("inline", hooks=[Skips()]) as flow:
        chunks = list(orders(flow, []).stream("check"))
    assert chunks == [("check", [])]
    assert [task for task, _ in told] == ["approve", "reject", "notify"]
    assert all(reason for _, reason in told)


def test_a_skip_waits_until_nothing_can_choose_any_more():
    """What one router did not choose is not skipped, nor runs a join behind it, while another may still choose it."""
    order: list[str] = []
    quick_is_done = threading.Event()
    with Flow("thread", max_workers=2) as flow:
        flow.add_task("quick", lambda: quick_is_done.set() or [], routes=["target"])
        flow.add_task("slow", lambda ctx: quick_is_done.wait(WATCHDOG) and "target", routes=["target"])
        flow.add_task("target", lambda: order.append("target"))
        flow.add_task("end", lambda target: order.append("end"))
        run = flow.start(timeout=WATCHDOG)
        run.result()
    assert order == ["target", "end"]
    assert rows(run)["target"] == "SUCCESS"


def test_a_report_of_a_running_flow_tells_what_may_still_come():
    """While a router runs, what it may choose and what follows from that is PENDING."""
    asked, answered = threading.Event(), threading.Event()

    def check() -> str:
        asked.set()
        answered.wait(WATCHDOG)
        return "approve"

    with Flow("thread") as flow:
        run = orders(flow, check).start("check", timeout=WATCHDOG)
        assert asked.wait(WATCHDOG)
        early = rows(run)
        answered.set()
        run.result()
    assert early == {"check": "RUNNING", "approve": "PENDING", "reject": "PENDING", "notify": "PENDING"}
    assert rows(run)["reject"] == "SKIPPED"


def test_two_routers_that_choose_the_same_run_it_once(each):
    """A task that two routers choose runs once, after both."""
    calls: list[Any] = []
    each.add_task("one", lambda: {"target": 1}, routes=["target"])
    each.add_task("two", lambda: {"target": 2}, routes=["target"])
    each.add_task("target", lambda payload: calls.append(payload))
    each.run(timeout=WATCHDOG)
    assert calls in ([1], [2])


def test_a_later_request_runs_what_was_not_chosen(either):
    """A skip is final only until somebody asks: then the task runs, and what depends on it as well."""

    def look(ctx: Any) -> NextTask:
        assert ctx.get("check") == []  # the choice has been made
        return NextTask("manual")

    either.add_task("check", lambda payload: [], routes=["manual"])
    either.add_task("manual", lambda: "by hand")
    either.add_task("report", lambda manual: f"done {manual}")
    either.add_task("other", lambda: NextTask("look"))
    either.add_task("look", look)
    run = either.start(["check", "other"], {"payload": 0}, timeout=WATCHDOG)
    assert run.result() == {"check": [], "report": "done by hand"}
    assert rows(run) == dict.fromkeys(("check", "manual", "report", "other", "look"), "SUCCESS")
    assert run.report().tasks["manual"].runs == 1


def test_a_dependency_that_succeeded_does_not_choose_a_route(either):
    """A route of a router in this run runs only when it is chosen, whatever else leads to it."""
    either.add_task("load", lambda: 1)
    either.add_task("check", list, routes=["target"])
    either.add_task("target", lambda load: load)
    run = either.start(timeout=WATCHDOG)
    run.result()
    assert rows(run) == {"load": "SUCCESS", "check": "SUCCESS", "target": "SKIPPED"}


def test_a_route_whose_router_is_no_part_of_the_run_is_a_plain_task(either):
    """Where the router does not take part, the task runs as its dependencies say."""
    either.add_task("load", lambda: 1)
    either.add_task("check", list, routes=["target"])
    either.add_task("target", lambda load: load)
    run = either.start("load", timeout=WATCHDOG)
    assert run.result() == {"target": 1}
    assert rows(run) == {"load": "SUCCESS", "target": "SUCCESS"}


def test_a_choice_replaces_the_static_successors(each):
    """A router that chose does not follow its static edges, one that returned None does."""
    each.add_task("check", lambda payload: payload, routes=["chosen"])
    each.add_task("chosen", lambda: "c")
    each.add_task("static", lambda check: "s")
    assert each.run("check", {"payload": "chosen"}, timeout=WATCHDOG) == {"chosen": "c"}
    assert each.run("check", {"payload": None}, timeout=WATCHDOG) == {"static": "s"}
    run = each.start("check", {"payload": []}, timeout=WATCHDOG)
    assert run.result() == {"check": []}
    assert set(rows(run).values()) == {"SUCCESS", "SKIPPED"}


def test_what_stopped_still_counts_for_a_join_that_others_lead_to(each):
    """A task that chose for itself is in the upstream of a join that another dependency leads to."""
    each.add_task("chooses", lambda: TaskOutput("mine", []))
    each.add_task("follows", lambda: "theirs")
    each.add_task("join", lambda upstream: upstream, depends_on=["chooses", "follows"])
    assert each.run(timeout=WATCHDOG) == {"chooses": "mine", "join": {"chooses": "mine", "follows": "theirs"}}


def test_dependants_see_what_ended_before_its_generator_router_did(either):
    """What a generator chose may end while the generator goes on: its output stays, for all that depend on it."""

    def check(ctx: Any) -> Iterator[NextTask]:
        yield NextTask("early")
        assert ctx.get("early") == 1
        return "done"

    either.add_task("check", check, routes=["early"])
    either.add_task("early", lambda: 1)
    either.add_task("after", lambda early, upstream: (early, upstream))
    run = either.start(timeout=WATCHDOG)
    assert run.result() == {"after": (1, {"early": 1})}
    assert (rows(run)["early"], run.report().tasks["early"].runs) == ("SUCCESS", 1)


def test_upstream_leaves_out_a_dependency_whose_newest_run_failed():
    """A dependency that succeeded once and failed when it ran again is missing, as if it had never succeeded."""
    turns: list[str] = []
    seen: list[Any] = []

    def flaky() -> str:
        turns.append("again")
        if len(turns) > 1:
            raise Boom
        return "fine"

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("flaky", flaky)
        flow.add_task("steady", lambda: "steady")
        flow.add_task(
            "join",
            lambda flaky, upstream: seen.append((flaky, upstream)),
            depends_on=["flaky", "steady"],
            on_dep_failure="run-anyway",
        )
        flow.add_task("once_more", lambda: NextTask("flaky") if len(turns) < 2 else None, depends_on=["join"])
        flow.run(timeout=WATCHDOG)
    assert seen == [("fine", {"flaky": "fine", "steady": "steady"}), (None, {"steady": "steady"})]


# ---- routers that fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "status"), [("fail", "FAILED"), ("skip", "SKIPPED"), ("run-anyway", "SUCCESS")])
def test_a_route_counts_as_a_dependency_on_its_router_when_that_fails(policy, status):
    """When a router fails, its routes end as their ``on_dep_failure`` says."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("check", boom, routes=["next"])
        flow.add_task("next", lambda payload=None: ("ran", payload), on_dep_failure=policy)
        flow.add_task("after", lambda upstream: upstream, depends_on=["next"], on_dep_failure="run-anyway")
        run = flow.start("check")
        ran = {"next": ("ran", None)} if policy == "run-anyway" else {}
        assert run.result() == {"after": ran}
        assert rows(run) == {"check": "FAILED", "next": status, "after": "SUCCESS"}
        assert run.status == "FAILED"


def test_a_router_that_was_skipped_has_not_failed(inline):
    """What a router that was not reached might have chosen is skipped, and nothing has failed."""
    inline.add_task("a", list, routes=["b"])
    inline.add_task("b", lambda: "c", routes=["c"])
    inline.add_task("c", lambda: 1, on_dep_failure="fail")
    run = inline.start()
    run.result()
    assert rows(run) == {"a": "SUCCESS", "b": "SKIPPED", "c": "SKIPPED"}
    assert run.status == "SUCCESS"


def test_a_chosen_task_whose_dependency_failed_ends_by_its_policy():
    """Being chosen does not help against a dependency that failed."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("good", lambda: 1)
        flow.add_task("bad", boom, depends_on=["good"])
        flow.add_task("check", lambda: ["strict", "loose", "easy"], routes=["strict", "loose", "easy"])
        for name, policy in (("strict", "fail"), ("loose", "skip"), ("easy", "run-anyway")):
            flow.add_task(name, lambda upstream: upstream, depends_on=["good", "bad"], on_dep_failure=policy)
        run = flow.start()
        assert run.result() == {"easy": {"good": 1}}
        assert {name: rows(run)[name] for name in ("strict", "loose", "easy")} == {
            "strict": "FAILED", "loose": "SKIPPED", "easy": "SUCCESS",
        }  # fmt: skip
        assert {name: (row.attempt, row.result) for name, row in run.report().tasks.items() if row.attempt == 0} == {
            "strict": (0, None), "loose": (0, None),
        }  # fmt: skip


def three_requests() -> list[NextTask]:
    return [NextTask("work", {"payload": number}, True) for number in range(3)]


def three_yields() -> Iterator[NextTask]:
    yield from three_requests()


@pytest.mark.parametrize("ask", [three_requests, three_yields])
@pytest.mark.parametrize("routes", [None, ["work"]])
@pytest.mark.parametrize(("policy", "status"), [("fail", "FAILED"), ("skip", "SKIPPED")])
def test_every_request_for_a_task_whose_dependency_failed_ends_by_its_policy(ask, routes, policy, status):
    """Of several spawned requests for such a task none is called, whoever made them."""
    calls: list[Any] = []
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("bad", boom)
        flow.add_task("ask", ask, depends_on=["bad"], on_dep_failure="run-anyway", routes=routes)
        flow.add_task("work", lambda payload: calls.append(payload), depends_on=["bad"], on_dep_failure=policy)
        run = flow.start()
        run.result()
        assert calls == []
        assert rows(run)["work"] == status


# ---- targets, results ------------------------------------------------------------------------------------


def test_targets_take_routers_along(either):
    """A target that is a route needs its router; the other routes do not run, even if chosen."""
    orders(either, ["approve", "reject"])
    run = either.start(targets=["approve"], timeout=WATCHDOG)
    assert run.result() == {"approve": ("approved", None)}
    assert rows(run) == {"check": "SUCCESS", "approve": "SUCCESS"}


def test_a_target_that_is_not_chosen_is_skipped(either):
    """A target behind a router runs only if the router chooses it."""
    run = orders(either, "reject").start(targets=["approve"], timeout=WATCHDOG)
    run.result()
    assert rows(run) == {"check": "SUCCESS", "approve": "SKIPPED"}


@pytest.mark.parametrize(
    "answer",
    [
        lambda: "out",
        lambda: {"out": 1},
        lambda: NextTask("out"),
        lambda: TaskOutput(None, [NextTask("out")]),
        lambda: TaskOutput(None, [NextTask("out", {}, True)]),
        lambda: TaskOutput(None, iter([NextTask("out")])),
        lambda: (yield NextTask("out")),
    ],
    ids=["name", "mapping", "one", "list", "spawned", "lazy", "generator"],
)
def test_in_whatever_form_a_choice_of_what_is_left_out_runs_nothing(inline, answer):
    """Under ``targets=`` a choice that leads out of the part runs nothing, and leaves the router terminal."""
    inline.add_task("check", answer, routes=["in", "out"])
    inline.add_task("in", lambda: 1)
    inline.add_task("out", lambda: 2)
    run = inline.start(targets=["in"])
    assert run.result().keys() == {"check"}
    assert rows(run) == {"check": "SUCCESS", "in": "SKIPPED"}


def test_a_router_is_terminal_when_it_chose_nothing(inline):
    """The output of a router is what it returned; it is a result when it chose nothing and leads on to nothing."""
    inline.add_task("check", lambda payload: payload, routes=["next"])
    inline.add_task("next", lambda: "n")
    assert inline.run("check", {"payload": []}) == {"check": []}
    assert inline.run("check", {"payload": {}}) == {"check": {}}
    assert inline.run("check", {"payload": 5}) == {"check": 5}
    assert inline.run("check", {"payload": None}) == {"check": None}
    assert inline.run("check", {"payload": "next"}) == {"next": "n"}
    assert inline.context["check"] == "next"


def test_a_request_that_coalesced_is_a_request(inline):
    """A router whose choice falls together with another's has chosen: it is no terminal task run."""
    inline.add_task("one", lambda: "target", routes=["target"])
    inline.add_task("two", lambda: "target", routes=["target"])
    inline.add_task("target", lambda: "t")
    assert inline.run() == {"target": "t"}


def test_a_route_is_no_start(inline):
    """Without a start, every task without dependencies starts that is nobody's route."""
    inline.add_task("target", lambda: "t")
    inline.add_task("check", list, routes=["target"])
    inline.add_task("alone", lambda: "a")
    assert inline.run() == {"check": [], "alone": "a"}


def test_a_route_can_be_started_by_name(inline):
    """A route that a run starts with runs, with the inputs."""
    orders(inline, "reject")
    assert inline.run("approve", {"payload": 1}) == {"notify": {"approve": ("approved", 1)}}


# ---- loops -----------------------------------------------------------------------------------------------


def test_a_router_may_choose_itself(each):
    """A task that is its own route goes on until it stops; its result stands under the bare name."""
    each.add_task("count", lambda payload: {"count": payload + 1} if payload < 5 else payload, routes=["count"])
    run = each.start("count", {"payload": 1}, timeout=WATCHDOG)
    assert run.result() == {"count": 5}
    assert run.report().tasks["count"].runs == 5


def test_a_loop_may_be_closed_by_requests(each):
    """A loop through NextTasks carries its inputs from turn to turn."""
    each.add_task("page", lambda number: [NextTask("more", {"number": number})])
    each.add_task("more", lambda number: NextTask("page", {"number": number + 1}) if number < 4 else number)
    assert each.run("page", {"number": 1}, timeout=WATCHDOG) == {"more": 4}


def test_r26_a_join_inside_a_loop_pairs_turn_with_turn(each):
    """Each turn's join gets the outputs of that turn, none is lost, and none comes twice."""
    pairs: list[Any] = []

    def decide(join: Any) -> Any:
        pairs.append(join)
        return {"turn": join[0] + 1} if join[0] < 4 else {"end": len(pairs)}

    each.add_task("turn", lambda payload: payload)
    each.add_task("left", lambda turn: ("left", turn))
    each.add_task("right", lambda turn: ("right", turn))
    each.add_task("join", lambda left, right: (left[1], left, right))
    each.add_task("decide", decide, routes=["turn", "end"])
    each.add_task("end", lambda payload: payload)
    assert each.run("turn", {"payload": 1}, timeout=WATCHDOG) == {"end": 4}
    assert pairs == [(n, ("left", n), ("right", n)) for n in range(1, 5)]


def test_r26_a_join_inside_for_each_pairs_item_with_item(each):
    """Each item that asks for two tasks and a join gets a join of its own, with the outputs for that very item."""
    pairs: list[Any] = []

    def fan(item: int) -> list[NextTask]:
        return [
            NextTask("double", {"payload": item}, True),
            NextTask("square", {"payload": item}, True),
            NextTask("pair", {"item_was": item}, True, join=True),
        ]

    each.add_task("fan", fan, for_each="$inputs.rows")
    each.add_task("double", lambda payload: payload * 2)
    each.add_task("square", lambda payload: payload**2)
    each.add_task("pair", lambda item_was, upstream: pairs.append((item_was, upstream)))
    each.run("fan", {"rows": [1, 2, 3, 4, 5]}, timeout=WATCHDOG)
    assert sorted(pairs) == [(n, [n * 2, n**2]) for n in range(1, 6)]


def test_r26_a_map_inside_a_loop_maps_each_turn_s_own_items(each):
    """A map in the body of a loop is mapped over the items of that turn."""
    seen: list[Any] = []

    def decide(work: list[Any]) -> Any:
        seen.append(work)
        return {"batch": len(seen)} if len(seen) < 3 else []

    each.add_task("batch", lambda payload: [f"{payload}-{n}" for n in range(3)])
    each.add_task("work", lambda item, index: (index, item), for_each="batch")
    each.add_task("decide", decide, routes=["batch"])
    each.run("batch", {"payload": 0}, timeout=WATCHDOG)
    assert seen == [[(n, f"{turn}-{n}") for n in range(3)] for turn in range(3)]


def test_r62_max_task_runs_ends_a_loop_with_an_error():
    """A loop that goes on for ever raises, and never ends quietly."""
    with Flow("inline", max_task_runs=20) as flow:
        flow.add_task("ping", lambda: "pong", routes=["pong"])
        flow.add_task("pong", lambda: "ping", routes=["ping"])
        run = flow.start("ping")
        with pytest.raises(TaskRunLimitError):
            run.result()
        assert run.status == "FAILED"
        assert sum(row.runs for row in run.report().tasks.values()) <= 21


@pytest.mark.parametrize("entry", ["a", "outside"])
def test_r62_a_cycle_of_dependencies_is_refused_with_its_path(inline, entry):
    """A circle of dependencies is an error that shows it, whether the run would start inside of it or not."""
    inline.add_task("outside", lambda: 1)
    inline.add_task("a", lambda: 1, depends_on=["c", "outside"])
    inline.add_task("b", lambda: 1, depends_on=["a"])
    inline.add_task("c", lambda: 1, depends_on=["b"])
    with pytest.raises(CycleError) as caught:
        inline.run(entry)
    path = list(caught.value.path)
    assert sorted(path[:-1]) == ["a", "b", "c"]
    assert path[0] == path[-1]
    assert all(name in str(caught.value) for name in path)


def test_a_circle_with_a_route_in_it_is_a_loop(inline):
    """A circle in which one edge is a route is allowed."""
    inline.add_task("a", lambda payload=0: payload + 1)
    inline.add_task("b", lambda a: {"a": a} if a < 3 else [], routes=["a"])
    inline.validate()
    assert inline.run("a", {"payload": 0}) == {"b": []}


# ---- maps: what they map over ------------------------------------------------------------------------------


def test_a_map_over_a_dependency(each):
    """``for_each`` with the name of a dependency maps over its output; the output is the list, in order."""
    each.add_task("rows", lambda: ["a", "b", "c"])
    each.add_task("work", lambda item, payload, index: (index, item, payload), for_each="rows")
    each.add_task("sum", lambda work: work)
    assert each.run(timeout=WATCHDOG) == {"sum": [(0, "a", "a"), (1, "b", "b"), (2, "c", "c")]}
    assert each.dependencies["work"] == ("rows",)


def test_the_dependency_of_a_map_may_be_a_parameter_as_well(inline):
    """An item may take the whole output of a dependency by its name, and the mapping."""
    inline.add_task("rows", lambda: [1, 2])
    inline.add_task("factor", lambda: 10)
    inline.add_task("work", lambda item, rows, factor, upstream: (item * factor, rows, upstream), for_each="rows")
    upstream = {"rows": [1, 2], "factor": 10}
    assert inline.run() == {"work": [(10, [1, 2], upstream), (20, [1, 2], upstream)]}


def test_a_map_over_the_context(each):
    """``for_each="$ctx.a.b"`` maps over a value in the context, by keys and list indexes."""
    each.add_task("work", lambda item: item * 2, for_each="$ctx.data.rows.1")
    assert each.run(context={"data": {"rows": [[], [1, 2, 3]]}}, timeout=WATCHDOG) == {"work": [2, 4, 6]}


def test_a_map_over_the_inputs(each):
    """``for_each="$inputs.x"`` maps over what the task was asked with."""
    each.add_task("work", lambda item, scale: item * scale, for_each="$inputs.rows")
    assert each.run("work", {"rows": [1, 2], "scale": 3}, timeout=WATCHDOG) == {"work": [3, 6]}


def test_a_map_waits_for_a_context_key(each):
    """A map over a key that another task sets waits for that key."""
    each.add_task("work", lambda item: item, for_each="$ctx.late")
    each.add_task("setter", lambda ctx: ctx.set("late", [1, 2]))
    assert each.run(["work", "setter"], timeout=WATCHDOG) == {"work": [1, 2], "setter": None}


async def double(item: int) -> int:
    await asyncio.sleep(0)
    return item * 2


def test_coroutines_are_mapped(each):
    """A map may call an ``async def``; over a key that is set later as well."""
    each.add_task("work", double, for_each="$ctx.late")
    each.add_task("setter", lambda ctx: ctx.set("late", [1, 2, 3]))
    results = each.run(["work", "setter"], timeout=WATCHDOG)
    assert results["work"] == [2, 4, 6]


@pytest.mark.parametrize("rows", [[], (), range(0), iter([])], ids=named)
def test_an_empty_map_gives_an_empty_list(each, rows):
    """A map over nothing calls nothing, gives ``[]``, and goes on."""
    each.add_task("rows", lambda: rows)
    each.add_task("work", boom, for_each="rows")
    each.add_task("sum", lambda work: ("sum of", work))
    run = each.start(timeout=WATCHDOG)
    assert run.result() == {"sum": ("sum of", [])}
    assert rows_of(run, "work") == ("SUCCESS", 1)


def rows_of(run: Any, name: str) -> tuple[str, int]:
    row = run.report().tasks[name]
    return str(row.status), row.runs


@pytest.mark.parametrize(
    "rows", [[1, 2, 3], (1, 2, 3), range(1, 4), {1: "a", 2: "b", 3: "c"}.keys()], ids=lambda rows: type(rows).__name__
)
def test_any_iterable_is_a_sequence(inline, rows):
    """Lists, tuples, ranges, views: whatever can be iterated over is mapped over."""
    inline.add_task("rows", lambda: TaskOutput(rows))
    inline.add_task("work", lambda item: item + 1, for_each="rows")
    assert inline.run() == {"work": [2, 3, 4]}


def test_r62_a_map_reads_its_sequence_once(either):
    """What is mapped over is iterated over once, also when an item is tried again."""
    reads: list[int] = []

    class Rows:
        def __iter__(self) -> Iterator[int]:
            reads.append(1)
            return iter([1, 2, 3])

    def work(item: int) -> int:
        if current_task().attempt == 1:
            raise Boom
        return item

    rows = Rows()
    either.add_task("rows", lambda: TaskOutput(rows))
    either.add_task("work", work, for_each="rows", retries=1)
    assert either.run(timeout=WATCHDOG) == {"work": [1, 2, 3]}
    assert reads == [1]


@pytest.mark.parametrize("rows", ["abc", b"abc", {"a": 1}, 5, None], ids=repr)
def test_what_is_no_sequence_is_refused(inline, rows):
    """A text, a mapping or a number is not mapped over: the error names the task, and what it got."""
    inline.add_task("rows", lambda: rows)
    inline.add_task("work", lambda item: item, for_each="rows")
    with pytest.raises(BindingError, match=r"work.*not a sequence"):
        inline.run()


@pytest.mark.parametrize("path", ["$ctx.nope", "$ctx.data.nope", "$inputs.nope", "$ctx.data.rows.7"])
def test_a_path_that_leads_nowhere_is_refused(inline, path):
    """A path that is missing while the flow runs is a BindingError that names the task and the path."""
    inline.add_task("work", lambda item: item, for_each=path)
    with pytest.raises(BindingError, match="work"):
        inline.run("work", {"x": 1}, context={"data": {"rows": [1]}})


def test_a_map_over_no_task_is_refused(inline):
    """A name in ``for_each`` that is no task is an error before anything runs."""
    inline.add_task("work", lambda item: item, for_each="nope")
    with pytest.raises(TaskNotFoundError, match="nope"):
        inline.run()


def test_a_map_over_a_task_beside_other_dependencies(each):
    """``depends_on`` beside ``for_each`` adds to it; all are waited for."""
    each.add_task("rows", lambda: [1, 2])
    each.add_task("ready", lambda ctx: ctx.set("key", "set"))
    each.add_task("work", lambda item, ctx: (item, ctx.get("key", "no")), for_each="rows", depends_on=["ready"])
    assert each.run(timeout=WATCHDOG) == {"work": [(1, "set"), (2, "set")]}
    assert sorted(each.dependencies["work"]) == ["ready", "rows"]


def test_a_map_over_a_map(each):
    """The list that one map gives is mapped over by the next, place by place."""
    each.add_task("rows", lambda: [3, 1, 2])
    each.add_task("twice", lambda item: item * 2, for_each="rows")
    each.add_task("plus", lambda item, index: (index, item + 1), for_each="twice")
    assert each.run(timeout=WATCHDOG) == {"plus": [(0, 7), (1, 3), (2, 5)]}


def test_a_chosen_map_maps_what_the_router_sent(each):
    """A map that a router chooses may map over the payload."""
    each.add_task("check", lambda: {"work": [1, 2, 3]}, routes=["work"])
    each.add_task("work", lambda item: item * 10, for_each="$inputs.payload")
    assert each.run(timeout=WATCHDOG) == {"work": [10, 20, 30]}


def test_a_map_that_is_not_chosen_is_skipped(inline):
    """A map behind a branch not taken is skipped, and looks for no items."""
    inline.add_task("check", list, routes=["work"])
    inline.add_task("work", lambda item: item, for_each="$ctx.nope")
    run = inline.start()
    run.result()
    assert rows(run) == {"check": "SUCCESS", "work": "SKIPPED"}


# ---- maps: items -------------------------------------------------------------------------------------------


def test_items_are_task_runs_with_a_place_in_their_id(inline):
    """The items' ids are ``work[0]``, ``work[1]`` …; their keys differ and are the same in every run."""
    me = lambda item: (current_task().id, current_task().name, current_task().key.partition(":")[2])  # noqa: E731
    inline.add_task("work", me, for_each="$ctx.rows")
    first, second = (inline.run(context={"rows": ["x", "z"] * 2}, run_id="same")["work"] for _ in range(2))
    assert [run_id for run_id, _, _ in first] == ["work[0]", "work[1]", "work[2]", "work[3]"]
    assert {name for _, name, _ in first} == {"work"}
    assert first == second


def test_spawned_maps_number_their_items_apart(either):
    """Two runs of one map have items of their own: ``work[0]`` and ``work#2[0]``, each with its own inputs."""
    either.add_task("ask", lambda: [NextTask("work", {"rows": [10, 20]}, True), NextTask("work", {"rows": [30]}, True)])
    either.add_task("work", lambda item: (current_task().id, item), for_each="$inputs.rows")
    assert either.run("ask", timeout=WATCHDOG) == {
        "work": [("work[0]", 10), ("work[1]", 20)],
        "work#2": [("work#2[0]", 30)],
    }


def test_only_the_map_has_a_chunk_and_a_context_key(each):
    """Items are neither streamed nor stored: the map is, once, with its list."""
    each.add_task("work", lambda item: item + 1, for_each="$ctx.rows")
    assert list(each.stream(context={"rows": [1, 2]}, timeout=WATCHDOG)) == [("work", [2, 3])]
    assert each.context.to_dict() == {"rows": [1, 2], "work": [2, 3]}


def test_the_report_has_one_row_for_a_map(each):
    """However many items there are, a map has one row, which counts the map's run."""
    each.add_task("work", lambda item: item, for_each="$ctx.rows")
    run = each.start(context={"rows": list(range(30))}, timeout=WATCHDOG)
    run.result()
    assert list(run.report().tasks) == ["work"]
    assert rows_of(run, "work") == ("SUCCESS", 1)
    assert run.report().tasks["work"].result == list(range(30))


@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_max_parallel_items_are_under_way_at_once(kind):
    """``max_parallel`` of a map bounds its items, and is used to the full."""
    lock, now, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)

    def work(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait(WATCHDOG)  # two at a time must be here together
        with lock:
            now -= 1
        return item

    with Flow(kind, max_workers=4) as flow:
        flow.add_task("work", work, for_each="$ctx.rows", max_parallel=2)
        assert flow.run(context={"rows": list(range(8))}, timeout=WATCHDOG) == {"work": list(range(8))}
    assert most == 2


def test_items_start_in_order_on_one_worker(inline):
    """On one worker the items are called in their order."""
    order: list[int] = []
    inline.add_task("work", lambda index: order.append(index), for_each="$ctx.rows")
    inline.run(context={"rows": ["a", "b", "c", "d"]})
    assert order == [0, 1, 2, 3]


def test_the_output_is_in_order_whoever_is_first():
    """The list has the order of the items, also when a later one ends first."""
    last_is_done = threading.Event()

    def work(item: str, index: int) -> str:
        if index == 0:
            assert last_is_done.wait(WATCHDOG)
        if index == 2:
            last_is_done.set()
        return item.upper()

    with Flow("thread", max_workers=3) as flow:
        flow.add_task("work", work, for_each="$ctx.rows")
        assert flow.run(context={"rows": ["a", "b", "c"]}, timeout=WATCHDOG) == {"work": ["A", "B", "C"]}


def test_items_hold_the_limits_that_the_map_uses():
    """A named limit is held by each item, not by the map."""
    lock, now, most = threading.Lock(), 0, 0

    def work(item: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1
        return item

    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:
        flow.add_task("work", work, for_each="$ctx.rows", uses=["db"])
        assert flow.run(context={"rows": list(range(20))}, timeout=WATCHDOG) == {"work": list(range(20))}
    assert most == 1


def test_a_map_of_many_items(each):
    """A map over many items gives their outputs in order."""
    each.add_task("work", lambda item: item + 1, for_each="$ctx.rows")
    assert each.run(context={"rows": range(2000)}, timeout=WATCHDOG) == {"work": list(range(1, 2001))}


def test_hooks_hear_of_every_item():
    """Items begin and end like other task runs, inside of the map."""
    told: list[tuple[str, str]] = []

    class Listen(Hook):
        def on_task_start(self, event: Any) -> None:
            told.append(("start", event.id))

        def on_task_success(self, event: Any) -> None:
            told.append(("end", event.id))

    with Flow("inline", hooks=[Listen()]) as flow:
        flow.add_task("work", lambda item: item, for_each="$ctx.rows")
        flow.run(context={"rows": [1, 2]})
    assert told == [
        ("start", "work"), ("start", "work[0]"), ("end", "work[0]"),
        ("start", "work[1]"), ("end", "work[1]"), ("end", "work"),
    ]  # fmt: skip


def test_generators_are_mapped(each):
    """An item may stream values; its return value is its output, and its chunks carry its id."""

    def work(item: str) -> Iterator[str]:
        yield f"reading {item}"
        return item.upper()

    each.add_task("work", work, for_each="$ctx.rows")
    chunks = list(each.stream(context={"rows": ["a", "b"]}, timeout=WATCHDOG))
    assert sorted(chunks[:2]) == [("work[0]", "reading a"), ("work[1]", "reading b")]
    assert chunks[2:] == [("work", ["A", "B"])]


def test_an_item_may_ask_for_tasks(each):
    """An item that asks for tasks does so beside its output; the map waits for none of them."""
    each.add_task("work", lambda item: TaskOutput(item, [NextTask("log", {"line": item}, True)]), for_each="$ctx.rows")
    each.add_task("log", lambda line: f"logged {line}")
    results = each.run("work", context={"rows": ["a", "b"]}, timeout=WATCHDOG)
    assert sorted(value for name, value in results.items() if name.startswith("log")) == ["logged a", "logged b"]
    assert each.context["work"] == ["a", "b"]


def test_every_item_knows_its_index_and_no_more_than_it_takes(inline):
    """An item takes what it names: its place alone, the context, or nothing at all."""
    inline.add_task("place", lambda index: index, for_each="$ctx.rows")
    inline.add_task("lookup", lambda ctx, item: ctx["names"][item], for_each="$ctx.rows")
    inline.add_task("nothing", lambda: "called", for_each="$ctx.rows")
    results = inline.run(["place", "lookup", "nothing"], context={"rows": ["x", "y"], "names": {"x": 1, "y": 2}})
    assert results == {"place": [0, 1], "lookup": [1, 2], "nothing": ["called", "called"]}


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_items_arrive_and_return_as_they_are(inline, value):
    """Falsy items, pairs and mappings are mapped like any other."""
    inline.add_task("work", lambda item, payload: (item, payload), for_each="$ctx.rows")
    inline.add_task("same", lambda item: item, for_each="work")
    [got] = inline.run(context={"rows": [value, value]}).values()
    assert repr(got) == repr([(value, value)] * 2)


# ---- maps: failures ----------------------------------------------------------------------------------------


def test_the_first_failing_item_fails_the_map(each):
    """The error of an item is raised as itself, and the map has failed."""
    each.add_task("work", lambda item: 1 // item, for_each="$ctx.rows")
    run = each.start(context={"rows": [1, 0, 2]}, timeout=WATCHDOG)
    with pytest.raises(ZeroDivisionError) as caught:
        run.result()
    assert any("work[1]" in note for note in caught.value.__notes__)
    assert rows(run) == {"work": "FAILED"}
    assert run.report().tasks["work"].error.type == "ZeroDivisionError"


@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_items_not_begun_are_cancelled(on_error):
    """After the first failing item no other one begins."""
    called: list[int] = []

    def work(item: int) -> None:
        called.append(item)
        if item == 2:
            raise Boom

    with Flow("inline", on_error=on_error) as flow:
        flow.add_task("work", work, for_each="$ctx.rows")
        run = flow.start(context={"rows": [1, 2, 3, 4]})
        run.wait()
    assert called == [1, 2]
    assert rows(run) == {"work": "FAILED"}


@pytest.mark.parametrize("bound", [{"max_parallel": 1}, {"uses": ["db"]}, {}], ids=repr)
def test_items_that_wait_are_cancelled_wherever_they_wait(bound):
    """Items that wait for their turn, for a limit or for a worker do not begin either; the flow is as good as new."""
    called: list[int] = []

    def work(item: int) -> int:
        called.append(item)
        if item < 0:
            raise Boom
        return item

    with Flow("thread", max_workers=1, limits={"db": 1}, on_error="continue") as flow:
        flow.add_task("work", work, for_each="$ctx.rows", **bound)
        run = flow.start(context={"rows": [-1, 2, 3]}, timeout=WATCHDOG)
        run.wait()
        assert called == [-1]
        assert flow.run(context={"rows": [4, 5, 6]}, timeout=WATCHDOG) == {"work": [4, 5, 6]}


def test_items_that_fail_together_are_raised_together():
    """Items that were running when the first one failed, and fail as well, come with it in a group."""
    both = threading.Barrier(2)

    def work(item: int) -> None:
        both.wait(WATCHDOG)
        raise Boom(item)

    with Flow("thread", max_workers=2) as flow:
        flow.add_task("work", work, for_each="$ctx.rows")
        run = flow.start(context={"rows": [1, 2, 3]}, timeout=WATCHDOG)
        with pytest.raises(ExceptionGroup) as caught:
            run.result()
    assert sorted(error.args for error in caught.value.exceptions) == [(1,), (2,)]
    assert rows(run) == {"work": "FAILED"}


def test_what_depends_on_a_map_that_failed_goes_by_its_policy():
    """A failed map is a failed dependency like any other."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("work", lambda item: 1 // item, for_each="$ctx.rows")
        flow.add_task("strict", lambda work: work)
        flow.add_task("easy", lambda work: ("got", work), on_dep_failure="run-anyway")
        run = flow.start(context={"rows": [1, 0]})
        assert run.result() == {"easy": ("got", None)}
        assert rows(run) == {"work": "FAILED", "strict": "FAILED", "easy": "SUCCESS"}
        assert run.report().tasks["strict"].error.type.endswith("DependencyFailedError")


def test_a_map_over_a_failed_dependency_is_not_mapped():
    """A map whose dependency failed ends by its own policy."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("rows", boom)
        flow.add_task("work", lambda item: item, for_each="rows", on_dep_failure="skip")
        run = flow.start()
        assert run.result() == {}
        assert rows(run) == {"rows": "FAILED", "work": "SKIPPED"}


def test_retries_are_per_item(each):
    """Each item has attempts of its own, and only the one that failed is called again."""
    calls: list[tuple[str, int]] = []

    def work(item: int) -> int:
        me = current_task()
        calls.append((me.id, me.attempt))
        if me.attempt <= item:
            raise Boom
        return item

    each.add_task("work", work, for_each="$ctx.rows", retries=2)
    assert each.run(context={"rows": [0, 2, 1]}, timeout=WATCHDOG) == {"work": [0, 2, 1]}
    assert sorted(calls) == [
        ("work[0]", 1), ("work[1]", 1), ("work[1]", 2), ("work[1]", 3), ("work[2]", 1), ("work[2]", 2),
    ]  # fmt: skip


def test_an_item_that_fails_for_good_was_tried_as_often_as_allowed(inline):
    """The notes of the error tell the item and its attempt."""

    def work(item: int) -> None:
        raise Boom(item)

    inline.add_task("work", work, for_each="$ctx.rows", retry=Retry(3, "none"))
    with pytest.raises(Boom) as caught:
        inline.run(context={"rows": [1]})
    assert any("work[0]" in note and "attempt 3" in note for note in caught.value.__notes__)


def test_timeouts_are_per_item():
    """The limit is for one attempt of one item; the map as a whole may take longer."""

    async def work(item: str) -> str:
        if item == "slow":
            await asyncio.Event().wait()
        return item

    with Flow("asyncio") as flow:
        flow.add_task("work", work, for_each="$ctx.rows", timeout=0.05)
        with pytest.raises(TaskTimeoutError, match=r"work\[1\]"):
            flow.run(context={"rows": ["quick", "slow"]}, timeout=WATCHDOG)


def test_a_timed_out_item_is_tried_again_when_its_policy_names_that():
    """An item whose time was up is called again under ``on=TaskTimeoutError``, the others are not."""
    calls: list[tuple[str, int]] = []

    async def work(item: str) -> str:
        me = current_task()
        calls.append((item, me.attempt))
        if item == "slow" and me.attempt == 1:
            await asyncio.Event().wait()
        return item

    with Flow("asyncio") as flow:
        flow.add_task("work", work, for_each="$ctx.rows", timeout=0.1, retry=Retry(2, "none", on=TaskTimeoutError))
        assert flow.run(context={"rows": ["quick", "slow"]}, timeout=WATCHDOG) == {"work": ["quick", "slow"]}
    assert sorted(calls) == [("quick", 1), ("slow", 1), ("slow", 2)]


def test_a_map_counts_its_items_for_max_task_runs():
    """``max_task_runs`` counts items: a map with too many of them raises, and calls none."""
    called: list[int] = []
    with Flow("inline", max_task_runs=5) as flow:
        flow.add_task("work", lambda item: called.append(item), for_each="$ctx.rows")
        with pytest.raises(TaskRunLimitError):
            flow.run(context={"rows": range(10)})
    assert called == []


def test_cancelling_a_run_cancels_items():
    """Items that have not begun when a run is cancelled never do."""
    called: list[int] = []
    began, go_on = threading.Event(), threading.Event()

    def work(item: int) -> None:
        called.append(item)
        began.set()
        go_on.wait(WATCHDOG)

    with Flow("thread", max_workers=1) as flow:
        flow.add_task("work", work, for_each="$ctx.rows")
        run = flow.start(context={"rows": [1, 2, 3]})
        assert began.wait(WATCHDOG)
        run.cancel()
        go_on.set()
        assert run.wait(WATCHDOG)
    assert called == [1]
    assert run.status == "CANCELLED"
    assert rows(run) == {"work": "CANCELLED"}


def test_bad_options_of_maps_and_routes_are_refused_where_they_enter(inline):
    """What can be no path, no list of names and no policy is refused when the task is registered."""
    with pytest.raises(TypeError, match="for_each"):
        inline.add_task("work", boom, for_each=["a"])
    with pytest.raises(TypeError, match="routes"):
        inline.add_task("work", boom, routes="next")
    with pytest.raises(ValueError, match="on_dep_failure"):
        inline.add_task("work", boom, on_dep_failure="ignore")


def test_names_with_a_meaning_are_never_inferred(inline):
    """A task that bears such a name is no dependency of those who take the parameter."""

    def work(ctx: Any, context: Any, inputs: Any, payload: Any, upstream: Any, item: Any, index: Any) -> None: ...

    for name in ("ctx", "context", "inputs", "payload", "upstream", "item", "index"):
        inline.add_task(name, lambda: "a task", replace=True)
    inline.add_task("work", work, for_each="$ctx.rows")
    assert inline.dependencies["work"] == ()


def test_a_trace_has_every_item(either):
    """With ``trace=True`` the attempts of all items are kept, and the map's own."""

    def work(item: int) -> int:
        if item == current_task().attempt:
            raise Boom
        return item

    either.add_task("work", work, for_each="$ctx.rows", retries=1)
    run = either.start(context={"rows": [0, 1]}, trace=True, timeout=WATCHDOG)
    run.result()
    attempts = sorted((attempt.id, attempt.attempt, str(attempt.status)) for attempt in run.report().trace)
    assert attempts == [
        ("work", 1, "SUCCESS"), ("work[0]", 1, "SUCCESS"), ("work[1]", 1, "FAILED"), ("work[1]", 2, "SUCCESS"),
    ]  # fmt: skip


# ---- routes and maps among joins -----------------------------------------------------------------------------


def test_a_join_waits_for_what_its_siblings_choose(each):
    """A join starts after what a sibling has chosen, and after what follows that along static edges."""
    ended: list[str] = []
    each.add_task("go", lambda: [NextTask("check"), NextTask("sum", join=True)])
    orders(each, "approve")
    each.add_task("late", lambda notify: ended.append("late"))
    each.add_task("sum", lambda upstream: (upstream, list(ended)))
    results = each.run("go", timeout=WATCHDOG)
    assert results["sum"] == (["approve"], ["late"])


def test_a_join_takes_the_list_of_a_map(each):
    """The output of a sibling that is a map is its list; the join waits for what its items asked for as well."""
    each.add_task("go", lambda: [NextTask("work", {"rows": [1, 2]}), NextTask("sum", join=True)])
    each.add_task(
        "work", lambda item: TaskOutput(item * 2, [NextTask("deep", {"n": item}, True)]), for_each="$inputs.rows"
    )
    each.add_task("deep", lambda n, ctx: ctx.append("deep_done", n))
    each.add_task("sum", lambda upstream, ctx: (upstream, sorted(ctx.get("deep_done"))))
    assert each.run("go", timeout=WATCHDOG)["sum"] == ([[2, 4]], [1, 2])


def test_a_sibling_that_was_skipped_leaves_none():
    """In a join's list the place of a sibling that its policy skipped is None."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("bad", boom)
        flow.add_task("go", lambda: [NextTask("good"), NextTask("gone"), NextTask("sum", join=True)])
        flow.add_task("good", lambda: 1)
        flow.add_task("gone", lambda: 2, depends_on=["bad"], on_dep_failure="skip")
        flow.add_task("sum", lambda upstream: upstream)
        assert flow.run(["bad", "go"])["sum"] == [1, None]
