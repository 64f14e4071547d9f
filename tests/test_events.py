"""Events, hooks and fn_hook: what is a hook, what is refused, and what importing them costs."""

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

import millstream
from millstream.events import (
    HOOK_METHODS,
    Event,
    Hook,
    RunEndEvent,
    RunStartEvent,
    TaskCancelEvent,
    TaskCoalescedEvent,
    TaskFailureEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    check_hooks,
    fn_hook,
    listened,
)
from millstream.values import Status

HEAD = {"run_id": "orders-7", "flow": "orders", "at": 1700000000.5}
TASK = HEAD | {"task": "count", "id": "count#2"}

#: Every class of events, with its fields in their order.
EVENTS = {
    RunStartEvent: HEAD,
    RunEndEvent: HEAD | {"status": Status.SUCCESS, "duration": 1.5, "error": None},
    TaskStartEvent: TASK | {"attempt": 1},
    TaskSuccessEvent: TASK | {"attempt": 1, "duration": 0.5, "output": [1, 2]},
    TaskFailureEvent: TASK | {"attempt": 1, "duration": 0.5, "error": None, "will_retry": True, "delay": 2.0},
    TaskRetryEvent: TASK | {"attempt": 2, "delay": 2.0, "error": None},
    TaskSkipEvent: TASK | {"reason": "load was skipped"},
    TaskCancelEvent: TASK | {"attempt": 1, "duration": 0.5},
    TaskCoalescedEvent: TASK | {"kept": {"n": 1}, "dropped": {"n": 2}},
    TaskProgressEvent: TASK | {"attempt": 1, "done": 3, "total": 10},
}
METHODS = tuple(HOOK_METHODS.values())

each_event = pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
each_method = pytest.mark.parametrize("method", METHODS)


class BrokenError(Exception):
    """An exception that nobody can look at."""

    def __str__(self):
        raise SystemExit("no text")

    __repr__ = __str__


# ---- events ---------------------------------------------------------------------------------------


def test_every_event_of_the_union_is_here_and_has_a_method():
    """The union, the table of methods and this file name the same classes."""
    assert set(Event.__args__) == set(HOOK_METHODS) == set(EVENTS)


@each_event
def test_an_event_has_its_fields_in_their_order(kind):
    """An event can be made by position and by name, and its fields say what was given."""
    fields = EVENTS[kind]
    event = kind(*fields.values())
    assert {name: getattr(event, name) for name in fields} == fields
    assert event == kind(**fields)


@each_event
def test_an_event_has_no_other_attributes(kind):
    """An event is slotted, so that it is small and a misspelt field is an error."""
    event = kind(**EVENTS[kind])
    assert not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        event.durration = 1


@each_event
def test_an_event_is_equal_by_its_fields(kind):
    """Events are equal when class and fields are; any other field makes another event."""
    fields = EVENTS[kind]
    for name in fields:
        assert kind(**fields) != kind(**fields | {name: "another"})
    assert kind(**fields) != tuple(fields.values())
    with pytest.raises(TypeError):
        hash(kind(**fields))


def test_events_of_two_classes_are_never_equal():
    """The same fields in two classes are two events."""
    assert TaskStartEvent("r", "f", 1.0, "t", "t", 1) != TaskSkipEvent("r", "f", 1.0, "t", "t", 1)


@each_event
def test_an_event_can_be_copied_and_pickled(kind):
    """An event survives copying and pickling."""
    event = kind(**EVENTS[kind])
    assert copy.copy(event) == event
    assert pickle.loads(pickle.dumps(event)) == event


def test_the_repr_of_an_event_is_its_constructor():
    """An event shows all its fields, in their order."""
    event = TaskStartEvent("orders-7", "orders", 1.5, "count", "count#2", 1)
    assert repr(event) == (
        "TaskStartEvent(run_id='orders-7', flow='orders', at=1.5, task='count', id='count#2', attempt=1)"
    )


def test_an_event_with_what_cannot_be_shown_can_be_shown():
    """A broken repr of an output or an error does not break that of its event."""
    failure = TaskFailureEvent(**EVENTS[TaskFailureEvent] | {"error": BrokenError()})
    assert "error=<a BrokenError that cannot be shown>, will_retry=True" in repr(failure)
    success = TaskSuccessEvent(**EVENTS[TaskSuccessEvent] | {"output": BrokenError()})
    assert repr(success).endswith("output=<a BrokenError that cannot be shown>)")


# ---- hooks ----------------------------------------------------------------------------------------


def test_a_hook_does_nothing_by_itself():
    """Every method of Hook takes its event, and does nothing."""
    hook = Hook()
    assert {getattr(hook, name)(kind(**EVENTS[kind])) for kind, name in HOOK_METHODS.items()} == {None}
    assert listened(hook) == frozenset()


@each_method
def test_every_method_says_when_it_is_called(method):
    """The docstring of each method is one sentence that starts with Called when."""
    said = getattr(Hook, method).__doc__
    assert said.startswith("Called when ")
    assert said.endswith(".")
    assert "\n" not in said


def test_every_public_name_of_hook_is_in_the_table():
    """Hook has no public attribute but the methods of the table, and the two that are called by who does the work."""
    assert {name for name in vars(Hook) if name[0] != "_"} == {*METHODS, "enter_run", "enter_task"}


def test_a_hook_listens_to_what_it_overrides():
    """Only the events for which a hook has a method of its own are made for it, inherited ones too."""

    class Starts(Hook):
        def on_run_start(self, event):
            pass

    class StartsAndSkips(Starts):
        on_task_skip = staticmethod(print)

        @classmethod
        def on_task_retry(cls, event):
            pass

    class Skips(StartsAndSkips):
        on_run_start = Hook.on_run_start
        on_task_retry = Hook.on_task_retry

    assert listened(Starts()) == {RunStartEvent}
    assert listened(StartsAndSkips()) == {RunStartEvent, TaskSkipEvent, TaskRetryEvent}
    assert listened(Skips()) == {TaskSkipEvent}


def test_a_hook_listens_to_a_method_that_the_instance_was_given():
    """A method that was set on the instance counts as its own."""
    hook = Hook()
    hook.on_run_end = print
    assert listened(hook) == {RunEndEvent}


def test_a_hook_may_have_attributes_and_methods_of_its_own():
    """Nothing but names that start with on_ is checked; these may be async too."""

    class Counting(Hook):
        count = 0
        once = None

        async def flush(self):
            pass

        def on_task_start(self, event):
            self.count += 1

    hook = Counting()
    hook.on_task_start(None)
    assert hook.count == 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("on_task_strat", "on_task_start"),
        ("on_taskstart", "on_task_start"),
        ("on_task_failed", "on_task_failure"),
        ("on_task_succes", "on_task_success"),
        ("on_start_run", "on_run_start"),
        ("on_failure", "on_task_failure"),
        ("on_success", "on_task_success"),
        ("on_skip", "on_task_skip"),
        ("on_retry", "on_task_retry"),
    ],
)
def test_a_misspelt_method_is_refused_with_the_nearest(wrong, right):
    """A misspelt method is never ignored in silence: class and fn_hook name the right one."""
    with pytest.raises(
        TypeError, match=rf"^Watch has {wrong}, which is no method of a hook: did you mean {right}\? There are "
    ):
        type("Watch", (Hook,), {wrong: lambda self, event: None})
    with pytest.raises(
        TypeError, match=rf"^fn_hook has {wrong}, which is no method of a hook: did you mean {right}\? There are "
    ):
        fn_hook(**{wrong: print})


def test_a_method_like_none_of_ours_is_refused_with_all():
    """Where nothing is near, the sentence lists what there is."""
    with pytest.raises(TypeError, match=f"there are {', '.join(METHODS)}"):
        type("Watch", (Hook,), {"on_zzz": print})
    with pytest.raises(TypeError, match=f"there are {', '.join(METHODS)}"):
        fn_hook(zzz=print)


def test_methods_of_a_mixin_are_checked():
    """What a hook inherits from another class is checked as its own is."""

    class Mixin:
        def on_task_strat(self, event):
            pass

    with pytest.raises(TypeError, match="Watch has on_task_strat"):
        type("Watch", (Mixin, Hook), {})


@pytest.mark.parametrize("value", [None, 5, "print", property(print)])
def test_a_method_that_cannot_be_called_is_refused(value):
    """A method of a hook is something that can be called."""
    with pytest.raises(TypeError, match=r"^Watch takes a callable as on_run_end, not "):
        type("Watch", (Hook,), {"on_run_end": value})
    with pytest.raises(TypeError, match=r"^fn_hook takes a callable as on_run_end, not "):
        fn_hook(on_run_end=value)


async def coroutine(*args):
    """A callable that a mere call does not run."""


async def async_generator(*args):
    """Another one."""
    yield


def generator(*args):
    """A third one."""
    yield


class AsyncCallable:
    """An object whose call is async."""

    async def __call__(self, *args):
        pass

    async def method(self, *args):
        pass


NOT_RUN_BY_A_CALL = {
    "coroutine": coroutine,
    "async generator": async_generator,
    "generator": generator,
    "partial": functools.partial(coroutine),
    "partial of a partial": functools.partial(functools.partial(coroutine, 1), 2),
    "callable object": AsyncCallable(),
    "partial of a callable object": functools.partial(AsyncCallable()),
    "bound method": AsyncCallable().method,
    "mock": AsyncMock(),
}


@pytest.mark.parametrize("function", NOT_RUN_BY_A_CALL.values(), ids=NOT_RUN_BY_A_CALL)
def test_an_async_hook_is_refused(function):
    """What a call would not run is refused, as a method and as a callable."""
    with pytest.raises(TypeError, match=r"has an async def or a generator as on_task_start, .* make it a plain def"):
        fn_hook(on_task_start=function)
    with pytest.raises(TypeError, match="has an async def or a generator as on_task_start"):
        type("Watch", (Hook,), {"on_task_start": function})


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, functools.partialmethod])
def test_an_async_method_is_refused_however_it_is_wrapped(wrap):
    """No wrapper hides an async def: it is refused at the latest when a flow is given the hook."""
    with pytest.raises(TypeError, match="Wrapped has an async def"):
        check_hooks([type("Wrapped", (Hook,), {"on_task_start": wrap(coroutine)})()])


def test_a_plain_function_that_runs_a_coroutine_is_a_hook():
    """A decorator that makes a plain function of an async one makes a method of it."""

    @functools.wraps(coroutine)
    def plain(event):
        return asyncio.run(coroutine(event))

    assert listened(fn_hook(on_task_start=plain)) == {TaskStartEvent}


def test_arguments_of_a_hook_class_reach_its_other_bases():
    """Hook's check hands class arguments on."""

    class Named:
        def __init_subclass__(cls, label="", **kwargs):
            super().__init_subclass__(**kwargs)
            cls.label = label

    class Watch(Hook, Named, label="watch"):
        pass

    assert Watch.label == "watch"


# ---- fn_hook --------------------------------------------------------------------------------------


@each_method
def test_fn_hook_calls_what_it_was_given(method):
    """A callable given under the name of a method is that method; the others do nothing."""
    seen = []
    hook = fn_hook(**{method: seen.append})
    kind = next(kind for kind, name in HOOK_METHODS.items() if name == method)
    for each in EVENTS:
        getattr(hook, HOOK_METHODS[each])(each(**EVENTS[each]))
    assert seen == [kind(**EVENTS[kind])]
    assert listened(hook) == {kind}


@pytest.mark.parametrize(
    "function",
    [lambda event: None, print, [].append, dict, functools.partial(print, "event"), Mock()],
    ids=["lambda", "builtin", "bound builtin", "class", "partial", "mock"],
)
def test_fn_hook_takes_any_plain_callable(function):
    """Functions, builtins, classes, partials and callable objects all do."""
    assert isinstance(fn_hook(on_task_success=function, on_run_end=function), Hook)


def test_fn_hook_takes_at_least_one_callable():
    """A hook of nothing is refused, with an example."""
    with pytest.raises(TypeError, match=r"at least one callable, such as fn_hook\(on_task_success=print\)"):
        fn_hook()


def test_the_repr_of_a_made_hook_names_its_methods():
    """A hook of callables tells which methods it has."""
    assert repr(fn_hook(on_run_end=print, on_run_start=print)) == "<Hook of on_run_end, on_run_start>"


# ---- check_hooks ----------------------------------------------------------------------------------


def test_hooks_are_returned_in_their_order():
    """Any iterable of hooks is taken, the same hook twice too, and kept in order."""
    first, second = Hook(), fn_hook(on_run_end=print)
    assert check_hooks([second, first, second]) == (second, first, second)
    assert check_hooks(iter([first, second])) == (first, second)
    assert check_hooks(()) == ()


class Watch(Hook):
    """A hook."""


def watch(event):
    """A function that could be a hook."""


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        (fn_hook(on_run_end=print), "put <Hook of on_run_end> in a list."),
        (Watch, "Watch is a class, make one of it with Watch()."),
        ([Watch], "Watch is a class, make one of it with Watch()."),
        (watch, "use fn_hook(on_task_success=...) to make one of watch."),
        ([Hook(), watch], "use fn_hook(on_task_success=...) to make one of watch."),
        (
            [functools.partial(int)],
            "use fn_hook(on_task_success=...) to make one of functools.partial(<class 'int'>).",
        ),
        (None, "None is none; make a subclass of Hook, or use fn_hook(on_task_success=...)."),
        (5, "5 is none; make a subclass of Hook, or use fn_hook(on_task_success=...)."),
        (["log"], "'log' is none; make a subclass of Hook, or use fn_hook(on_task_success=...)."),
        ([BrokenError()], "<a BrokenError that cannot be shown> is none; make a subclass of Hook, or use"),
    ],
)
def test_what_is_no_hook_is_refused_with_the_mend(wrong, mend):
    """A single hook, a class, a function or anything else gives a sentence that says what to write."""
    with pytest.raises(TypeError) as caught:
        check_hooks(wrong)
    assert str(caught.value).startswith(f"Flow(hooks=[...]) takes Hook instances: {mend}")


def test_an_error_of_the_iterable_itself_is_raised_as_it_is():
    """What goes wrong while hooks are listed is not taken for a hook that is none."""

    def hooks():
        yield Hook()
        raise TypeError("of the user's own code")

    with pytest.raises(TypeError, match="of the user's own code"):
        check_hooks(hooks())


def test_methods_that_were_set_later_are_checked():
    """A method set on the instance, or on the class after it was made, is checked when the flow is given it."""
    hook = Watch()
    hook.on_run_end = coroutine
    with pytest.raises(TypeError, match="Watch has an async def or a generator as on_run_end"):
        check_hooks([hook])
    hook.on_run_end = None
    with pytest.raises(TypeError, match="Watch takes a callable as on_run_end, not None"):
        check_hooks([hook])


# ---- importing ------------------------------------------------------------------------------------


def test_events_and_reports_are_cheap_to_import():
    """Importing the two modules loads nothing slow, even where nothing else has loaded it."""
    program = (
        "import sys; from types import ModuleType\n"
        "package = sys.modules['millstream'] = ModuleType('millstream'); package.__path__ = [sys.argv[1]]\n"
        "import millstream.events, millstream.report\n"
        "from millstream.events import Hook, fn_hook\n"
        "class Watch(Hook):\n    def on_task_start(self, event): pass\n"
        "fn_hook(on_task_start=print)\n"
        "print(*sys.modules)"
    )
    arguments = [sys.executable, "-I", "-S", "-W", "error", "-c", program, str(Path(millstream.__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    slow = {"asyncio", "json", "traceback", "inspect", "dataclasses", "difflib", "logging", "threading"}
    assert not loaded & slow
    assert {name for name in loaded if name.startswith("millstream.")} == {
        "millstream.events",
        "millstream.report",
    }
