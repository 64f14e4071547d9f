"""The tasks of a flow with their edges, and what follows from them: dependencies, graph, how each is called.

A ``Registry`` is changed only by its flow, and never while a run reads it: the flow makes a copy then.
What follows is worked out when it is first asked for, since a task may name another that is registered
later. May import: config, graph, task, binding, executors, errors; not the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from millstream.errors import BindingError, FlowError, TaskNotFoundError
from millstream.graph import Graph, problems
from millstream.task import CONSTANT, Task, name_of

if TYPE_CHECKING:
    from millstream.binding import Binding
    from millstream.config.edges import Edge
    from millstream.executors.base import Executor
    from millstream.executors.owned import Executors
    from millstream.task import TaskName


class Planned:
    """A task as runs call it: what ``engine.run.Planned`` asks for."""

    __slots__ = (
        "adapted", "collects", "executor", "expand", "invoke", "is_async", "max_parallel", "name", "node",
        "on_dep_failure", "payload", "priority", "required", "retry", "routes", "timeout", "uses",
    )  # fmt: skip

    def __init__(
        self,
        task: Task[..., Any],
        binding: Binding,
        executor: Executor,
        *,
        node: int | None = None,
        needs: Sequence[str] = (),
        routes: tuple[str, ...] | None = None,
    ) -> None:
        from millstream.binding import expansion, payload_of

        options = task.options
        mapped = options.for_each is not None
        adapted = executor.adapt(task.name, task.fn, binding.takes_context)
        self.adapted = adapted
        self.name = task.name
        self.executor = executor
        self.is_async = binding.is_async
        self.required = binding.required(needs, mapped=mapped)
        self.collects = binding.collects
        self.invoke = binding.compile(None if adapted is task.fn else adapted, needs, mapped=mapped)
        self.expand = expansion(task.name, options.for_each, self.is_async) if options.for_each is not None else None
        self.payload = payload_of(needs)
        self.node, self.routes = node, routes
        self.timeout, self.retry = options.timeout, options.policy
        self.on_dep_failure, self.max_parallel = options.on_dep_failure, options.max_parallel
        self.uses, self.priority = options.uses, options.priority

    def with_function(self, fn: Callable[..., Any]) -> Planned:
        """Return the same for another closure of the same code."""
        copy = object.__new__(Planned)
        for slot in Planned.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.adapted = self.executor.adapt(self.name, fn, False) if self.executor is not None else fn
        return copy


class Registry:
    """Tasks by name, in the order of registration, and the edges that were added between them."""

    def __init__(
        self,
        flow: str,
        tasks: Mapping[str, Task[..., Any]] = {},  # noqa: B006 - only read
        edges: Sequence[Edge] = (),
        outside: frozenset[str] = frozenset(),
    ) -> None:
        self.flow = flow
        self.tasks = dict(tasks)
        self.edges = list(edges)
        self.outside = outside  #: tasks that a subgraph has left out: they may be chosen, and do not run
        self.in_use = False  #: runs read it: the next change is made to a copy
        self._bindings: dict[str, Binding] = {}
        self._forget()

    def copy(self) -> Registry:
        """Return a registry that can be changed."""
        copy = Registry(self.flow, self.tasks, self.edges, self.outside)
        copy._bindings = dict(self._bindings)
        return copy

    def add(self, task: Task[..., Any]) -> None:
        """Register a task, in place of one of the same name."""
        self.tasks[task.name] = task
        self._bindings.pop(task.name, None)
        self._forget()

    def connect(self, edges: Iterable[Edge]) -> None:
        """Add edges."""
        self.edges += [edge for edge in edges if edge not in self.edges]
        self._forget()

    def _forget(self) -> None:
        """What follows from the tasks is not true any more."""
        self._planned: dict[str, Planned] = {}
        self._names: tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], list[Exception]] | None = None
        self._graph: Graph | None = None
        self._checked = False
        self._parts: dict[tuple[str, ...], tuple[Graph, frozenset[str]]] = {}

    # ---- names ----------------------------------------------------------------------------------

    def binding(self, name: str) -> Binding:
        """Return how the parameters of a task are filled."""
        binding = self._bindings.get(name)
        if binding is None:
            # Reading signatures takes a large module, which is loaded with the first task.
            from millstream.binding import Binding

            binding = self._bindings[name] = Binding(self.tasks[name].fn)
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
            found: list[Exception] = []
            named = self._named_functions()
            needs: dict[str, dict[str, None]] = {}
            routes: dict[str, dict[str, None]] = {}
            for name, task in self.tasks.items():
                needs[name] = dict.fromkeys(self._needs_of(task, named, found))
                if task.options.routes is not None:
                    routes[name] = dict.fromkeys(self._resolve(task, "routes", task.options.routes, named, found))
            for edge in self.edges:
                ends = (edge.source, routes) if edge.route else (edge.target, needs)
                ends[1].setdefault(ends[0], {})[edge.target if edge.route else edge.source] = None
            for name in [*needs, *routes]:
                if name not in self.tasks:
                    needs.pop(name, None)
                    routes.pop(name, None)
                    found.append(TaskNotFoundError(name, self.tasks))
            self._names = (
                {name: tuple(ends) for name, ends in needs.items()},
                {name: tuple(ends) for name, ends in routes.items()},
                found,
            )
        return self._names

    def _needs_of(self, task: Task[..., Any], named: Mapping[int, list[str]], found: list[Exception]) -> Iterable[str]:
        declared = task.options.depends_on
        mapped = task.options.for_each
        over = () if mapped is None or mapped.startswith("$") else (mapped,)
        if declared is not None:
            return (*self._resolve(task, "depends_on", declared, named, found), *over)
        if not over and not self._may_infer(task):
            return ()
        inferable = self.binding(task.name).inferable
        return (*over, *(name for name in inferable if name in self.tasks and name != task.name))

    def _may_infer(self, task: Task[..., Any]) -> bool:
        """Whether any parameter could bear the name of a task: a quick look, for most functions need no other."""
        code = getattr(task.fn, "__code__", None)
        return (
            code is None
            or hasattr(task.fn, "__wrapped__")
            or any(name in self.tasks for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        )

    def _named_functions(self) -> dict[int, list[str]]:
        named: dict[int, list[str]] = {}
        for name, task in self.tasks.items():
            named.setdefault(id(task.fn), []).append(name)
            if task.origin is not task:
                named.setdefault(id(task.origin), []).append(name)
        return named

    def _resolve(
        self,
        task: Task[..., Any],
        option: str,
        given: Iterable[TaskName],
        named: Mapping[int, list[str]],
        found: list[Exception],
    ) -> Iterable[str]:
        """Yield the names of tasks that are given as names, functions or tasks."""
        for each in given:
            if isinstance(each, str):
                yield each
                continue
            names = named.get(id(each)) or (named.get(id(each.origin)) if isinstance(each, Task) else None) or []
            own = each.name if isinstance(each, Task) else name_of(each)
            if len(names) == 1 or own in names:
                yield own if own in names else names[0]
            elif names:
                found.append(
                    FlowError(
                        f"Task {task.name} has in its {option} a function that is registered as {', '.join(names)}: "
                        "give the name instead."
                    )
                )
            else:
                error = TaskNotFoundError(own, self.tasks)
                error.add_note(f"Task {task.name} has a function of that name in its {option}: is it of another flow?")
                found.append(error)

    # ---- checking -------------------------------------------------------------------------------

    def problems(self) -> list[Exception]:
        """Return everything that is wrong with the edges."""
        needs, routes, found = self._resolved()
        inside = {name: [end for end in ends if end not in self.outside] for name, ends in routes.items()}
        return [*found, *problems(needs, inside)]

    def unfilled(self) -> list[Exception]:
        """Return a ``BindingError`` for each parameter of a task with dependencies that nothing fills."""
        found: list[Exception] = []
        targets = {end for ends in self.routes.values() for end in ends}
        for name, needs in self.dependencies.items():
            if not needs or name in targets:
                continue  # inputs may come with a start, or a choice
            mapped = self.tasks[name].options.for_each is not None
            for parameter in self.binding(name).required(needs, mapped=mapped):
                if parameter not in needs and parameter != "payload":
                    found.append(BindingError(name, parameter, needs))
        return found

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
            needs, routes = self.dependencies, self.routes
            if any(needs.values()) or any(routes.values()):
                inside = {name: [end for end in ends if end in self.tasks] for name, ends in routes.items()}
                self._graph = Graph(needs, inside)
            self._checked = True
        return self._graph

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
            graph = self.graph() or Graph(self.dependencies, {})
            numbers = graph.before(graph.number[name] for name in key)
            part = graph.part(numbers), frozenset(graph.names[number] for number in numbers)
            self._parts = {key: part}  # the newest alone: targets may be different every time
        return part

    def planned(self, name: str, executors: Executors) -> Planned | None:
        """Return how runs call a task; found out once. None when there is no such task."""
        planned = self._planned.get(name)
        if planned is None and name in self.tasks:
            task, graph = self.tasks[name], self.graph()
            node = None if graph is None or not graph.has_edges(graph.number[name]) else graph.number[name]
            planned = self._planned[name] = Planned(
                task,
                self.binding(name),
                executors.get(task.options.executor),
                node=node,
                needs=self.dependencies[name],
                routes=self.routes.get(name),
            )
        return planned

    # ---- flows made of this one -----------------------------------------------------------------

    def resolved_task(self, name: str, fn: Callable[..., Any] | None = None) -> Task[..., Any]:
        """Return a task with its edges as names; with ``fn`` in place of its function."""
        task = self.tasks[name]
        options = task.options.to_dict() | {"depends_on": self.dependencies[name], "routes": self.routes.get(name)}
        if fn is not None and getattr(fn, CONSTANT, False):
            options["for_each"] = None  # a constant is the whole output
        return Task(name, task.fn if fn is None else fn, **options)
