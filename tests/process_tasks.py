"""What the tests have called in worker processes, which import it from here by name."""

import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from millstream import Context, Flow, NextTask, StreamChunk, TaskBase, TaskOutput, current_task, task

# ---- values ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    """A value with a class of its own."""

    x: int
    y: int = 0


def identity(value: Any) -> Any:
    return value


def add(a: int, b: int = 10) -> int:
    return a + b


def square(n: int) -> int:
    return n * n


def nothing() -> None:
    pass


def process_id() -> int:
    return os.getpid()


def process_and_thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def everything(ctx: Context, inputs: dict, size: int, colour: str = "red", *, last: Any = None, **rest: Any) -> Any:
    return type(ctx).__mro__[-3:-1] and ctx["size"], sorted(inputs), size, colour, last, rest


def spoil(rows: list) -> list:
    """Change what it was given, as a task should not."""
    rows.append("spoilt")
    return rows


class Shop:
    """An object whose methods are tasks."""

    def __init__(self, price: int) -> None:
        self.price = price

    def sell(self, n: int) -> int:
        return self.price * n

    def __call__(self, n: int) -> int:
        return self.price + n


class Holder:
    """An object that cannot be pickled, for what it has."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def work(self) -> None:
        pass


triple = functools.partial(square, 3)


@task(timeout=30.0, retries=1)
def cube(x: int) -> int:
    return x**3


@task("cube-there", executor="process")
def cube_there(x: int) -> tuple[int, int]:
    return x**3, os.getpid()


class Doubled(TaskBase):
    """A task written as a class."""

    name = "doubled"

    def run(self, x: int) -> int:
        return 2 * x


doubled = Doubled()


# ---- what runs next -------------------------------------------------------------------------------


def fan_out(n: int, name: str = "square") -> list[NextTask]:
    return [NextTask(name, {"n": i}, spawn_another=True) for i in range(n)]


def fan_out_and_join(n: int) -> list[NextTask]:
    return [*fan_out(n), NextTask("total", join=True)]


def total(upstream: list[int]) -> int:
    return sum(upstream)


def sum_of(first: int, second: int) -> int:
    return first + second


def listed(upstream: dict) -> dict:
    return dict(upstream)


def ask_nobody() -> list[NextTask]:
    return [NextTask("square", {"n": 1}), NextTask("nobody")]


def choose(number: int) -> str:
    return "even" if number % 2 == 0 else "odd"


def choose_with(number: int) -> dict[str, int]:
    return {"even": number} if number % 2 == 0 else {"odd": number, "even": -number}


def payload_of(payload: Any) -> Any:
    return payload


def item_and_index(item: int, index: int) -> tuple[int, int, int]:
    if item < 0:
        raise ValueError(f"item {item} is below zero")
    return item, index, os.getpid()


def count_down(n: int) -> Any:
    return NextTask("count_down", {"n": n - 1}) if n else "landed"


def bake(loaves: int) -> Any:
    for number in range(loaves):
        yield f"loaf {number}"
    return "done"


def bake_one_at_a_time(ctx: Context) -> Any:
    """Go on only when the reader has had the last loaf."""
    for number in range(3):
        yield number
        ctx.get(f"eaten-{number}", external=True)
    return "done"


def yield_requests(n: int) -> Any:
    yield "before"
    for i in range(n):
        yield NextTask("square", {"n": i}, spawn_another=True)
    yield "after"
    return n


def yield_and_wait(ctx: Context) -> Any:
    """Get what was asked for before the end."""
    yield NextTask("square", {"n": 7})
    return ctx.get("square")


def yield_output() -> Any:
    yield TaskOutput(1)


def yield_forever(ctx: Context) -> Any:
    ctx["pid"] = os.getpid()
    number = 0
    while True:
        yield number
        number += 1


def from_iterator(n: int) -> TaskOutput:
    return TaskOutput("asked", (NextTask("square", {"n": i}, spawn_another=True) for i in range(n)))


def from_empty_iterator() -> TaskOutput:
    return TaskOutput("none", iter(()))


def from_failing_iterator() -> TaskOutput:
    def requests() -> Any:
        yield NextTask("square", {"n": 1}, spawn_another=True)
        raise LookupError("no more to ask for")

    return TaskOutput("asked", requests())


def from_endless_iterator(ctx: Context) -> TaskOutput:
    def requests() -> Any:
        ctx["pid"] = os.getpid()
        n = 0
        while True:
            yield NextTask("square", {"n": n}, spawn_another=True)
            n += 1

    return TaskOutput("asked", requests())


# ---- coroutines -----------------------------------------------------------------------------------


async def coroutine(n: int) -> tuple[int, int]:
    await asyncio.sleep(0)
    return n, os.getpid()


async def coroutines_at_once() -> list[int]:
    async def one(n: int) -> int:
        await asyncio.sleep(0.001)
        return n

    return await asyncio.gather(*(one(n) for n in range(5)))


async def async_bake(loaves: int) -> Any:
    for number in range(loaves):
        await asyncio.sleep(0)
        yield f"loaf {number}"


async def await_value(ctx: Context) -> Any:
    return await ctx.aget("producer"), os.getpid()


async def get_in_coroutine(ctx: Context) -> Any:
    return ctx.get("producer")


async def wait_forever(ctx: Context) -> None:
    ctx["pid"] = os.getpid()
    await asyncio.sleep(60)


# ---- the context ----------------------------------------------------------------------------------


def use_context(ctx: Context) -> dict:
    ctx.set("a", 1)
    ctx["b"] = [1, 2]
    ctx.append("b", 3)
    ctx.append("c", "first")
    ctx["gone"] = 0
    ctx.delete("gone")
    seen = {
        "get": ctx.get("a"),
        "default": ctx.get("nowhere", 5),
        "none": ctx.get("nowhere", None),
        "in": ("a" in ctx, "gone" in ctx, 5 in ctx),
        "len": len(ctx),
        "iter": sorted(ctx),
        "update": ctx.update("a", lambda a: a + 1),
        "update default": ctx.update("d", lambda d: d + 1, default=10),
    }
    del ctx["b"]
    ctx.from_dict({"e": 5, "f": 6})
    return seen | {"to_dict": ctx.to_dict()}


def read_facts(ctx: Context) -> tuple[Any, dict]:
    return ctx.deps, dict(ctx.metadata)


def change_metadata(ctx: Context) -> None:
    ctx.metadata["batch"] = 5  # type: ignore[index]


def set_state(ctx: Context) -> Any:
    from millstream import State

    cell = State(5)
    ctx.set_state("cell", cell)
    ctx.update("cell", lambda value: value + 1)
    return cell.get_value()


def emit_some(ctx: Context) -> str:
    ctx.emit("one")
    ctx.get_stream().put(StreamChunk("somebody", "two"))
    return "three"


def producer(ctx: Context) -> int:
    return 42


def consumer(ctx: Context) -> Any:
    return ctx.get("producer")


def get_key(ctx: Context, key: str) -> Any:
    return ctx.get(key)


def get_with(ctx: Context, options: dict) -> Any:
    return ctx.get("nowhere", **options)


def get_external(ctx: Context) -> Any:
    ctx["waits"] = True
    return ctx.get("outside", external=True)


def bad_key(ctx: Context) -> None:
    ctx.set(5, 1)  # type: ignore[arg-type]


def append_to_number(ctx: Context) -> None:
    ctx["n"] = 1
    ctx.append("n", 2)


def delete_missing(ctx: Context) -> None:
    ctx.delete("nowhere")


def hen(ctx: Context) -> Any:
    return ctx.get("egg")


def egg(ctx: Context) -> Any:
    return ctx.get("hen")


def increment(ctx: Context, n: int) -> None:
    for _ in range(n):
        ctx.update("count", lambda so_far: so_far + 1, default=0)
        ctx.append("all", n)


def count_lists(ctx: Context) -> int:
    """Update a value that is never the same object twice."""
    return len(ctx.update("rows", lambda rows: [*rows, os.getpid()], default=[]))


def update_missing(ctx: Context) -> Any:
    return ctx.update("producer", lambda value: value + 1)


def failing_update(ctx: Context) -> None:
    ctx["n"] = 1
    ctx.update("n", lambda n: n / 0)


def keep_context(ctx: Context) -> dict:
    """Give the context to a thread of its own."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: ctx.append("rows", n), range(20)))
    return {"rows": sorted(ctx["rows"])}


def use_inner(ctx: Context, box: dict) -> Any:
    """Use a context that came inside of a value."""
    box["ctx"].set("inner", 7)
    return ctx["inner"], box["ctx"].get("size", None)


def late_setter(ctx: Context) -> None:
    """Set a value when the attempt is long over."""
    ctx["pid"] = os.getpid()

    def later() -> None:
        while "over" not in late:
            time.sleep(0.001)
        with contextlib.suppress(BaseException):
            ctx.set("late", 1)
        late["tried"] = True

    late.clear()
    threading.Thread(target=later, daemon=True).start()


late: dict[str, Any] = {}


def end_late_setter() -> bool:
    late["over"] = True
    limit = time.monotonic() + 5
    while "tried" not in late and time.monotonic() < limit:
        time.sleep(0.001)
    return "tried" in late


# ---- current_task() -------------------------------------------------------------------------------


def about_me(n: int = 0) -> dict:
    me = current_task()
    return {
        "name": me.name,
        "id": me.id,
        "key": me.key,
        "run_id": me.run_id,
        "attempt": me.attempt,
        "deadline": me.deadline,
        "left": me.time_remaining(),
        "cancelled": me.cancelled,
    }


def about_nobody() -> tuple[str, str]:
    """Ask in a thread that has not the context variables of the task."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: current_task().name).result(), current_task().name


def log_some(level: int = logging.WARNING) -> None:
    current_task().logger.log(level, "half %s", "done")
    logging.getLogger("shop").log(level, "sold %d", 3)
    try:
        raise ValueError("no tea")
    except ValueError:
        logging.getLogger("shop").exception("failed with %s", Holder())


def submit_one() -> Any:
    return cube.submit(2)


def until_told(ctx: Context) -> str:
    ctx["pid"] = os.getpid()
    while not current_task().cancelled:
        time.sleep(0.001)
    return "told"


def raise_when_told(ctx: Context) -> None:
    ctx["pid"] = os.getpid()
    while True:
        current_task().raise_if_cancelled()
        time.sleep(0.001)


def nested_run(n: int) -> Any:
    """Run a flow of its own in the worker process."""
    with Flow() as inner:
        inner.add_task("square", square)
        return inner.run("square", {"n": n})


def nested_process_run(n: int) -> Any:
    with Flow("process", max_workers=1) as inner:
        inner.add_task("square", square)
        inner.add_task("pid", process_id)
        return inner.run("square", {"n": n}), inner.run("pid")["pid"] != os.getpid()


def nested_session(n: int) -> Any:
    with Flow() as inner, inner.session() as session:
        return session.submit(square, n).result()


# ---- trouble --------------------------------------------------------------------------------------


def sleep_forever(ctx: Context) -> None:
    ctx["pid"] = os.getpid()
    time.sleep(60)


def spin_forever(ctx: Context) -> None:
    """Neither sleep nor ask whether to stop."""
    ctx["pid"] = os.getpid()
    while True:
        sum(range(1000))


def stubborn(ctx: Context) -> None:
    """Refuse to be told anything."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # a spare thread
            signal.signal(number, signal.SIG_IGN)
    ctx["pid"] = os.getpid()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


def wait_and_forever(ctx: Context) -> None:
    ctx["pid"] = os.getpid()
    ctx.get("nothing", external=True)


def die(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "crash":
        faulthandler = sys.modules.get("faulthandler")
        if faulthandler is not None:
            faulthandler.disable()  # it would print its stack
        ctypes.string_at(0)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def die_at(n: int, deadly: int) -> int:
    if n == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def die_first(folder: str) -> int:
    """Die in the first attempt only."""
    me = current_task()
    if me.attempt == 1:
        os._exit(1)
    return me.attempt


def die_while_waiting(ctx: Context) -> None:
    threading.Timer(0.05, os._exit, (5,)).start()
    ctx.get("nothing", external=True)


def die_while_yielding() -> Any:
    yield 1
    yield 2
    os._exit(6)


def fork_child(folder: str) -> None:
    """Leave a child behind, which has copies of all files of its parent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of fork in a process with threads
        child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    open(os.path.join(folder, f"child-{child}"), "w").close()


def fork_and_die(folder: str) -> None:
    fork_child(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_sleep(folder: str) -> None:
    fork_child(folder)
    time.sleep(60)


def exit_by(what: str) -> None:
    if what == "SystemExit":
        sys.exit("enough")
    if what == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if what == "GeneratorExit":
        raise GeneratorExit
    if what == "CancelledError":
        raise asyncio.CancelledError
    if what == "StopIteration":
        raise StopIteration(5)
    raise BaseException(what)


async def async_exit_by(what: str) -> None:
    await asyncio.sleep(0)
    exit_by(what)


def flaky(fails: int) -> int:
    if current_task().attempt <= fails:
        raise ConnectionError(f"attempt {current_task().attempt}")
    return current_task().attempt


def slow_first(ctx: Context) -> int:
    """Take too long in the first attempt only."""
    ctx.append("pids", os.getpid())
    if current_task().attempt == 1:
        time.sleep(60)
    return current_task().attempt


def out_of_memory() -> None:
    raise MemoryError("not really")


def own_timeout() -> None:
    raise TimeoutError("the server was slow")


def overlong_recursion() -> None:
    overlong_recursion()


# ---- exceptions -----------------------------------------------------------------------------------


class TwoArguments(Exception):
    """Cannot be made of its ``args``, as many exceptions of other libraries."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class WithLock(Exception):
    """Has something that cannot be pickled beside what it says."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()
        self.code = 7


class LockArgument(Exception):
    """Consists of something that cannot be pickled."""


class ManyErrors(ExceptionGroup):
    """A group of a class of its own."""

    def derive(self, excs: Any) -> "ManyErrors":
        return ManyErrors(self.message, excs)


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot even be printed")

    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def fail(how: str) -> None:
    if how == "two":
        raise TwoArguments(404, "no such page")
    if how == "keyword":
        raise KeywordOnly(code=5)
    if how == "lock":
        raise WithLock("locked")
    if how == "lock argument":
        raise LockArgument("locked", threading.Lock())
    if how == "local":

        class Local(Exception):
            pass

        raise Local("nobody can import me")
    if how == "os":
        open("/nowhere/at/all")  # noqa: SIM115
    if how == "unicode":
        b"\xff".decode()
    if how == "key":
        raise KeyError("colour")
    if how == "note":
        error = ValueError("noted")
        error.add_note("look at line 3")
        raise error
    if how == "bad str":
        raise BadStr
    raise ValueError(how)


def fail_deep() -> None:
    """Leave lines of several functions."""

    def inner() -> None:
        raise ValueError("from the depth")  # the line to see

    inner()


def fail_from() -> None:
    try:
        fail("two")
    except TwoArguments as error:
        raise LookupError("nothing found") from error


def fail_while() -> None:
    try:
        fail("key")
    except KeyError:
        raise LookupError("nothing found")


def fail_from_none() -> None:
    try:
        fail("key")
    except KeyError:
        raise LookupError("nothing found") from None


def fail_in_group(kind: type = ExceptionGroup) -> None:
    errors: list[Exception] = []
    for how in ("two", "key"):
        try:
            fail(how)
        except Exception as error:
            errors.append(error)
    errors.append(ExceptionGroup("inner", [ValueError("deep"), WithLock("locked")]))
    group = kind("three problems", errors)
    group.add_note("a note of the group")
    raise group


def fail_with_endless_chain() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def fail_with_branching_chain(levels: int) -> None:
    """Each two exceptions come from both of the level below."""
    one, other = ValueError("first"), KeyError("first")
    for level in range(levels):
        next_one, next_other = ValueError("the last"), KeyError(level)
        for error in (next_one, next_other):
            error.__cause__, error.__context__ = one, other
        one, other = next_one, next_other
    raise one


def return_exception(kind: type) -> Exception:
    return kind(1, "a value") if kind is TwoArguments else kind("a value")


# ---- what cannot travel ---------------------------------------------------------------------------


def return_lock() -> Any:
    return {"rows": [1, (2, threading.Lock())]}


def return_function() -> Any:
    return lambda: 1


def yield_lock() -> Any:
    yield 1
    yield [threading.Lock()]


def set_lock(ctx: Context) -> None:
    ctx.set("box", {"lock": threading.Lock()})


def append_lock(ctx: Context) -> None:
    ctx.append("box", threading.Lock())


def update_to_lock(ctx: Context) -> None:
    ctx.update("box", lambda _: threading.Lock(), default=None)


def emit_lock(ctx: Context) -> None:
    ctx.emit(threading.Lock())


def request_lock() -> Any:
    return NextTask("identity", {"value": threading.Lock()})


def yield_request_of_lock() -> Any:
    yield NextTask("identity", {"value": threading.Lock()})


def survive_lock(ctx: Context) -> str:
    """Go on after a value that could not travel."""
    try:
        ctx.set("box", threading.Lock())
    except TypeError as error:
        return type(error).__name__
    return "nothing happened"


def to_dict_of(ctx: Context) -> dict:
    return ctx.to_dict()


def deps_of(ctx: Context) -> Any:
    return ctx.deps


class OnlyHere:
    """Can be made again in the process that pickled it, and nowhere else."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return only_in, (self.pid,)


class OnlyHereError(Exception):
    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


def only_in(pid: int) -> Any:
    if os.getpid() != pid:
        raise RuntimeError("it belongs to another process")
    return OnlyHere()


def return_only_here() -> Any:
    return OnlyHere()


def raise_only_here() -> None:
    raise OnlyHereError


def set_only_here(ctx: Context) -> None:
    ctx["box"] = OnlyHere()


def emit_only_here(ctx: Context) -> str:
    ctx.emit(OnlyHere())
    return "done"


# ---- large values ---------------------------------------------------------------------------------


class Block:
    """A value with a buffer that travels beside its pickle, as the arrays of numpy do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        import pickle

        return Block, (pickle.PickleBuffer(self.data),)


def length_and_last(value: Any) -> tuple[str, int, int]:
    data = getattr(value, "data", value)
    return type(value).__name__, len(data), data[-1]


def make(kind: str, size: int) -> Any:
    data = bytes(range(256)) * (size // 256)
    return {"bytes": lambda: data, "bytearray": lambda: bytearray(data), "block": lambda: Block(data)}[kind]()


def make_text(size: int) -> list[str]:
    return ["x" * size, "y" * size]


def large_to_context(ctx: Context, size: int) -> int:
    ctx["large"] = bytes(size)
    ctx.emit(bytearray(size))
    return len(ctx["large"])


def yield_large(size: int, n: int) -> Any:
    for i in range(n):
        yield bytes([i]) * size


# ---- processes ------------------------------------------------------------------------------------

greeting = "nobody called the initializer"


def greet(text: str) -> None:
    global greeting
    greeting = text


def greeted() -> str:
    return greeting


def bad_initializer(text: str) -> None:
    raise ValueError(f"cannot begin: {text}")


def deadly_initializer() -> None:
    os._exit(9)


def exiting_initializer() -> None:
    sys.exit("no")


def record(folder: str, name: str) -> None:
    """Leave a file as the sign of having been here."""
    with open(os.path.join(folder, name), "x") as file:
        file.write(str(os.getpid()))


def here_until(folder: str, n: int = 0) -> int:
    """Say that it has begun, and end when it is told to by a file."""
    record(folder, f"begun-{n}")
    limit = time.monotonic() + 20
    while not os.path.exists(os.path.join(folder, "end")):
        assert time.monotonic() < limit, "nobody told it to end"
        time.sleep(0.002)
    return os.getpid()


def first_waits(folder: str, n: int) -> int:
    """The one with number 0 is long, the others are short."""
    if n == 0:
        here_until(folder)
    return n


def meet(folder: str, n: int, several: int) -> int:
    """Wait until several are here at the same time."""
    record(folder, f"met-{n}")
    limit = time.monotonic() + 20
    while len(os.listdir(folder)) < several:
        assert time.monotonic() < limit, "they do not meet"
        time.sleep(0.001)
    return os.getpid()


def recorded_square(n: int, log: str) -> int:
    """Work for about a millisecond, and write down that it was done."""
    time.sleep(0.001)
    with open(log, "ab", buffering=0) as file:
        file.write(b"%d\n" % n)
    return n * n


def spin(seconds: float, n: int = 0) -> int:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return n


def working_folder() -> str:
    return os.getcwd()


def square_item(item: int) -> int:
    return item * item


def link(ctx: Context, n: int) -> int:
    value = 0 if n == 29 else ctx.get(f"value-{n + 1}")
    ctx.set(f"value-{n}", value + 1)
    return value


def thread_count() -> tuple[int, int]:
    return os.getpid(), threading.active_count()


def count_ahead(ctx: Context, size: int, most: int) -> Any:
    """Yield much, and say now and then how much."""
    for number in range(most):
        yield bytes(size)
        if number % 500 == 0:
            ctx["given"] = number
    ctx["given"] = most


def consumer_of_lock(ctx: Context) -> Any:
    return ctx.get("lock")


def meet_and_fail(folder: str) -> None:
    meet(folder, current_task().name, 2)
    raise ValueError(f"{current_task().name} fails")


def maybe_wait(ctx: Context, n: int, waiting: int) -> int:
    """Wait for the last one, if this one is to."""
    if n == waiting:
        assert ctx.get("last") == 49
    if n == 49:
        ctx["last"] = 49
    return n


def alone(folder: str, n: int) -> int:
    """Find out whether another one is here."""
    path = os.path.join(folder, "occupied")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    time.sleep(0.001)
    os.unlink(path)
    return n


def fail_at(n: int, bad: int) -> int:
    if n == bad:
        raise ValueError(f"number {n} is bad")
    return n


def tells_and_waits(ctx):
    """Say how far it has got, and wait for somebody who has heard it."""
    current_task().progress(3, 10)
    return ctx.get("go", external=True)
