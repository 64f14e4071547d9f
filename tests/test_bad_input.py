"""What users get wrong: each mistake gives one clear sentence, and leaves the flow usable."""

import asyncio
import contextlib
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import (
    AsyncioExecutor,
    BindingError,
    Context,
    DuplicateTaskWarning,
    ExecutorLostError,
    Flow,
    FlowClosedError,
    FlowError,
    InlineExecutor,
    NextTask,
    PoolExecutor,
    State,
    StreamChunk,
    Task,
    TaskBase,
    TaskFailedError,
    TaskNotFoundError,
    TaskOutput,
    TaskRunLimitError,
    ThreadExecutor,
    task,
)
from tests.conftest import EACH_KIND, WATCHDOG, executors, named, run_snippet

executor = executors(EACH_KIND)


@contextlib.contextmanager
def refused(kind, *names):
    """The block raises ``kind`` with one sentence that has all these names in it."""
    with pytest.raises(kind) as caught:
        yield caught
    said = str(caught.value)
    for name in names:
        assert name in said, said
    assert "\n" not in said
    assert said.endswith((".", "?")) or len(said.split()) >= 4, said


@pytest.fixture
def flow(executor):
    """A flow with a good task, which must still run after whatever the test did."""
    with Flow(executor, name="orders") as flow:
        flow.add_task("good", lambda: "still works")
        yield flow
        assert flow.run("good") == {"good": "still works"}


def inline():
    """Return a flow with a good task."""
    flow = Flow("inline", name="orders")
    flow.add_task("good", lambda: "still works")
    return flow


# ---- Flow(...) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        ({"executor": "threads"}, ValueError, ["threads", "thread"]),
        ({"executor": "nope"}, ValueError, ["nope", "inline", "asyncio"]),
        ({"executor": 5}, TypeError, ["5", "thread"]),
        ({"executor": ThreadPoolExecutor}, TypeError, ["ThreadPoolExecutor"]),
        ({"executor": ThreadExecutor}, TypeError, ["ThreadExecutor"]),
        ({"executor": ["thread"]}, TypeError, ["thread"]),
        ({"context": {"a": 1}}, TypeError, ["context", "dict", "Context"]),
        ({"context": 5}, TypeError, ["context", "int", "Context"]),
        ({"name": 5}, TypeError, ["name", "5"]),
        ({"max_workers": 0}, ValueError, ["max_workers", "0"]),
        ({"max_workers": -1}, ValueError, ["max_workers", "-1"]),
        ({"max_workers": 1.5}, TypeError, ["max_workers", "1.5"]),
        ({"max_workers": True}, TypeError, ["max_workers", "True"]),
        ({"max_workers": "4"}, TypeError, ["max_workers", "'4'"]),
        ({"max_workers": 2, "executor": "inline"}, ValueError, ["max_workers", "inline"]),
        ({"max_workers": 2, "executor": InlineExecutor()}, ValueError, ["max_workers"]),
        ({"max_parallel": 0}, ValueError, ["max_parallel", "0"]),
        ({"max_parallel": "2"}, TypeError, ["max_parallel", "'2'"]),
        ({"max_task_runs": 0}, ValueError, ["max_task_runs", "0"]),
        ({"max_task_runs": 2.0}, TypeError, ["max_task_runs", "2.0"]),
        ({"entry": 5}, TypeError, ["entry", "5"]),
        ({"logger": "millstream"}, TypeError, ["logger", "millstream"]),
        ({"max_worker": 2}, TypeError, ["max_worker", "max_workers"]),
        ({"backend": "thread"}, TypeError, ["backend", "executor"]),
        ({"max_steps": 2}, TypeError, ["max_steps", "max_task_runs"]),
        ({"zzz": 2}, TypeError, ["zzz", "max_parallel", "entry"]),
    ],
    ids=str,
)
def test_a_flow_checks_its_options(options, kind, names):
    """A wrong type, a wrong value or an unknown option of Flow is refused where it is given."""
    with refused(kind, *names):
        Flow(**options)


# ---- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "names"),
    [
        ((5, len), {}, TypeError, ["name", "5"]),
        ((None, len), {}, TypeError, ["name", "None"]),
        (("", len), {}, ValueError, ["name", "empty"]),
        (("a#2", len), {}, ValueError, ["a#2", "#"]),
        (("a", 5), {}, TypeError, ["a", "5", "callable"]),
        (("a", None), {}, TypeError, ["a", "None", "callable"]),
        (("a", "len"), {}, TypeError, ["a", "'len'", "callable"]),
        (("a", len), {"timeout": 0}, ValueError, ["timeout", "a", "0"]),
        (("a", len), {"timeout": -1}, ValueError, ["timeout", "a", "-1"]),
        (("a", len), {"timeout": math.nan}, ValueError, ["timeout", "a", "nan"]),
        (("a", len), {"timeout": math.inf}, ValueError, ["timeout", "a", "inf"]),
        (("a", len), {"timeout": "5"}, TypeError, ["timeout", "a", "'5'"]),
        (("a", len), {"timeout": True}, TypeError, ["timeout", "a", "True"]),
        (("a", len), {"executor": "fast"}, ValueError, ["fast", "thread"]),
        (("a", len), {"executor": 5}, TypeError, ["5", "thread"]),
        (("a", len), {"description": 5}, TypeError, ["description", "a", "5"]),
        (("a", len), {"timout": 5}, TypeError, ["a", "timout", "timeout"]),
        (("a", len), {"timeout_s": 5}, TypeError, ["a", "timeout_s", "timeout"]),
        (("a", len), {"backend": "thread"}, TypeError, ["a", "backend", "executor"]),
        (("a", len), {"desciption": "x"}, TypeError, ["a", "desciption", "description"]),
        (("a", len), {"zzz": 1}, TypeError, ["a", "zzz", "executor", "timeout"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["add_task", "task", "Task"])
def test_a_task_checks_its_options(how, arguments, options, kind, names):
    """Each way to make a task refuses a bad name, action or option, and registers nothing."""
    name, action = arguments
    if how == "Task" and "executor" in options:
        pytest.skip("which executors there are is the flow's business")
    if how == "task" and name is None:
        pytest.skip("without a name the decorator takes the function's")
    flow = inline()
    with refused(kind, *names):
        if how == "add_task":
            flow.add_task(name, action, **options)
        elif how == "task":
            flow.task(name, **options)(action)
        else:
            Task(name, action, **options)
    assert list(flow.tasks) == ["good"]
    assert flow.run() == {"good": "still works"}


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: task(5), TypeError, ["5"]),
        (lambda: task(None)(5), TypeError, ["5"]),
        (lambda: task("")(len), ValueError, ["empty"]),
        (lambda: task("a#1")(len), ValueError, ["a#1"]),
        (lambda: task(timout=5)(len), TypeError, ["timout", "timeout"]),
        (lambda: task(timeout=-5)(len), ValueError, ["timeout", "-5"]),
        (lambda: task("a", name="b")(len), TypeError, ["name"]),
    ],
)
def test_the_task_decorator_checks_too(make, kind, names):
    """@task at module level refuses what flow.task refuses."""
    with refused(kind, *names):
        make()


@pytest.mark.parametrize("thing", [len, "good", None, 5, TaskBase, lambda: 1], ids=named)
def test_add_takes_tasks_alone(thing):
    """flow.add says what it takes, and what to use for a function."""
    flow = inline()
    with refused(TypeError, "Task", "add_task"):
        flow.add(thing)
    assert flow.run() == {"good": "still works"}


def test_a_task_base_checks_its_class():
    """A misspelt option, a missing run, arguments: each is refused, and says which."""
    with refused(TypeError, "Slow.timout", "timeout"):

        class Slow(TaskBase):
            timout = 5

            def run(self): ...

    with refused(TypeError, "Old.backend", "executor"):

        class Old(TaskBase):
            backend = "thread"

            def run(self): ...

    class Empty(TaskBase):
        pass

    with refused(TypeError, "Empty", "run"):
        Empty()

    class Fine(TaskBase):
        def run(self): ...

    with refused(TypeError, "Fine", "inputs"):
        Fine(5)

    class Bad(TaskBase):
        timeout = -1

        def run(self): ...

    with refused(ValueError, "timeout", "Bad", "-1"):
        Bad()


def test_an_async_task_cannot_name_the_thread_executor():
    """The mistake is told where it is made."""
    flow = inline()

    async def later():
        return 1

    with refused(TypeError, "later", "async", "thread"):
        flow.add_task("later", later, executor="thread")
    assert flow.run() == {"good": "still works"}


def test_an_unknown_task_of_a_flow():
    """flow[name] names what there is."""
    flow = inline()
    with refused(TaskNotFoundError, "Task god not found", "good"):
        flow["god"]
    for key in (5, None, ("good",)):
        with refused(LookupError, repr(key)):
            flow[key]


def test_what_flow_hands_out_is_read_only():
    """name, entry and tasks cannot be set, and tasks cannot be changed."""
    flow = inline()
    for attribute in ("name", "entry", "tasks", "context"):
        with pytest.raises(AttributeError):
            setattr(flow, attribute, None)
    with pytest.raises(TypeError):
        flow.tasks["x"] = None


# ---- a name registered again ----------------------------------------------------------------------


def test_a_name_registered_again_warns_where_it_is_written():
    """The new function replaces the old one, and the warning names task, flow, mend and this file."""
    flow = inline()
    with pytest.warns(DuplicateTaskWarning, match=r"good of orders .*replace=True") as caught:
        flow.add_task("good", lambda: "new")
    assert caught[0].filename == __file__
    with pytest.warns(DuplicateTaskWarning) as caught:

        @flow.task("good")
        def newer():
            return "newer"

    assert caught[0].filename == __file__
    assert flow.run() == {"good": "newer"}


def test_replace_says_that_it_is_meant():
    """With replace=True there is no warning, in any way to register."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow = inline()
        flow.add_task("good", lambda: 1, replace=True)
        flow.task("good", replace=True)(lambda: 2)
        flow.add(Task("good", lambda: 3), replace=True)
    assert flow.run() == {"good": 3}


def test_the_same_function_defined_anew_does_not_warn():
    """A cell that is run again, a module that is loaded again: the newest counts, without a word."""
    flow = inline()
    cell = "@flow.task\ndef double(n):\n    return n * {}\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (2, 3):
            exec(compile(cell.format(factor), "<cell>", "exec"), {"flow": flow, "__name__": "notebook"})
    assert flow.run("double", {"n": 5}) == {"double": 15}
    with pytest.warns(DuplicateTaskWarning):
        exec(compile(cell.format(4), "<other cell>", "exec"), {"flow": flow, "__name__": "elsewhere"})


def test_two_lambdas_of_one_function_are_not_the_same_function():
    """Different functions warn although both are called <lambda> and stand in one place."""
    flow = inline()
    flow.add_task("x", lambda: 1)
    with pytest.warns(DuplicateTaskWarning):
        flow.add_task("x", lambda: 2)
    assert flow.run("x") == {"x": 2}


def test_the_same_method_of_another_object_warns():
    """A bound method of another object is another function: it does something else."""

    class Counter:
        def __init__(self, n):
            self.n = n

        def count(self):
            return self.n

    flow = inline()
    flow.add_task("count", Counter(1).count)
    with pytest.warns(DuplicateTaskWarning):
        flow.add_task("count", Counter(2).count)


def test_the_very_same_function_does_not_warn():
    """Registering one function twice is no news; the same goes for one Task."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow = inline()
        one = Task("one", len)
        flow.add(one)
        flow.add(one)
        flow.add_task("one", len)


# ---- the options of a run -------------------------------------------------------------------------

RUN_MISTAKES = [
    (("god",), {}, TaskNotFoundError, ["Task god not found", "good"]),
    ((["good", "nope"],), {}, TaskNotFoundError, ["Task nope not found"]),
    ((5,), {}, TypeError, ["5", "name of a task"]),
    ((b"good",), {}, TypeError, ["b'good'"]),
    (([5],), {}, TypeError, ["5", "name of a task"]),
    (([],), {}, ValueError, ["orders", "at least one"]),
    (({"good": 1},), {}, TypeError, ["inputs=", "name of a task"]),
    ((len,), {}, TypeError, ["len", "name of a task"]),
    (("good", 5), {}, TypeError, ["inputs", "int", "orders"]),
    (("good", "abc"), {}, TypeError, ["inputs", "str"]),
    (("good", [("a", 1)]), {}, TypeError, ["inputs", "list"]),
    (("good", {5: 1}), {}, TypeError, ["5", "strings"]),
    (("good",), {"context": 5}, TypeError, ["context", "int"]),
    (("good",), {"context": [("a", 1)]}, TypeError, ["context", "list"]),
    (("good",), {"context": {5: 1}}, TypeError, ["5", "strings"]),
    (("good",), {"metadata": 5}, TypeError, ["metadata", "int"]),
    (("good",), {"metadata": "abc"}, TypeError, ["metadata", "str"]),
    (("good",), {"timeout": 0}, ValueError, ["timeout", "orders", "0"]),
    (("good",), {"timeout": -1}, ValueError, ["timeout", "orders", "-1"]),
    (("good",), {"timeout": math.nan}, ValueError, ["timeout", "nan"]),
    (("good",), {"timeout": "1"}, TypeError, ["timeout", "'1'"]),
    (("good",), {"run_id": 5}, TypeError, ["5", "id of a run"]),
    (("good",), {"run_id": ""}, ValueError, ["id of a run"]),
    (("good",), {"input": {}}, TypeError, ["input", "inputs"]),
    (("good",), {"timout": 5}, TypeError, ["timout", "timeout"]),
    (("good",), {"runid": "a"}, TypeError, ["runid", "run_id"]),
    (("good",), {"zzz": 5}, TypeError, ["zzz", "context", "deps"]),
    (("good",), {"context": Context({"a": 1}), "deps": 5}, ValueError, ["deps", "Context("]),
    (("good",), {"context": Context({"a": 1}), "metadata": {}}, ValueError, ["metadata", "Context("]),
]


def call_run(flow, how, arguments, options):
    """Call one of the ways to run a flow, up to its end."""
    if how == "run":
        return flow.run(*arguments, **options)
    if how == "stream":
        return list(flow.stream(*arguments, **options))
    if how == "start":
        return flow.start(*arguments, **options).result(WATCHDOG)

    async def main():
        if how == "arun":
            return await flow.arun(*arguments, **options)
        return [chunk async for chunk in flow.astream(*arguments, **options)]

    return asyncio.run(main())


@pytest.mark.parametrize(("arguments", "options", "kind", "names"), RUN_MISTAKES, ids=str)
def test_run_checks_its_options(arguments, options, kind, names):
    """A wrong start, input or option is refused with one sentence, and nothing runs."""
    with inline() as flow, refused(kind, *names):
        flow.run(*arguments, **options)


@pytest.mark.parametrize("how", ["stream", "start", "arun", "astream"])
def test_every_way_to_run_refuses_with_the_same_words(how):
    """The five ways to run know the same mistakes."""
    with inline() as flow:
        for arguments, options, _, _ in RUN_MISTAKES:
            said = []
            for way in ("run", how):
                try:
                    call_run(flow, way, arguments, options)
                except Exception as error:
                    said.append((type(error), str(error)))
                else:
                    said.append(None)
            assert said[0] == said[1]


@pytest.mark.parametrize("how", ["run", "stream", "start", "arun", "astream"])
def test_a_flow_works_after_every_mistake(how):
    """One flow, all mistakes one after another, and then a good run."""
    with inline() as flow:
        for arguments, options, kind, _ in RUN_MISTAKES:
            with contextlib.suppress(Exception):
                call_run(flow, how, arguments, options)
        assert call_run(flow, how, ("good",), {}) in ({"good": "still works"}, [("good", "still works")])


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize(
    ("buffer", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)]
)
def test_the_buffer_of_a_stream_is_checked(how, buffer, kind):
    """A stream's buffer is a whole number from 1 on, and the refusal starts nothing."""
    with inline() as flow, refused(kind, "buffer", repr(buffer)):
        call_run(flow, how, ("good",), {"buffer": buffer})


@pytest.mark.parametrize("how", ["run", "start", "arun"])
def test_only_streams_have_a_buffer(how):
    """buffer= belongs to stream and astream."""
    with inline() as flow, refused(TypeError, "buffer"):
        call_run(flow, how, ("good",), {"buffer": 5})


def test_arun_and_astream_need_a_loop():
    """Outside of a running event loop they say what to use there."""
    with inline() as flow:
        with refused(RuntimeError, "event loop", "run", "stream"):
            flow.astream()
        coroutine = flow.arun()
        with refused(RuntimeError, "event loop"):
            coroutine.send(None)
        assert flow.run() == {"good": "still works"}


@pytest.mark.parametrize("how", ["run", "stream", "start", "arun", "astream"])
def test_a_run_of_an_empty_flow(how):
    """The error says that there are no tasks, and how to register one."""
    with Flow(name="empty") as flow:
        with refused(FlowError, "empty", "no tasks", "@flow.task"):
            call_run(flow, how, (), {})
        with refused(TaskNotFoundError, "Task a not found"):
            call_run(flow, how, ("a",), {})
        flow.add_task("a", lambda: 1)
        assert flow.run() == {"a": 1}


def test_several_tasks_and_no_start():
    """The error lists the choices; an entry settles it."""
    flow = inline()
    flow.add_task("other", lambda: 1)
    with refused(FlowError, "orders", "good", "other", "entry="):
        flow.run()
    with Flow("inline", entry="b") as flow:
        flow.add_task("a", lambda: 1)
        with refused(TaskNotFoundError, "Task b not found"):
            flow.run()
        flow.add_task("b", lambda: 2)
        assert flow.run() == {"b": 2}


@pytest.mark.parametrize("limit", [-1, math.nan, "1", True], ids=repr)
def test_result_wait_and_get_check_their_timeout(limit):
    """A time to wait is a number of seconds from 0 on; the refusal names whose it is."""
    with inline() as flow:
        run = flow.start(run_id="orders-7")
        for wait in (run.result, run.wait):
            with refused((TypeError, ValueError), "timeout", "orders-7", repr(limit)):
                wait(limit)
        with refused((TypeError, ValueError), "timeout", repr(limit)):
            run.context.get("missing", timeout=limit)
        with refused((TypeError, ValueError), "timeout", repr(limit)):
            State.empty().get_value(timeout=limit)
        assert run.result(0) == {"good": "still works"}


# ---- what a task returns --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: NextTask(5), TypeError, ["5", "name of a task"]),
        (lambda: NextTask(None), TypeError, ["None", "name of a task"]),
        (lambda: NextTask(len), TypeError, ["len", "name of a task"]),
        (lambda: NextTask("a", 5), TypeError, ["a", "int", "payload"]),
        (lambda: NextTask("a", ["x"]), TypeError, ["a", "list"]),
        (lambda: NextTask("a", {5: 1}), TypeError, ["a", "5"]),
        (lambda: NextTask("a", spawn_another="yes"), TypeError, ["spawn_another", "'yes'"]),
        (lambda: NextTask("a", join="yes"), TypeError, ["join", "'yes'"]),
    ],
)
def test_a_next_task_checks_what_it_is_given(make, kind, names):
    """NextTask refuses wrong types where they are written."""
    with refused(kind, *names):
        make()


def endless():
    """Some good requests, then a bad one."""
    yield NextTask("good", spawn_another=True)
    yield "good"


@pytest.mark.parametrize(
    ("give", "kind", "names"),
    [
        (lambda: TaskOutput(1, 5), TypeError, ["next_tasks", "5"]),
        (lambda: TaskOutput(1, "good"), TypeError, ["next_tasks", "'good'"]),
        (lambda: TaskOutput(1, {"good": 1}), TypeError, ["next_tasks", "good"]),
        (lambda: TaskOutput(1, ["good"]), TypeError, ["next_tasks", "'good'"]),
        (lambda: TaskOutput(1, [NextTask("good"), None]), TypeError, ["next_tasks", "None"]),
        (lambda: TaskOutput(1, (NextTask("good"), len)), TypeError, ["next_tasks", "len"]),
        (lambda: TaskOutput(1, endless()), TypeError, ["next_tasks", "'good'"]),
        (lambda: TaskOutput(1, len), TypeError, ["next_tasks", "len"]),
        (lambda: [NextTask("good"), "good"], TypeError, ["next_tasks", "'good'"]),
        (lambda: NextTask("god"), TaskNotFoundError, ["Task god not found", "good"]),
        (lambda: [NextTask("good"), NextTask("nope")], TaskNotFoundError, ["Task nope not found"]),
        (lambda: TaskOutput(1, iter([NextTask("nope")])), TaskNotFoundError, ["Task nope not found"]),
        (lambda: NextTask("needy"), BindingError, ["needy", "value"]),
    ],
)
def test_nonsense_in_next_tasks_fails_the_task_that_returned_it(flow, give, kind, names):
    """The sentence says what was found instead, or what is missing."""
    flow.add_task("nonsense", give)
    flow.add_task("needy", lambda ctx, value: value)
    with refused(kind, *names):
        flow.run("nonsense")


@pytest.mark.parametrize("next_tasks", [["good"], [NextTask("nope")], [NextTask("needy")]], ids=str)
def test_a_refused_request_has_a_note_of_who_asked(next_tasks):
    """The error tells which task run made the list, as the notes of every other failure do."""
    with inline() as flow:
        flow.add_task("asker", lambda: TaskOutput(1, next_tasks))
        flow.add_task("needy", lambda ctx, value: value)
        with pytest.raises((TypeError, FlowError)) as caught:
            flow.run("asker")
        assert any("asker" in note for note in getattr(caught.value, "__notes__", ()))


def test_a_request_that_is_not_first_in_a_returned_list_is_not_lost(flow):
    """A list with a NextTask anywhere in it is a list of requests, and nonsense in it is refused."""
    flow.add_task("mixed", lambda: ["good", NextTask("good")])
    with refused(TypeError, "next_tasks", "'good'"):
        flow.run("mixed")


def test_nothing_of_a_refused_list_is_scheduled(flow):
    """One unknown name in a list, and none of it runs."""
    ran = []
    flow.add_task("asks", lambda: [NextTask("ran"), NextTask("nope")])
    flow.add_task("ran", lambda: ran.append(1))
    with refused(TaskNotFoundError, "Task nope not found"):
        flow.run("asks")
    assert ran == []


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("value", "kind", "names"),
    [
        (TaskOutput(1), TypeError, ["generator", "return"]),
        (NextTask("nope"), TaskNotFoundError, ["Task nope not found"]),
        (NextTask("needy"), BindingError, ["needy", "value"]),
    ],
    ids=repr,
)
def test_nonsense_from_a_generator_task(flow, is_async, value, kind, names):
    """What a generator task must not yield fails it, and its finally runs."""
    ended = []
    flow.add_task("needy", lambda ctx, value: value)

    def sync():
        try:
            yield value
        finally:
            ended.append(1)

    async def later():
        try:
            yield value
        finally:
            ended.append(1)

    flow.add_task("generator", later if is_async else sync)
    with refused(kind, *names):
        flow.run("generator")
    assert ended == [1]


def test_an_iterable_of_next_tasks_that_raises(flow):
    """Its own exception reaches the caller, with a note of the task it belongs to."""

    def broken():
        yield NextTask("good", spawn_another=True)
        raise ZeroDivisionError("broken")

    flow.add_task("asks", lambda: TaskOutput(1, broken()))
    with pytest.raises(ZeroDivisionError, match="broken") as caught:
        flow.run("asks")
    assert any("asks" in note for note in caught.value.__notes__)


def test_a_run_that_goes_on_and_on(executor):
    """max_task_runs ends it, and names the limit and the task."""
    with Flow(executor, max_task_runs=20) as flow:
        flow.add_task("again", lambda: NextTask("again"))
        flow.add_task("good", lambda: 1)
        with refused(TaskRunLimitError, "20", "max_task_runs", "again"):
            flow.run("again")
        assert flow.run("good") == {"good": 1}
        with refused(TaskRunLimitError, "20"):
            flow.run(["good"] * 21)


# ---- the context ----------------------------------------------------------------------------------


WRITES = {
    "set": lambda ctx, key: ctx.set(key, 1),
    "[]=": lambda ctx, key: ctx.__setitem__(key, 1),
    "update": lambda ctx, key: ctx.update(key, str, 1),
    "append": lambda ctx, key: ctx.append(key, 1),
    "set_state": lambda ctx, key: ctx.set_state(key, State(1)),
}
READS = {
    "get": lambda ctx, key: ctx.get(key),
    "get with a default": lambda ctx, key: ctx.get(key, "default"),
    "[]": lambda ctx, key: ctx[key],
    "delete": lambda ctx, key: ctx.delete(key),
    "aget": lambda ctx, key: asyncio.run(ctx.aget(key)),
}


@pytest.mark.parametrize("key", [5, None, ("a",), b"a", ["a"], {}], ids=repr)
@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_keys_that_are_set_are_strings(call, key):
    """Every method that writes says so, and names the key; nothing is changed."""
    ctx = Context({"a": 1})
    with refused(TypeError, repr(key), "string"):
        call(ctx, key)
    assert ctx.to_dict() == {"a": 1}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_keys_that_are_asked_for_are_strings(call):
    """A key that can never be there is a mistake, no missing key."""
    ctx = Context({"a": 1})
    with refused(TypeError, "5", "string"):
        call(ctx, 5)
    with pytest.raises(TypeError):
        call(ctx, ["a"])
    assert ctx.to_dict() == {"a": 1}


@pytest.mark.parametrize(
    ("call", "kind", "names"),
    [
        (lambda ctx: Context(5), TypeError, ["mapping", "int"]),
        (lambda ctx: Context([("a", 1)]), TypeError, ["mapping", "list"]),
        (lambda ctx: Context({5: 1}), TypeError, ["5", "strings"]),
        (lambda ctx: Context(metadata=5), TypeError, ["metadata", "mapping", "int"]),
        (lambda ctx: Context(metadata=["a"]), TypeError, ["metadata", "mapping", "list"]),
        (lambda ctx: ctx.from_dict(None), TypeError, ["mapping", "NoneType"]),
        (lambda ctx: ctx.from_dict([("a", 1)]), TypeError, ["mapping", "list"]),
        (lambda ctx: ctx.from_dict({"b": 1, 5: 1}), TypeError, ["5", "strings"]),
        (lambda ctx: ctx.update("a", 5), TypeError, ["a", "5", "callable"]),
        (lambda ctx: ctx.append("a", 5), TypeError, ["a", "list", "int"]),
        (lambda ctx: ctx.set_state("a", 5), TypeError, ["a", "State", "int"]),
        (lambda ctx: ctx.get("z", timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda ctx: ctx.get("z", timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda ctx: ctx.get("z", 5, timeout=math.nan), ValueError, ["timeout", "nan"]),
        (lambda ctx: asyncio.run(ctx.aget("z", timeout=-1)), ValueError, ["timeout", "-1"]),
        (lambda ctx: ctx.get_stream().put(5), TypeError, ["StreamChunk", "5"]),
        (lambda ctx: ctx.get_stream().put(("a", 5)), TypeError, ["StreamChunk", "('a', 5)"]),
        (lambda ctx: ctx.emit(5), RuntimeError, ["emit", "outside a run"]),
        (lambda ctx: ctx.get_stream().put(StreamChunk("a", 5)), RuntimeError, ["put", "outside a run"]),
    ],
)
def test_the_methods_of_a_context_check_what_they_are_given(call, kind, names):
    """A wrong value gets a sentence and changes nothing."""
    ctx = Context({"a": 1})
    with refused(kind, *names):
        call(ctx)
    assert ctx.to_dict() == {"a": 1}


def test_mistakes_with_the_context_inside_a_task(flow):
    """They fail the task with the same sentences."""
    flow.add_task("set", lambda ctx: ctx.set(5, 1))
    flow.add_task("put", lambda ctx: ctx.get_stream().put(5))
    with refused(TypeError, "5", "strings"):
        flow.run("set")
    with refused(TypeError, "StreamChunk", "5"):
        flow.run("put")


# ---- executors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ThreadExecutor, AsyncioExecutor])
@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-2, ValueError), (1.0, TypeError), ("4", TypeError), (True, TypeError)]
)
def test_executors_check_their_number_of_workers(kind, number, error):
    """max_workers is a whole number from 1 on."""
    with refused(error, "max_workers", repr(number)):
        kind(number)


@pytest.mark.parametrize("thing", [5, None, "thread", ThreadPoolExecutor, InlineExecutor()], ids=repr)
def test_a_pool_executor_wraps_pools_alone(thing):
    """PoolExecutor says what it wraps."""
    with refused(TypeError, "concurrent.futures.Executor"):
        PoolExecutor(thing)


@pytest.mark.parametrize("make", [InlineExecutor, ThreadExecutor, AsyncioExecutor], ids=lambda make: make.__name__)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_on_an_executor_of_ours_that_is_shut_down(make, is_async):
    """A flow says that its executor is closed, and may have tasks elsewhere."""
    executor = make()
    executor.shutdown()
    executor.shutdown()

    async def later():
        return 1

    with Flow(executor) as flow:
        flow.add_task("plain", later if is_async else lambda: 1)
        flow.add_task("elsewhere", lambda: 2, executor="thread")
        if not is_async or make is AsyncioExecutor:
            with refused(FlowClosedError, "executor is closed"):
                flow.run("plain")
        assert flow.run("elsewhere") == {"elsewhere": 2}


def test_a_run_on_a_pool_that_is_shut_down():
    """A pool of the user's that is shut down is an ExecutorLostError, each time."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    for executor in (pool, PoolExecutor(pool)):
        with Flow(executor) as flow:
            flow.add_task("plain", lambda: 1)
            flow.add_task("elsewhere", lambda: 2, executor="thread")
            for how in ("run", "stream", "start", "arun", "astream"):
                with refused(ExecutorLostError, "lost its executor", "shutdown"):
                    call_run(flow, how, ("plain",), {})
            assert flow.run("elsewhere") == {"elsewhere": 2}


def test_a_pool_executor_of_ours_that_is_shut_down():
    """PoolExecutor.shutdown ends that wrapper: later runs say so, and the pool itself goes on."""
    with ThreadPoolExecutor(1) as pool:
        executor = PoolExecutor(pool)
        executor.shutdown()
        with Flow(executor) as flow:
            flow.add_task("plain", lambda: 1)
            with refused(FlowError, "is"):
                flow.run()
        assert pool.submit(int, 5).result() == 5


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_a_pool_that_is_shut_down_during_a_run(cancel_futures):
    """The run ends: with its result when it needs no further worker, else with ExecutorLostError."""
    pool = ThreadPoolExecutor(1)
    with Flow(pool) as flow:

        @flow.task
        def first():
            pool.shutdown(wait=False, cancel_futures=cancel_futures)
            return [NextTask("second", spawn_another=True) for _ in range(3)]

        flow.add_task("second", lambda: 1)
        run = flow.start("first")
        assert run.wait(WATCHDOG)
        if run.status == "SUCCESS":
            assert run.result() == {"second": 1, "second#2": 1, "second#3": 1}
        else:
            with refused(ExecutorLostError, "lost its executor"):
                run.result()


def test_a_pool_with_queued_jobs_that_is_shut_down_during_a_run():
    """Workers that the pool cancels in its queue never come: ExecutorLostError, no hang."""
    pool = ThreadPoolExecutor(1)
    busy, running = threading.Event(), threading.Event()

    def occupy():
        running.set()
        busy.wait(WATCHDOG)

    pool.submit(occupy)
    assert running.wait(WATCHDOG)
    with Flow(pool) as flow:
        flow.add_task("plain", lambda: 1)
        run = flow.start()
        pool.shutdown(wait=False, cancel_futures=True)
        busy.set()
        with refused(ExecutorLostError, "lost its executor"):
            run.result(WATCHDOG)


def test_a_thread_executor_that_is_shut_down_during_a_run():
    """What needs a worker afterwards fails with ExecutorLostError; what runs may end."""
    executor = ThreadExecutor(1)
    shut = threading.Event()
    with Flow(executor) as flow:

        @flow.task
        def first(ctx):
            shut.wait(WATCHDOG)
            return ctx.get("second")  # gives its place back, and another worker would be needed

        flow.add_task("second", lambda: 1)
        run = flow.start(["first", "second"])
        executor.shutdown(wait=False)
        shut.set()
        with refused(ExecutorLostError, "lost its executor", "shut down"):
            run.result(WATCHDOG)


def test_a_loop_that_is_shut_down_during_a_run():
    """Async tasks of a run whose loop has ended: the run ends as well."""
    executor = AsyncioExecutor()
    with Flow(executor) as flow:
        started = threading.Event()

        @flow.task
        async def slow():
            started.set()
            await asyncio.sleep(60)

        run = flow.start()
        assert started.wait(WATCHDOG)
        executor.shutdown()
        assert run.wait(WATCHDOG)
        with pytest.raises(FlowError):
            run.result()


# ---- closing --------------------------------------------------------------------------------------


def test_a_second_close_does_nothing(executor):
    """close is idempotent, also by with, and from several threads."""
    with Flow(executor) as flow:
        flow.add_task("a", lambda: 1)
        flow.run()
        flow.close()
        flow.close()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: flow.close(), range(3)))


@pytest.mark.parametrize("how", ["run", "stream", "start", "arun", "astream"])
def test_a_closed_flow_cannot_be_run(executor, how):
    """Each way to run says that the flow is closed, by name."""
    flow = Flow(executor, name="orders")
    flow.add_task("a", lambda: 1)
    assert flow.run() == {"a": 1}
    flow.close()
    with refused(FlowClosedError, "Flow orders is closed"):
        call_run(flow, how, ("a",), {})


def test_a_closed_flow_takes_no_tasks_but_can_be_read():
    """Registration is refused; names, tasks, context and the functions themselves stay."""
    flow = inline()
    flow.run("good", {"x": 1})
    flow.close()
    for register in (
        lambda: flow.add_task("a", len),
        lambda: flow.task("a")(len),
        lambda: flow.add(Task("a", len)),
        lambda: flow.__enter__(),
    ):
        with refused(FlowClosedError, "Flow orders is closed"):
            register()
    assert list(flow.tasks) == ["good"]
    assert flow["good"]() == "still works"
    assert flow.context["x"] == 1
    flow.cancel_all()


def test_a_run_can_be_read_after_its_flow_was_closed(executor):
    """Results and context of a run that had ended stay."""
    with Flow(executor) as flow:
        flow.add_task("a", lambda: 1)
        run = flow.start()
        run.wait(WATCHDOG)
    assert run.result() == {"a": 1}
    assert run.context["a"] == 1
    run.cancel()
    assert run.result() == {"a": 1}


# ---- failures of a task leave the flow usable -----------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_flow_works_after_a_failure(flow, error):
    """Whatever a task raises, also many times over, the next run is as good as new."""

    def fail():
        raise error

    flow.add_task("bad", fail)
    for _ in range(5):
        with pytest.raises(type(error) if isinstance(error, Exception) else TaskFailedError):
            flow.run(["bad", "bad", "bad"])


def test_an_exception_that_makes_trouble(flow):
    """One that cannot be shown or hashed reaches the caller all the same."""

    class Awkward(Exception):
        __hash__ = None

        def __str__(self):
            raise ValueError("no text")

        def __eq__(self, other):
            raise ValueError("no comparing")

    def fail():
        raise Awkward

    flow.add_task("bad", fail)
    with pytest.raises(Awkward):
        flow.run(["bad", "bad"])


@pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"])
def test_a_base_exception_whose_repr_raises(executor):
    """It becomes a TaskFailedError like every other one, and the run ends (in a process that may hang)."""
    code = f"""
from millstream import Flow, TaskFailedError

class Awkward(BaseException):
    def __repr__(self):
        raise ValueError("no repr")

def fail():
    raise Awkward

flow = Flow({executor!r})
flow.add_task("bad", fail)
try:
    flow.run()
except TaskFailedError as error:
    print(type(error.__cause__).__name__)
flow.add_task("good", lambda: "still works")
print(flow.run("good", timeout=5))
"""
    assert run_snippet(code).splitlines() == ["Awkward", "{'good': 'still works'}"]
