"""How a callable's parameters are filled. Compiled once per callable, never inspected per call.

For each parameter, in this order:

1. annotated ``Context`` or named ``ctx`` / ``context``: the context
2. ``inputs``: the inputs mapping, None (or its default) when there are none
3. a key of the inputs: its value
4. the name of a dependency: its output
5. ``upstream``: the outputs of the dependencies by name; for a join, the list of its siblings' outputs
6. ``payload``: what a router sent along (a key of the inputs), else the output of the only dependency,
   or what ``upstream`` is, or the inputs mapping
7. ``item`` and ``index`` of a task that is mapped: the item, which is its payload, too, and its place
8. its default; None for a dependency that did not succeed
9. the first positional parameter without a foreign annotation: the context

``**name`` takes the inputs that no other parameter took; ``*name`` takes nothing, unless it is all
there is: then the context. What cannot be filled is a ``BindingError`` when the task run is asked
for. What a task declares as its ``inputs`` is looked up when it is called, and counts as inputs.
May import: context, config.expressions, task, values, errors.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, cast

from millstream.config.expressions import Path, compile_path, compile_value
from millstream.context import Context
from millstream.errors import BindingError
from millstream.task import RESERVED_PARAMETERS
from millstream.values import Items

Invoke = Callable[[Any, Any], Any]  # (task run, context) -> what the task returns
Filler = Callable[[Any, Any], Any]  # (task run, context) -> the value of one parameter


EMPTY = inspect.Parameter.empty
UNTOLD = object()  # the annotation of a parameter that we can only guess
POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD

#: Annotations that say nothing: a parameter with one may be the context.
NO_FOREIGN = (EMPTY, Any, "Any", "typing.Any", "t.Any", object, "object")


class Binding:
    """A callable whose parameters are known.

    Attributes:
        collects: whether, as a join, it reads the outputs of its siblings.
        takes_context: whether it is given the context at all.
        takes_nothing: whether it is given nothing else.
        is_async: whether it is a coroutine function or an asynchronous generator.
        inferable: required parameters that are dependencies if they bear the name of a task.
        context_at: for submitted calls, the position (None: keyword-only) and the name of the
            parameter that takes the context by its name or annotation; None without one.
    """

    __slots__ = (
        "_compiled", "_demands", "_inputs", "_kinds", "_parameters", "collects", "context_at", "fn", "inferable",
        "is_async", "takes_context", "takes_nothing",
    )  # fmt: skip

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.is_async = is_async(fn)
        parameters = self._parameters = _parameters(fn)
        names = getattr(unwrapped(fn), "__globals__", {})
        kinds = self._kinds = {p.name: _kind(p, names) for p in parameters}
        self.collects = "upstream" in kinds or "payload" in kinds
        self.context_at = _context_at(parameters, kinds)
        _first_is_context(parameters, kinds)
        self.takes_context = "context" in kinds.values()
        self.inferable = tuple(
            p.name
            for p in parameters
            if p.default is EMPTY and "input" in kinds[p.name] and p.name not in RESERVED_PARAMETERS
        )
        self._compiled: Invoke | None = None  # as it is called without dependencies
        self._inputs = frozenset(name for name, kind in kinds.items() if "input" in kind)
        self.takes_nothing = not (self._inputs or self.collects)
        self._demands = any(p.default is EMPTY and kinds[p.name] in ("input", "payload") for p in parameters)

    def is_plain(self, needs: Sequence[str]) -> bool:
        """Whether it takes nothing that the dependencies of a task give, and nothing that inputs must give."""
        return not self._demands and not self.collects and self._inputs.isdisjoint(needs)

    def reads(self, needs: Sequence[str], declared: Iterable[str] = ()) -> bool:
        """Whether it takes anything that its dependencies gave; ``declared`` are filled already."""
        if not declared:
            return self.collects or not self._inputs.isdisjoint(needs)
        taken = {"upstream", "payload"}.intersection(self._kinds)
        return not taken.union(self._inputs.intersection(needs)).issubset(declared)

    def call_shape(self) -> tuple[bool, tuple[int | None, str] | None, dict[str, Any], tuple[str, ...]]:
        """Return what there is to know for calls: whether it is async, where the context goes, defaults, positions."""
        defaults = {p.name: p.default for p in self._parameters if p.default is not EMPTY}
        positional = tuple(p.name for p in self._parameters if p.kind in (POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD))
        return self.is_async, self.context_at, defaults, positional

    def required(
        self, needs: Sequence[str] = (), *, mapped: bool = False, declared: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Return the parameters that inputs or dependencies have to fill; ``declared`` are filled already."""
        given = (*declared, "item", "index", "payload") if mapped else tuple(declared)
        return tuple(
            p.name
            for p in self._parameters
            if p.default is EMPTY
            and p.name not in given
            and (self._kinds[p.name] in ("input", "payload") or (p.name in needs and "input" in self._kinds[p.name]))
        )

    def compile(
        self, call: Callable[..., Any] | None = None, needs: Sequence[str] = (), *, mapped: bool = False
    ) -> Invoke:
        """Return what calls it for a task run with a context.

        Args:
            call: is called in its place, with the same arguments.
            needs: names of the tasks that it depends on.
            mapped: it is called for each item of a map.
        """
        kinds, single = self._kinds, None
        if needs or mapped:
            kinds = {name: _kind_in_flow(name, kind, needs, mapped) for name, kind in kinds.items()}
            single = needs[0] if len(needs) == 1 else None
        if call is not None or (single is not None and "payload" in kinds) or kinds != self._kinds:
            return _compile(call or self.fn, self._parameters, kinds, single)
        if self._compiled is None:  # many tasks may share one function
            self._compiled = _compile(self.fn, self._parameters, kinds, None)
        return self._compiled


def _kind_in_flow(name: str, kind: str, needs: Sequence[str], mapped: bool) -> str:
    """Return by which rule a parameter is filled, once it is known what the task depends on."""
    if mapped and name in ("item", "index"):
        return name
    if mapped and name == "payload":
        return "item"
    return "dependency" if name in needs and "input" in kind else kind


def _context_at(parameters: Sequence[Parameter], kinds: Mapping[str, str]) -> tuple[int | None, str] | None:
    for position, parameter in enumerate(parameters):
        if kinds[parameter.name] == "context" and parameter.annotation is not UNTOLD:
            keyword_only = parameter.kind is KEYWORD_ONLY
            return (None if keyword_only else position), parameter.name
    return None


class Parameter(NamedTuple):
    """One parameter of a function, as ``inspect.Parameter`` tells of it, which takes ten times as long to make."""

    name: str
    kind: Any
    default: Any
    annotation: Any


def _parameters(fn: Callable[..., Any]) -> list[Parameter]:
    code = _plain_code(fn)
    if code is not None:
        return _read_off(cast(types.FunctionType, fn), code)
    try:
        return [Parameter(p.name, p.kind, p.default, p.annotation) for p in _signature(fn).parameters.values()]
    except (TypeError, ValueError):
        # Some builtins tell no signature: then it is the context or nothing.
        return [Parameter("ctx", POSITIONAL_ONLY, EMPTY, UNTOLD)]


def _plain_code(fn: Any) -> types.CodeType | None:
    """Return the code of a function that has nothing special about it, or None."""
    if type(fn) is not types.FunctionType or fn.__dict__:  # what wraps, or has a signature of its own, says so there
        return None
    return None if sys.version_info >= (3, 14) and fn.__annotate__ is not None else fn.__code__


def _read_off(fn: types.FunctionType, code: types.CodeType) -> list[Parameter]:
    """Return the parameters of a plain function, without making a signature."""
    names, positional, keyword_only = code.co_varnames, code.co_argcount, code.co_kwonlyargcount
    annotations = fn.__annotations__ if sys.version_info < (3, 14) else {}
    defaults = fn.__defaults__ or ()
    first_default = positional - len(defaults)
    found = [
        Parameter(
            name,
            POSITIONAL_ONLY if place < code.co_posonlyargcount else POSITIONAL_OR_KEYWORD,
            defaults[place - first_default] if place >= first_default else EMPTY,
            annotations.get(name, EMPTY),
        )
        for place, name in enumerate(names[:positional])
    ]
    end = positional + keyword_only
    if code.co_flags & inspect.CO_VARARGS:
        found.append(Parameter(names[end], VAR_POSITIONAL, EMPTY, annotations.get(names[end], EMPTY)))
        end += 1
    given = fn.__kwdefaults__ or {}
    found += [
        Parameter(name, KEYWORD_ONLY, given.get(name, EMPTY), annotations.get(name, EMPTY))
        for name in names[positional : positional + keyword_only]
    ]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        found.append(Parameter(names[end], VAR_KEYWORD, EMPTY, annotations.get(names[end], EMPTY)))
    return found


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        # Annotations are evaluated when they are read: what cannot be stays a reference.
        from annotationlib import Format

        return inspect.signature(fn, annotation_format=Format.FORWARDREF)
    return inspect.signature(fn)


def _kind(parameter: Parameter, names: Mapping[str, Any]) -> str:
    """Return by which rule a parameter is filled."""
    if parameter.kind is VAR_POSITIONAL:
        return "nothing"
    if parameter.kind is VAR_KEYWORD:
        return "rest"
    if parameter.name in ("ctx", "context") or _names_context(parameter.annotation, names):
        return "context"
    if parameter.name in ("inputs", "upstream", "payload"):
        return parameter.name
    return "input"


def _first_is_context(parameters: Sequence[Parameter], kinds: dict[str, str]) -> None:
    """Rule 7: mark the first positional parameter when nothing else would fill it."""
    positional = (POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD)
    first = next((p for p in parameters if p.kind in (*positional, VAR_POSITIONAL)), None)
    if first is None or first.default is not EMPTY or "context" in kinds.values():
        return
    if first.kind is VAR_POSITIONAL:
        kinds[first.name] = "context"
    elif kinds[first.name] == "input" and first.annotation in NO_FOREIGN:
        kinds[first.name] = "input or context"


# ---- compiling ----------------------------------------------------------------------------------


def _compile(
    fn: Callable[..., Any],
    parameters: Sequence[Parameter],
    kinds: Mapping[str, str],
    single: str | None,
) -> Invoke:
    """Return the shortest function that fills the parameters and calls ``fn``."""
    taken = _taken(parameters, kinds)
    positional: list[Filler] = []
    named: list[tuple[str, Filler]] = []
    rest = False
    for parameter in parameters:
        kind = kinds[parameter.name]
        if kind == "rest":
            rest = True
        elif kind != "nothing":
            filler = _filler(parameter, kind, single)
            if parameter.kind is KEYWORD_ONLY:
                named.append((parameter.name, filler))
            else:
                positional.append(filler)
    if named or rest:
        return _call_named(fn, positional, named, taken if rest else None)
    if not positional:
        return lambda run, ctx: fn()
    if [*kinds.values()] == ["context"]:
        return lambda run, ctx: fn(ctx)
    if len(positional) == 1:
        only = positional[0]
        return lambda run, ctx: fn(only(run, ctx))
    if len(positional) == 2:
        first, second = positional
        return lambda run, ctx: fn(first(run, ctx), second(run, ctx))
    return lambda run, ctx: fn(*[fill(run, ctx) for fill in positional])


def _taken(parameters: Sequence[Parameter], kinds: Mapping[str, str]) -> set[str]:
    """Return the names of inputs that ``**rest`` does not get.

    Those of other parameters; but what is positional-only takes no name, and only an input fills it.
    """
    stars = (VAR_POSITIONAL, VAR_KEYWORD)
    return {
        p.name
        for p in parameters
        if p.kind not in stars and (p.kind is not POSITIONAL_ONLY or "input" in kinds[p.name])
    }


def _call_named(
    fn: Callable[..., Any],
    positional: list[Filler],
    named: list[tuple[str, Filler]],
    taken: set[str] | None,
) -> Invoke:
    """The general case: keyword-only parameters, and ``**rest`` when ``taken`` is given."""

    def invoke(run: Any, ctx: Any) -> Any:
        keywords = {name: fill(run, ctx) for name, fill in named}
        if taken is not None and run.inputs:
            keywords.update((key, value) for key, value in run.inputs.items() if key not in taken)
        return fn(*[fill(run, ctx) for fill in positional], **keywords)

    return invoke


def _filler(parameter: Parameter, kind: str, single: str | None) -> Filler:
    name, default = parameter.name, parameter.default
    if kind == "context":
        return lambda run, ctx: ctx
    if kind == "inputs":
        fallback = None if default is EMPTY else default
        return lambda run, ctx: fallback if run.inputs is None else dict(run.inputs)
    if kind == "upstream":
        return functools.partial(_upstream, name)
    if kind == "payload":
        return functools.partial(_payload, default, single)
    if kind == "item":
        return lambda run, ctx: run.extra.item
    if kind == "index":
        return lambda run, ctx: run.extra.index
    if kind == "dependency":
        return functools.partial(_dependency, name, None if default is EMPTY else default)
    if kind == "input or context":
        return lambda run, ctx: ctx if run.inputs is None else run.inputs.get(name, ctx)
    if default is EMPTY:
        return lambda run, ctx: run.inputs[name]
    return lambda run, ctx: default if run.inputs is None else run.inputs.get(name, default)


def _upstream(name: str, run: Any, ctx: Any) -> Any:
    if run.inputs is not None and name in run.inputs:
        return run.inputs[name]
    if run.upstream is not None:
        return run.upstream
    return {} if run.needs is None else run.needs


def _dependency(name: str, default: Any, run: Any, ctx: Any) -> Any:
    if run.inputs is not None and name in run.inputs:
        return run.inputs[name]
    return default if run.needs is None else run.needs.get(name, default)


def _payload(default: Any, single: str | None, run: Any, ctx: Any) -> Any:
    if run.inputs is not None and "payload" in run.inputs:
        return run.inputs["payload"]
    if run.upstream is not None:
        return run.upstream
    if run.needs is not None:
        return run.needs if single is None else run.needs.get(single, None if default is EMPTY else default)
    if run.inputs is not None:
        return dict(run.inputs)
    return None if default is EMPTY else default


def payload_of(needs: Sequence[str], run: Any) -> Any:
    """Return the payload of a run of a task that depends on ``needs``, whether the task takes it or not."""
    return _payload(EMPTY, needs[0] if len(needs) == 1 else None, run, None)


# ---- annotations --------------------------------------------------------------------------------


def _names_context(annotation: Any, names: Mapping[str, Any]) -> bool:
    """Whether an annotation says ``Context``: as a class, a text, or inside a union."""
    if type(annotation).__name__ == "TypeAliasType":  # made by a ``type`` statement
        annotation = annotation.__value__
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return _text_names_context(annotation, names)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _names_context(typing.get_args(annotation)[0], names)
    if origin in (typing.Union, types.UnionType):
        return any(_names_context(part, names) for part in typing.get_args(annotation))
    return _is_context(origin or annotation)


def _is_context(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Context)


def _text_names_context(text: str, names: Mapping[str, Any]) -> bool:
    """The same for a postponed annotation. It is read, never evaluated, so it can be half broken."""
    try:
        return _node_names_context(ast.parse(text.strip(), mode="eval").body, names)
    except SyntaxError:
        return False


def _node_names_context(node: ast.expr, names: Mapping[str, Any]) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _text_names_context(node.value, names)
    if isinstance(node, ast.BinOp):
        return _node_names_context(node.left, names) or _node_names_context(node.right, names)
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        outer = ast.unparse(node.value).rpartition(".")[2]
        if outer in ("Optional", "Union"):
            return any(_node_names_context(part, names) for part in parts)
        return _node_names_context(parts[0] if outer == "Annotated" else node.value, names)
    found = _look_up(node, names)
    if found is not None:
        return _names_context(found, names) if not isinstance(found, str) else False
    # It cannot be looked up (imported for the type checker alone): go by its last name.
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).rpartition(".")[2] == "Context"


def _look_up(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return what a (dotted) name stands for in a module, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_look_up(node.value, names), node.attr, None)
    return None


def unwrapped(fn: Any) -> Any:
    """Return the function inside partials, callable objects, methods and decorators."""
    if type(fn) is types.FunctionType and not fn.__dict__:
        return fn
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not inspect.isroutine(fn) and not isinstance(fn, type) and not hasattr(fn, "__wrapped__"):
        fn = type(fn).__call__
    return inspect.unwrap(fn)


def is_async(fn: Any) -> bool:
    """Whether calling ``fn`` gives a coroutine or an asynchronous generator.

    A function that only turns out to return one when it is called is awaited as well, by the driver.
    """
    if type(fn) is types.FunctionType and not fn.__dict__:
        return bool(fn.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    return inspect.iscoroutinefunction(called := _called(fn)) or inspect.isasyncgenfunction(called)


def _called(fn: Any) -> Any:
    """Return the function that is called for partials and callable objects, inside no decorator."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) or isinstance(fn, type) else type(fn).__call__


# ---- maps -----------------------------------------------------------------------------------------


def expansion(task: str, over: str, is_async: bool) -> Invoke:
    """Return what gives the items that a task is mapped over: of a path in the run, or of a dependency.

    Raises:
        ConfigError: ``over`` is no path.
    """

    def items(value: Any) -> Items:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise BindingError(task, "for_each", problem=f"{over} is {type(value).__name__}, not a sequence of items.")
        return Items(list(value))

    if not over.startswith("$"):
        return lambda run, ctx: items(_over_dependency(task, over, run))
    path = compile_path(over, f"for_each of task {task}")

    def expand(run: Any, ctx: Any) -> Items:
        try:
            return items(path.find(ctx.get, run.inputs))
        except LookupError as error:
            raise BindingError(task, "for_each", problem=str(error)) from error

    async def expand_async(run: Any, ctx: Any) -> Items:
        if path.root in ("ctx", "payload") and path.key not in ctx:  # waiting for it must not block the loop
            await ctx.aget(path.key)
        return expand(run, ctx)

    return expand_async if is_async else expand


def _over_dependency(task: str, name: str, run: Any) -> Any:
    if run.inputs is not None and name in run.inputs:
        return run.inputs[name]
    if run.needs is not None and name in run.needs:
        return run.needs[name]
    raise BindingError(task, "for_each", problem=f"{name} has no output in this run.")


# ---- declared inputs ------------------------------------------------------------------------------


class Given:
    """A task run as its parameters are filled from it, with the inputs that its task declares."""

    __slots__ = ("extra", "inputs", "needs", "upstream")

    def __init__(self, run: Any, inputs: dict[str, Any]) -> None:
        self.inputs = inputs if run.inputs is None else {**run.inputs, **inputs}
        self.upstream, self.needs, self.extra = run.upstream, run.needs, run.extra


class Newest(Mapping[str, Any]):
    """The newest outputs of tasks: what has waited for them has got these."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getitem__(self, name: str) -> Any:
        return self._context.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self._context.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._context.to_dict())

    def __len__(self) -> int:
        return len(self._context)


class Declared:
    """The inputs that a task declares.

    Args:
        task: its name.
        given: a mapping of names to values, or one text, which is the payload.

    Raises:
        ConfigError: an expression in it is none.
    """

    def __init__(self, task: str, given: str | Mapping[str, Any]) -> None:
        named = {"payload": given} if isinstance(given, str) else given
        where = f"inputs of task {task}"
        self._task = task
        self._values = {name: compile_value(value, f"{where}.{name}") for name, value in named.items()}
        self.reads_joins = any(path.root == "joins" for path in self.paths())

    def paths(self) -> list[Path]:
        """Return all paths that are looked up."""
        return [path for value in self._values.values() for path in value.paths()]

    def filling(self, invoke: Invoke, fn: Callable[..., Any], *, is_async: bool) -> Invoke:
        """Return what calls ``invoke``, which calls ``fn``, with these inputs.

        Args:
            invoke: calls it for a task run with a context.
            fn: the task's function.
            is_async: it is called on an event loop, where waiting for a value must not block.
        """
        if not is_async:
            found = self._found
            return lambda run, ctx: invoke(found(run, ctx), ctx)
        if inspect.isasyncgenfunction(_called(fn)):

            async def steps(run: Any, ctx: Any) -> Any:
                await self._wait(run, ctx)
                async with aclosing(invoke(self._found(run, ctx), ctx)) as generator:
                    async for value in generator:
                        yield value

            return steps

        async def call(run: Any, ctx: Any) -> Any:
            await self._wait(run, ctx)
            return await invoke(self._found(run, ctx), ctx)

        return call

    async def _wait(self, run: Any, ctx: Any) -> None:
        """Wait for the keys of the context that are not there yet."""
        for name, value in self._values.items():
            for key in value.awaited(ctx.get, run.inputs, functools.partial(self._joined, run, ctx)):
                if key not in ctx:
                    try:
                        await ctx.aget(key)
                    except LookupError as error:
                        raise BindingError(self._task, name, problem=str(error)) from error

    def _found(self, run: Any, ctx: Any) -> Given:
        inputs, joined = {}, None
        if self.reads_joins:
            joined = functools.partial(self._joined, run, ctx)
        for name, value in self._values.items():
            try:
                inputs[name] = value.find(ctx.get, run.inputs, joined)
            except LookupError as error:
                raise BindingError(self._task, name, problem=str(error)) from error
        return Given(run, inputs)

    def _joined(self, run: Any, ctx: Any, task: str) -> Any:
        """Return what a task has waited for."""
        if task != self._task:
            return Newest(ctx)
        return run.upstream if run.upstream is not None else run.needs or {}
