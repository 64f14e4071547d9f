"""The tasks of a flow with their edges, and what follows from them: dependencies, graph, how each is called.

A ``Registry`` is changed only by its flow, and never while a run reads it: the flow makes a copy then.
What follows is worked out when it is first asked for, since a task may name another that is registered
later. May import: config, graph, task, binding, executors, errors; of the
engine only the terms of a task (``engine.states``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from millstream.engine.states import RunTerms
from millstream.errors import BindingError, FlowError, TaskNotFoundError
from millstream.graph import Graph, cycles, missing
from millstream.task import CONSTANT, Task, name_of

if TYPE_CHECKING:
    from millstream.binding import Binding, Declared, Invoke
    from millstream.config.edges import Edge
    from millstream.config.expressions import Outputs
    from millstream.diagram import Diagram
    from millstream.executors.base import Executor
    from millstream.executors.owned import Executors
    from millstream.executors.remote.calls import Bound
    from millstream.task import TaskName, TaskOptions


def terms_of(
    task: Task[..., Any], binding: Binding, executor: Executor, needs: Sequence[str], routes: tuple[str, ...] | None
) -> RunTerms:
    """Return how runs call and treat a task of a flow."""
    over = task.for_each
    elsewhere = is_elsewhere(task, executor, binding.is_async)
    is_async = binding.is_async and not elsewhere
    invoke = binding.compile(bound(task.fn) if elsewhere else None, needs, mapped=over is not None)
    names = declared_names(task)
    reads = routes is not None or over is not None or binding.reads(needs, names)
    declared = declared_inputs(task)
    if declared is not None:
        invoke = declared.filling(invoke, task.fn, is_async=is_async)
        reads = reads or declared.reads_joins
    return _terms(
        task,
        executor,
        invoke,
        expand=None if over is None else _expansion(task.name, over, is_async),
        is_async=is_async,
        collects=binding.collects,
        required=binding.required(needs, mapped=over is not None, declared=names),
        reads_upstream=reads,
        routes=routes,
        outputs=outputs_of(task),
    )


def declared_names(task: Task[..., Any]) -> Iterable[str]:
    """Return the parameters that a task's ``inputs`` fill."""
    return () if task.inputs is None else ("payload",) if isinstance(task.inputs, str) else task.inputs


def declared_inputs(task: Task[..., Any]) -> Declared | None:
    """Return the inputs that a task declares, compiled; None without any."""
    if task.inputs is None:
        return None
    from millstream.binding import Declared

    return Declared(task.name, task.inputs)


def outputs_of(task: Task[..., Any]) -> Outputs | None:
    """Return where a task's output goes besides its name, compiled; None without such a place."""
    if task.outputs is None:
        return None
    from millstream.config.expressions import Outputs

    return Outputs(task.outputs, f"outputs of task {task.name}")


def is_elsewhere(task: Task[..., Any], executor: Executor, is_async: bool) -> bool:
    """Whether a task is called in another process.

    Who names an executor of processes for a coroutine function means an event loop over there; else it is
    awaited here.
    """
    return executor.remote and (task.executor is not None or not is_async)


def bound(fn: Callable[..., Any]) -> Callable[..., Bound]:
    """Return what gives a call of ``fn`` that can be made elsewhere."""
    from millstream.executors.remote.calls import Bound

    def bind(*args: Any, **kwargs: Any) -> Bound:
        return Bound(fn, args, kwargs)

    return bind


def terms_of_calls(task: Task[..., Any], executor: Executor, invoke: Invoke, *, is_async: bool) -> RunTerms:
    """Return how submitted calls of one name and the same options are called; what is called comes with each."""
    return _terms(task, executor, invoke, is_async=is_async, reads_upstream=False)


def _terms(
    task: Task[..., Any],
    executor: Executor,
    invoke: Invoke,
    *,
    is_async: bool,
    routes: tuple[str, ...] | None = None,
    expand: Invoke | None = None,
    outputs: Outputs | None = None,
    **facts: Any,
) -> RunTerms:
    facts |= {"is_async": is_async, "on_dep_failure": task.on_dep_failure, "priority": task.priority}
    terms = RunTerms(
        executor,
        invoke,
        routes=routes,
        outputs=outputs if expand is None else None,
        timeout=task.timeout,
        retry=task.retry,
        max_parallel=task.max_parallel,
        uses=task.uses,
        **facts,
    )
    # Of a task that is mapped the gates, the timeout and the retries are for the items, the outputs for the whole.
    return terms if expand is None else RunTerms(executor, expand, each=terms, outputs=outputs, **facts)


def _identity(fn: Any) -> object:
    """Return what is the same for one function only; each access of a method makes a new object."""
    own = getattr(fn, "__self__", None)
    return (id(own), id(fn.__func__)) if own is not None and hasattr(fn, "__func__") else id(fn)


def _anew(error: Exception) -> Exception:
    """Return an error that was not raised before: its traceback would grow."""
    copy = type(error)(*error.args)
    copy.__notes__ = list(getattr(error, "__notes__", ()))
    return copy


def _expansion(task: str, over: str, is_async: bool) -> Invoke:
    from millstream.binding import expansion

    return expansion(task, over, is_async)


class Tasks(Mapping[str, Task[..., Any]]):
    """The tasks of a flow by name, in the order of registration.

    One that is a function with the names of dependencies, and nothing else, is kept as these two, and made
    when somebody looks at it: a graph of thousands of them never needs it.
    """

    def __init__(self, tasks: Mapping[str, Task[..., Any]] = {}) -> None:
        self.number: dict[str, int] = {}  #: the place of each
        self.functions: list[Callable[..., Any]] = []
        self.needs: list[tuple[str, ...] | None] = []  #: what each depends on; None: that is still to be found out
        self.made: list[Task[..., Any] | None] = []
        self._making = threading.Lock()  # one task is one object
        for name, task in tasks.items():
            self.put(name, task.fn, task.needs, task)

    def copy(self) -> Tasks:
        copy = Tasks()
        copy.number = dict(self.number)
        copy.functions, copy.needs, copy.made = list(self.functions), list(self.needs), list(self.made)
        return copy

    def put(
        self, name: str, fn: Callable[..., Any], needs: tuple[str, ...] | None, task: Task[..., Any] | None
    ) -> Callable[..., Any] | None:
        """Put a task there; return the function of the one whose place it takes, if any."""
        number, made = self.number.setdefault(name, len(self.made)), self.made
        if number == len(made):
            self.functions.append(fn)
            self.needs.append(needs)
            made.append(task)
            return None
        old = self.functions[number]
        self.functions[number], self.needs[number], made[number] = fn, needs, task
        return old

    def __getitem__(self, name: str) -> Task[..., Any]:
        number = self.number[name]
        task = self.made[number]
        if task is None:
            with self._making:
                task = self.made[number]
                if task is None:
                    needs = self.needs[number]
                    options: TaskOptions = {} if needs is None else {"depends_on": needs}
                    task = self.made[number] = Task(name, self.functions[number], **options)
        return task

    def __contains__(self, name: object) -> bool:
        return name in self.number

    def __iter__(self) -> Iterator[str]:
        return iter(self.number)

    def __len__(self) -> int:
        return len(self.made)


class Registry:
    """Tasks by name, in the order of registration, and the edges that were added between them."""

    def __init__(
        self,
        flow: str,
        tasks: Mapping[str, Task[..., Any]] = {},
        edges: Iterable[Edge] = (),
        outside: frozenset[str] = frozenset(),
    ) -> None:
        self.flow = flow
        self.tasks = tasks.copy() if isinstance(tasks, Tasks) else Tasks(tasks)
        self.edges = dict.fromkeys(edges)  #: those that ``connect`` added, in order
        self.outside = outside  #: tasks that a subgraph has left out: they may be chosen, and do not run
        self.in_use = False  #: runs read it: the next change is made to a copy
        self._bindings: dict[str, Binding] = {}
        self._newest_binding: Binding | None = None
        self._forget()

    def copy(self) -> Registry:
        """Return a registry that can be changed."""
        copy = Registry(self.flow, self.tasks, self.edges, self.outside)
        copy._bindings = dict(self._bindings)
        return copy

    def add(
        self, name: str, fn: Callable[..., Any], needs: tuple[str, ...] | None, task: Task[..., Any] | None
    ) -> Callable[..., Any] | None:
        """Register a task, see ``Tasks``; return the function of the one whose place it takes, if any."""
        if not self._fresh:
            self._forget()
        return self.tasks.put(name, fn, needs, task)

    def connect(self, edges: Iterable[Edge]) -> None:
        """Add edges."""
        self.edges.update(dict.fromkeys(edges))
        self._forget()

    def _forget(self) -> None:
        """What follows from the tasks is not true any more."""
        self._fresh = True  # nothing was worked out yet
        self._terms: list[RunTerms | None] = []  # of the tasks that runs have asked for
        self._names: tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], list[Exception]] | None = None
        self._functions: dict[object, list[str]] | None = None
        self._graph: Graph | None = None
        self._diagram: Diagram | None = None
        self._checked = False
        self._parts: dict[tuple[str, ...], tuple[Graph, frozenset[str]]] = {}

    # ---- names ----------------------------------------------------------------------------------

    def binding(self, name: str) -> Binding:
        """Return how the parameters of a task are filled."""
        binding, fn = self._bindings.get(name), self.tasks.functions[self.tasks.number[name]]
        if binding is None or binding.fn is not fn:
            # Reading signatures takes a large module, which is loaded with the first task.
            from millstream.binding import Binding

            newest = self._newest_binding  # a function is often registered under many names
            binding = newest if newest is not None and newest.fn is fn else Binding(fn)
            self._bindings[name] = self._newest_binding = binding
        return binding

    @property
    def dependencies(self) -> dict[str, tuple[str, ...]]:
        """What each task depends on: declared, added and inferred."""
        return self._resolved()[0]

    @property
    def routes(self) -> dict[str, tuple[str, ...]]:
        """What the tasks that choose may choose."""
        return self._resolved()[1]

    def _resolved(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], list[Exception]]:
        if self._names is None:
            self._fresh = False
            found: list[Exception] = []
            tasks = self.tasks
            each = [
                self._needs_of(tasks[name], found) if known is None else known
                for name, known in zip(tasks, tasks.needs, strict=True)
            ]
            needs = dict(zip(tasks, each, strict=True))
            routes = {
                task.name: self._resolve(task, "routes", task.routes, found)
                for task in tasks.made
                if task is not None and task.routes is not None
            }
            unknown: set[str] = set()
            for edge in self.edges:
                for name in (edge.source, edge.target):
                    if name not in self.tasks and name not in unknown:
                        unknown.add(name)
                        found.append(TaskNotFoundError(name, self.tasks))
                if edge.source in self.tasks and edge.target in self.tasks:
                    ends, at, to = (
                        (routes, edge.source, edge.target) if edge.route else (needs, edge.target, edge.source)
                    )
                    if to not in ends.get(at, ()):
                        ends[at] = (*ends.get(at, ()), to)
            self._names = needs, routes, found
            self._functions = None
        return self._names

    def _needs_of(self, task: Task[..., Any], found: list[Exception]) -> tuple[str, ...]:
        over = task.for_each
        mapped = () if over is None or over.startswith("$") else (over,)
        if task.depends_on is not None:
            needs = self._resolve(task, "depends_on", task.depends_on, found)
        elif mapped or self._may_infer(task):
            filled = {task.name, *declared_names(task)}
            needs = tuple(n for n in self.binding(task.name).inferable if n in self.tasks and n not in filled)
        else:
            return ()
        return needs if not mapped or over in needs else (*mapped, *needs)

    def _may_infer(self, task: Task[..., Any]) -> bool:
        """Whether any parameter could bear the name of a task: a quick look, for most functions need no other."""
        code = getattr(task.fn, "__code__", None)
        return (
            code is None
            or hasattr(task.fn, "__wrapped__")
            or any(name in self.tasks for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        )

    def _resolve(
        self, task: Task[..., Any], option: str, given: tuple[TaskName, ...], found: list[Exception]
    ) -> tuple[str, ...]:
        """Return the names of tasks that are given as names, functions or tasks, each once."""
        for each in given:
            if type(each) is not str:
                break
        else:
            return tuple(dict.fromkeys(given))  # type: ignore[arg-type]
        names: dict[str, None] = {}
        for each in given:
            name = each if isinstance(each, str) else self._name_of(task, option, each, found)
            if name is not None:
                names[name] = None
        return tuple(names)

    def _name_of(self, task: Task[..., Any], option: str, fn: Any, found: list[Exception]) -> str | None:
        """Return the name under which a function or a task is registered; None after noting what is wrong."""
        names = self.names_of(fn)
        own = fn.name if isinstance(fn, Task) else name_of(fn)
        if own in names:
            return own
        if len(names) == 1:
            return names[0]
        error: Exception = TaskNotFoundError(own, [name for name in self.tasks if name != own])
        if names:
            error = FlowError(
                f"Task {task.name} has in its {option} a function that is registered as {', '.join(names)}: "
                "give the name instead."
            )
        else:
            error.add_note(f"Task {task.name} has a function of that name in its {option}: is it of another flow?")
        found.append(error)
        return None

    def names_of(self, fn: Any) -> list[str]:
        """Return the names under which a function, or a task, is registered."""
        if isinstance(fn, Task):
            return [fn.name] if self.tasks.get(fn.name) is fn.origin else []
        if self._functions is None:
            self._fresh = False
            self._functions = {}
            for name, function in zip(self.tasks, self.tasks.functions, strict=True):
                self._functions.setdefault(_identity(function), []).append(name)
        return self._functions.get(_identity(fn), [])

    # ---- checking -------------------------------------------------------------------------------

    def problems(self) -> list[Exception]:
        """Return everything that is wrong with the edges."""
        if self._graph is None:
            needs, routes, found = self._resolved()
            inside = {name: [end for end in ends if end not in self.outside] for name, ends in routes.items()}
            found = [*map(_anew, found)]
            try:
                graph = Graph(needs, inside)
            except KeyError:  # a name of no task
                found += missing(needs, inside)
                known = {name: tuple(end for end in ends if end in needs) for name, ends in needs.items()}
                graph = Graph(known, {name: [end for end in ends if end in needs] for name, ends in inside.items()})
            found += cycles(graph)
            if found:
                return found
            self._terms = [None] * len(self.tasks)
            self._graph = graph  # last: who finds it looks no further
        return []

    def unfilled(self) -> list[Exception]:
        """Return a ``BindingError`` for each parameter of a task with dependencies that nothing fills."""
        found: list[Exception] = []
        targets = {end for ends in self.routes.values() for end in ends}
        for name, needs in self.dependencies.items():
            if not needs or name in targets:
                continue  # inputs may come with a start, or a choice
            task = self.tasks[name]
            mapped, declared = task.for_each is not None, declared_names(task)
            for parameter in self.binding(name).required(needs, mapped=mapped, declared=declared):
                if parameter not in needs and parameter != "payload":
                    found.append(BindingError(name, parameter, needs))
        return found

    def astray(self) -> list[Exception]:
        """Return an error for each declared input that reads what a task has given that is not there."""
        found: list[Exception] = []
        for task in self.tasks.made:
            inputs = None if task is None else declared_inputs(task)
            if task is None or inputs is None:
                continue
            for path in inputs.paths():
                if path.root in ("payload", "joins") and path.key not in self.tasks:
                    found.append(TaskNotFoundError(path.key, self.tasks))
                elif path.root == "joins" and not path.parts[0].isdigit():
                    parents = self.dependencies[path.key]
                    if path.parts[0] not in parents:
                        problem = f"{path.text}: {path.key} depends on no {path.parts[0]}."
                        found.append(BindingError(task.name, "its inputs", parents, problem))
        return found

    # ---- pictures -------------------------------------------------------------------------------

    def diagram(self, executors: Executors) -> Diagram:
        """Return what a picture of the flow shows."""
        if self._diagram is None:
            self._diagram = self._new_diagram(executors)
        return self._diagram

    def _new_diagram(self, executors: Executors) -> Diagram:
        from millstream.diagram import Diagram, EdgeKind, TaskEdge, TaskNode

        routes = self.routes
        nodes = [
            TaskNode(
                name,
                executors.name_for(task, self.binding(name).is_async),
                is_router=bool(routes.get(name)),
                is_mapped=task.for_each is not None,
                description=task.description,
            )
            for name, task in self.tasks.items()
        ]
        edges = [TaskEdge(need, name) for name, needs in self.dependencies.items() for need in needs]
        edges += [TaskEdge(name, target, EdgeKind.ROUTE) for name, targets in routes.items() for target in targets]
        return Diagram(self.flow, nodes, edges)

    # ---- what runs need -------------------------------------------------------------------------

    def graph(self) -> Graph | None:
        """Return the graph of the edges, None when there are none.

        Raises:
            FlowError, TaskNotFoundError, CycleError: the edges are wrong; several problems in one group.
        """
        if not self._checked:
            found = self.problems()
            if len(found) == 1:
                raise found[0]
            if found:
                raise ExceptionGroup(f"Flow {self.flow} cannot run: {len(found)} problems with its edges", found)
            self._checked = True
        assert self._graph is not None, "without problems there is a graph"
        return self._graph if self._graph.any_edges else None

    def part(self, targets: Sequence[str]) -> tuple[Graph, frozenset[str]]:
        """Return the graph of ``targets`` and all that they depend on, and the names in it.

        Raises:
            TaskNotFoundError: a target is no task of the flow.
        """
        key = tuple(targets)
        part = self._parts.get(key)
        if part is None:
            for name in key:
                if name not in self.tasks:
                    raise TaskNotFoundError(name, self.tasks)
            self.graph()
            graph = self._graph
            assert graph is not None, "without problems there is a graph"
            numbers = graph.before(graph.number[name] for name in key)
            part = graph.part(numbers), frozenset(graph.names[number] for number in numbers)
            self._parts = {key: part}  # the newest alone: targets may be different every time
        return part

    @property
    def known_terms(self) -> Sequence[RunTerms | None]:
        """What was found out already by ``plan``, for each task in order."""
        return self._terms

    def terms(self, name: str, executors: Executors) -> RunTerms | None:
        """Return how runs call and treat a task; found out once. None when there is no such task."""
        self.graph()
        assert self._graph is not None, "without problems there is a graph"
        number = self._graph.number.get(name)
        if number is None:
            return None
        if self._terms[number] is None:
            self.plan((number,), executors)
        return self._terms[number]

    def plan(self, numbers: Iterable[int], executors: Executors) -> None:
        """Find out how runs call these tasks of the graph; those that are alike share what is found out."""
        graph = self._graph
        if graph is None or None not in self._terms:
            return
        needs, routes, _ = self._resolved()
        tasks, terms = self.tasks, self._terms
        alike: dict[int, tuple[Binding, RunTerms]] = {}  # by their function
        for number in numbers:
            if terms[number] is not None:
                continue
            made, fn, name = tasks.made[number], tasks.functions[number], graph.names[number]
            plain = (made is None or made.plain) and not (routes and name in routes)
            known = alike.get(id(fn)) if plain else None
            if known is not None and (known[0].takes_nothing or known[0].is_plain(needs[name])):
                terms[number] = known[1]
            else:
                task = tasks[name]
                executor = executors.of(task)
                binding = self.binding(name)
                new = terms[number] = terms_of(task, binding, executor, needs[name], routes.get(name))
                if plain and binding.is_plain(needs[name]):
                    alike[id(fn)] = binding, new

    # ---- flows made of this one -----------------------------------------------------------------

    def resolved_task(self, name: str, fn: Callable[..., Any] | None = None) -> Task[..., Any]:
        """Return a task with its edges as names; with ``fn`` in place of its function."""
        task = self.tasks[name]
        options = task.given() | {"depends_on": self.dependencies[name], "routes": self.routes.get(name)}
        if fn is not None and getattr(fn, CONSTANT, False):
            options["for_each"] = None  # a constant is the whole output
        return Task(name, task.fn if fn is None else fn, **options)
