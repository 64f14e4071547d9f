"""The door of the package: what can be imported, what importing costs, and what its errors promise."""

import ast
import concurrent.futures
import functools
import inspect
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest

import millstream
from millstream import errors, executors
from tests.conftest import run_snippet

PACKAGE = Path(millstream.__file__).parent

#: Plain arguments for the constructor of every error class.
ARGUMENTS = {
    "FlowError": ("a sentence",),
    "TaskNotFoundError": ("nope", ["load", "save"]),
    "BindingError": ("load", "path", ["size"]),
    "CycleError": (["load", "save", "load"],),
    "RouteError": ("decide", "aprove", ["approve", "reject"]),
    "ConfigError": ("edges 'a >>'", "a name is missing after '>>'"),
    "DependencyFailedError": ("save", ["load", "clean#2"]),
    "ContextKeyError": ("x", "load#2"),
    "DeadlockError": ([("a", "'b'"), ("b", "'a'")],),
    "BlockingGetError": ("x",),
    "TaskFailedError": ("load", "SystemExit(3)"),
    "TaskTimeoutError": ("load#2", 1.5),
    "RunTimeoutError": ("orders-7", 2),
    "TaskCancelledError": ("load",),
    "RunCancelledError": ("orders-7",),
    "TaskRunLimitError": (10, "load"),
    "ExecutorLostError": ("orders-7", "it is shut down"),
    "WorkerLostError": ("load#2", "its worker process was killed by SIGKILL"),
    "TransferError": ("load", "its result", "cannot pickle a lock"),
    "StreamError": ("orders-7", "it has a reader already"),
    "CheckpointError": ("a sentence",),
    "UnknownRunError": ("orders-7", "orders"),
    "RunOwnedError": ("orders-7", "process 4711 on build"),
    "CodeChangedError": ("orders-7", ("task load has changed",)),
    "FlowClosedError": ("Flow orders",),
    "StateError": ("load cannot begin",),
    "DuplicateTaskWarning": ("a sentence",),
}
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
]
each_error = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


# ---- names ----------------------------------------------------------------------------------------


def test_public_names():
    """What can be imported from millstream is exactly what we promise."""
    for name in millstream.__all__:
        getattr(millstream, name)  # some are loaded when they are asked for
    visible = {n for n, v in vars(millstream).items() if n[0] != "_" and not isinstance(v, ModuleType)}
    lazy = set(millstream.stores.__all__) - {"Entry"}
    assert visible - {"TYPE_CHECKING", "Any"} == set(millstream.__all__) - lazy
    assert lazy < set(millstream.__all__)


def test_all_is_sorted_and_without_doubles():
    """The list of promises is in order, classes before functions, and names nothing twice."""
    assert millstream.__all__ == sorted(set(millstream.__all__))


def test_a_star_import_gives_the_promised_names():
    """``from millstream import *`` works and gives just these names."""
    names = {}
    exec("from millstream import *", names)
    assert set(names) - {"__builtins__"} == set(millstream.__all__)


def test_every_executor_is_importable_from_both_places():
    """The executor classes of millstream.executors are those of millstream."""
    for name in executors.__all__:
        assert getattr(executors, name) is getattr(millstream, name)


def test_every_user_facing_error_is_exported():
    """Every error class but StateError, which is for our own bugs, can be imported from millstream."""
    assert {kind.__name__ for kind in CLASSES} - {"StateError"} <= set(millstream.__all__)


@pytest.mark.parametrize("name", millstream.__all__)
def test_everything_exported_has_a_docstring(name):
    """Each exported class or function says in its own words what it is."""
    exported = getattr(millstream, name)
    assert vars(exported).get("__doc__") if isinstance(exported, type) else exported.__doc__, name


@pytest.mark.parametrize("name", millstream.__all__)
def test_every_public_method_has_a_docstring(name):
    """Each public method and property that an exported class defines itself has a docstring."""
    exported = getattr(millstream, name)
    if not isinstance(exported, type):
        return
    missing = [
        attribute
        for attribute, value in vars(exported).items()
        if attribute[0] != "_"
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(exported, attribute))
    ]
    assert missing == []


def test_every_module_has_a_docstring():
    """Each module opens with its law."""
    missing = [path.name for path in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert missing == []


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        (millstream.Flow, "__init__ add add_task run stream start arun astream session run_many arun_many override"),
        (millstream.Flow, "subgraph report reset"),
        (millstream.FlowRun, "result wait stream"),
        (millstream.TaskHandle, "result exception wait"),
        (millstream.Context, "__init__ get set aget emit"),
        (millstream.Retry, "__init__ delay"),
        (millstream.Rate, "__init__"),
    ],
)
def test_no_exported_function_takes_more_than_two_arguments_by_position(kind, methods):
    """Options are keyword-only: Flow.run and its twins take two positional arguments, and no more."""
    for method in methods.split():
        parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
        by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        assert len(by_position) <= 2, method


@pytest.mark.parametrize("submit", [millstream.Flow.submit, millstream.Task.submit, millstream.Session.submit])
def test_submit_reserves_two_keywords_and_no_more(submit):
    """Whatever is not ``depends_on`` or ``call_key`` reaches the function that is submitted, also ``fn``."""
    parameters = inspect.signature(submit).parameters.values()
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == ["depends_on", "call_key"]
    assert not [p.name for p in list(parameters)[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_every_hook_method_has_its_event():
    """For each method of Hook the event that it is given can be imported from millstream."""
    methods = [name for name in vars(millstream.Hook) if name.startswith("on_")]
    events = {f"{''.join(map(str.capitalize, name.split('_')[1:]))}Event" for name in methods}
    assert events == {name for name in millstream.__all__ if name.endswith("Event")}


# ---- importing ------------------------------------------------------------------------------------


def test_import_loads_neither_asyncio_nor_anything_outside_the_standard_library():
    """Importing millstream costs no event loop, no processes, no database and no third party."""
    loaded = run_snippet(
        "import sys; before = set(sys.modules); import millstream; print(*sorted(set(sys.modules) - before))"
    ).split()
    tops = {name.partition(".")[0] for name in loaded}
    assert "millstream" in tops
    assert tops - {"millstream"} <= sys.stdlib_module_names
    assert not tops & {"asyncio", "multiprocessing", "sqlite3"}


def test_a_flow_of_threads_never_loads_asyncio():
    """A whole run on threads gets by without asyncio; only async tasks load it."""
    assert run_snippet(
        "import sys, millstream as m\n"
        "with m.Flow() as flow:\n"
        "    flow.add_task('a', lambda: 5)\n"
        "    print(flow.run()['a'], list(flow.stream())[0].value, 'asyncio' in sys.modules)"
    ).split() == ["5", "5", "False"]


def test_import_starts_nothing():
    """Importing millstream starts no thread and configures no logging."""
    assert run_snippet(
        "import logging, threading, millstream; print(threading.active_count(), len(logging.getLogger().handlers))"
    ).split() == ["1", "0"]


@pytest.mark.parametrize(
    "module",
    sorted(
        ".".join(("millstream", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    ),
)
def test_there_are_no_import_cycles(module):
    """No module imports, at run time and at its top, a module that imports it back."""
    graph = imports()
    seen, left = set(), list(graph[module])
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += graph.get(name, ())
    assert module not in seen


@functools.cache
def imports():
    """Return what each module of ours imports, by its name."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("millstream", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[name.removesuffix(".__init__")] = imported_at_the_top(path)
    return graph


def imported_at_the_top(path):
    """Return the modules of ours that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:  # not what stands under TYPE_CHECKING or in functions
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("millstream.")}


@pytest.mark.parametrize("module", ["millstream.engine.run", "millstream.executors", "millstream.errors"])
def test_the_engine_and_executors_do_not_load_the_flow(module):
    """Imports point downwards: nothing below it knows of millstream.flow."""
    files = (PACKAGE / "engine").rglob("*.py") if "engine" in module else (PACKAGE / "executors").rglob("*.py")
    paths = [PACKAGE / "errors.py"] if module.endswith("errors") else list(files)
    assert not any("millstream.flow" in imported_at_the_top(path) for path in paths)


# ---- errors ---------------------------------------------------------------------------------------


@each_error
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_every_error_survives_pickling(kind, protocol):
    """An error that travelled says the same sentence, has the same facts and its notes."""
    error = kind(*ARGUMENTS[kind.__name__])
    error.add_note("a note")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


@each_error
def test_every_error_is_one_sentence(kind):
    """The text of an error is one line that is no repr of its arguments."""
    said = str(kind(*ARGUMENTS[kind.__name__]))
    assert said
    assert "\n" not in said
    assert not said.startswith("(")


@each_error
def test_every_error_is_a_flow_error(kind):
    """One base class catches everything that millstream itself raises."""
    assert issubclass(kind, UserWarning if kind is errors.DuplicateTaskWarning else errors.FlowError)


@each_error
def test_every_error_stands_in_the_tree_of_the_docstring(kind):
    """The module's docstring shows the whole tree."""
    if kind is not errors.DuplicateTaskWarning:
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.TaskTimeoutError, TimeoutError),
        (errors.RunTimeoutError, TimeoutError),
        (errors.TaskCancelledError, concurrent.futures.CancelledError),
        (errors.RunCancelledError, concurrent.futures.CancelledError),
        (errors.TaskNotFoundError, LookupError),
        (errors.ContextKeyError, KeyError),
        (errors.BindingError, TypeError),
        (errors.CycleError, ValueError),
        (errors.RouteError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.UnknownRunError, LookupError),
        (errors.UnknownRunError, errors.CheckpointError),
    ],
)
def test_errors_are_what_python_calls_them_too(kind, base):
    """Who catches Python's own class catches ours."""
    assert issubclass(kind, base)


def test_the_sentences_name_the_value_and_the_mend():
    """Each error says what was wrong and, where there is one, the way out."""
    assert str(errors.TaskNotFoundError("lod", ["load", "save"])) == "Task lod not found. Did you mean load?"
    assert str(errors.TaskNotFoundError("nope", ["load"])).startswith("Task nope not found")
    assert str(errors.ContextKeyError("x")) == "Key x not found in context"
    assert "await ctx.aget('x')" in str(errors.BlockingGetError("x"))
    assert "a waits for 'b'" in str(errors.DeadlockError([("a", "'b'")]))
    assert "load >> save >> load" in str(errors.CycleError(["load", "save", "load"]))
    assert "Did you mean approve?" in str(errors.RouteError("decide", "aprove", ["approve", "reject"]))
    assert "load, clean#2 failed" in str(errors.DependencyFailedError("save", ["load", "clean#2"]))
    assert "on_dep_failure" in str(errors.DependencyFailedError("save", ["load"]))
    assert "orders-7 of orders" in str(errors.UnknownRunError("orders-7", "orders"))
    assert "await its handle" in str(errors.BlockingGetError("add#2", of_call=True))


def test_errors_keep_their_facts_as_attributes():
    """Who handles an error need not read its sentence."""
    assert errors.CycleError(iter(["a", "b", "a"])).path == ("a", "b", "a")
    assert errors.DependencyFailedError("c", iter(["a"])).failed == ("a",)
    route = errors.RouteError("decide", "aprove", iter(["approve"]))
    assert (route.task, route.choice, route.routes) == ("decide", "aprove", ("approve",))
    assert errors.UnknownRunError("orders-7", "orders").run_id == "orders-7"
