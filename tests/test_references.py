"""Every example of the documents of tedx-flow and LiteFlow, in their order, with the results they state.

Only the imports differ (and what an example leaves undefined, and how long a slow task takes). Each document runs
200 times in a row, on pools of one, two and four workers.
"""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import Context, DuplicateTaskWarning, Flow, NextTask, State, StreamChunk, TaskOutput
from millstream.executors import PoolExecutor
from tests.conftest import WATCHDOG

TIMES = 200

on_pools = pytest.mark.parametrize("workers", [1, 2, 4])


# ---- tedx-flow --------------------------------------------------------------------------------------


def quick_start(executor):
    def fetch_data(ctx: Context) -> TaskOutput:
        data = {"items": [1, 2, 3, 4, 5]}
        return TaskOutput(output=data, next_tasks=[NextTask("process")])

    def process(ctx: Context) -> TaskOutput:
        data = ctx.get("fetch_data")
        result = sum(data["items"])
        return TaskOutput(output=result)

    flow = Flow(executor)
    flow.add_task("fetch_data", fetch_data)
    flow.add_task("process", process)
    results = flow.run("fetch_data")

    assert results == {"process": 15}


def a_task(flow):
    def do_something(previous, batch_size):
        return previous * batch_size

    def my_task(ctx: Context, inputs: dict = None) -> TaskOutput:  # noqa: RUF013  # as the document writes it
        # Access previous task outputs
        previous_result = ctx.get("previous_task")
        # Access inputs passed via NextTask
        batch_size = inputs.get("batch_size", 10) if inputs else 10
        # Execute business logic
        result = do_something(previous_result, batch_size)
        # Return output and schedule next tasks
        return TaskOutput(
            output=result,
            next_tasks=[
                NextTask("next_task", inputs={"processed": True}),
                NextTask("parallel_task"),  # Runs in parallel
            ],
        )

    flow.add_task("my_task", my_task)
    flow.add_task("previous_task", lambda ctx: TaskOutput(4, [NextTask("my_task", inputs={"batch_size": 5})]))
    flow.add_task("previous_without_inputs", lambda ctx: (ctx.set("previous_task", 4), NextTask("my_task"))[1])
    flow.add_task("next_task", lambda ctx, inputs: TaskOutput((inputs, ctx.get("my_task"))))
    flow.add_task("parallel_task", lambda ctx: TaskOutput(ctx.get("my_task")))

    assert flow.run("previous_task") == {"next_task": ({"processed": True}, 20), "parallel_task": 20}
    assert flow.run("previous_without_inputs") == {"next_task": ({"processed": True}, 40), "parallel_task": 40}


def the_context(flow):
    def setter(ctx: Context) -> TaskOutput:
        ctx.set("key", "value")
        return TaskOutput(output="set")

    # get blocks until available
    flow.add_task("both", lambda ctx: TaskOutput(None, [NextTask("getter"), NextTask("setter")]))
    flow.add_task("getter", lambda ctx: TaskOutput(ctx.get("key")))
    flow.add_task("setter", setter)

    assert flow.run("both") == {"getter": "value", "setter": "set"}
    assert flow.get_context().to_dict() == {"both": None, "key": "value", "getter": "value", "setter": "set"}


def task_outputs(flow):
    result = "result"
    # Terminal task (no next tasks)
    flow.add_task("next_step", lambda ctx: TaskOutput(output="done"))
    # Chain to next task
    flow.add_task("chain", lambda ctx: TaskOutput(output=result, next_tasks=[NextTask("next_step")]))
    # Fan out to multiple tasks (parallel)
    fan = TaskOutput(output=result, next_tasks=[NextTask("branch_a"), NextTask("branch_b")])
    flow.add_task("fan", lambda ctx: fan)
    flow.add_task("branch_a", lambda ctx: TaskOutput(output="a"))
    flow.add_task("branch_b", lambda ctx: TaskOutput(output="b"))

    assert flow.run("next_step") == {"next_step": "done"}
    assert flow.run("chain") == {"next_step": "done"}
    assert flow.run("fan") == {"branch_a": "a", "branch_b": "b"}


def next_tasks(flow):
    flow.add_task("task_name", lambda ctx, inputs=None: TaskOutput(output=inputs))

    for requests, results in (
        # Simple scheduling
        ([NextTask("task_name")], {"task_name": None}),
        # With input parameters
        ([NextTask("task_name", inputs={"key": "value"})], {"task_name": {"key": "value"}}),
        # Allow parallel instances of same task
        ([NextTask("task_name", spawn_another=True)] * 2, {"task_name": None, "task_name#2": None}),
        # Without it, a request for a task that is pending is dropped
        ([NextTask("task_name")] * 2, {"task_name": None}),
    ):
        flow.add_task("asks", lambda ctx, requests=requests: TaskOutput(None, requests))
        assert flow.run("asks") == results


def streaming(flow):
    def task_a(ctx: Context) -> TaskOutput:
        return TaskOutput(output="a", next_tasks=[NextTask("task_b")])

    def task_b(ctx: Context) -> TaskOutput:
        return TaskOutput(output="b")

    flow.add_task("task_a", task_a)
    flow.add_task("task_b", task_b)
    printed = []
    for chunk in flow.stream("task_a"):
        printed.append(f"Task {chunk.task_id} completed: {chunk.value}")

    assert printed == ["Task task_a completed: a", "Task task_b completed: b"]


def parallel_task_instances(flow):
    def fan_out(ctx: Context) -> TaskOutput:
        return TaskOutput(
            output="started",
            next_tasks=[
                NextTask("worker", inputs={"id": 1}, spawn_another=True),
                NextTask("worker", inputs={"id": 2}, spawn_another=True),
                NextTask("worker", inputs={"id": 3}, spawn_another=True),
            ],
        )

    flow.add_task("fan_out", fan_out)
    flow.add_task("worker", lambda ctx, inputs: TaskOutput(output=inputs["id"]))

    assert flow.run("fan_out") == {"worker": 1, "worker#2": 2, "worker#3": 3}


def error_handling(flow):
    def start_task(ctx: Context) -> TaskOutput:
        raise ValueError("bad order")

    flow.add_task("start_task", start_task)
    failed = None
    try:
        flow.run("start_task")
    except Exception as e:
        failed = f"Flow execution failed: {e}"

    assert failed == "Flow execution failed: bad order"


def the_api(flow):
    flow.add_task("echo", lambda ctx, inputs: TaskOutput(inputs))

    assert flow.run("echo", {"key": "value"}) == {"echo": {"key": "value"}}
    assert list(flow.stream("echo", {"key": "value"})) == [StreamChunk("echo", {"key": "value"})]
    assert flow.get_context() is flow.context
    assert flow.context.get("key") == "value"
    flow.reset(keep_tasks=True)
    assert flow.get_context().to_dict() == {}
    assert flow.run("echo", {"key": 2}) == {"echo": {"key": 2}}

    state = State.empty()
    flow.get_context().set_state("cell", state)
    state.set_value("value")
    assert state.get_value() == flow.get_context().get("cell") == "value"


TEDX_FLOW = (
    a_task, the_context, task_outputs, next_tasks, streaming, parallel_task_instances, error_handling, the_api,
)  # fmt: skip


@on_pools
@pytest.mark.filterwarnings("ignore::millstream.DuplicateTaskWarning")
def test_tedx_flow(workers):
    """The examples of tedx-flow give what its document states, time after time."""
    with ThreadPoolExecutor(max_workers=workers) as executor:
        for _ in range(TIMES):
            quick_start(executor)
            flow = Flow(executor)
            for example in TEDX_FLOW:
                example(flow)


# ---- LiteFlow ---------------------------------------------------------------------------------------


def basic_usage(flow):
    # Simple task that returns a result
    @flow.task("greet")
    def my_task(context: Context) -> TaskOutput:
        return TaskOutput(output="Hello World!")

    result = flow.run("greet")

    assert result == {"greet": "Hello World!"}


def task_chaining(flow):
    printed = []

    # Tasks can trigger other tasks
    @flow.task("task1")
    def task1(context: Context) -> TaskOutput:
        return TaskOutput(output="result1", next_tasks=[NextTask("task2")])

    @flow.task("task2")
    def task2(context: Context) -> TaskOutput:
        # Access results from previous tasks
        t1_result = context.get("task1")  # waits for task1 to complete
        printed.append(t1_result)
        return TaskOutput(output="result2")

    result = flow.run("task1")

    assert result == {"task2": "result2"}
    assert printed == ["result1"]


def parallel_execution(flow, workers=1):
    at_once = threading.Barrier(min(workers, 2))  # in place of time.sleep(1)

    @flow.task("starter")
    def starter(context: Context) -> TaskOutput:
        # Launch multiple tasks in parallel by simply adding them to the next_tasks list
        return TaskOutput(output="started", next_tasks=[NextTask("slow_task1"), NextTask("slow_task2")])

    @flow.task("slow_task1")
    def slow_task1(context: Context) -> TaskOutput:
        at_once.wait(WATCHDOG)
        return TaskOutput(output="result1")

    @flow.task("slow_task2")
    def slow_task2(context: Context) -> TaskOutput:
        at_once.wait(WATCHDOG)
        return TaskOutput(output="result2")

    # Both slow_tasks execute in parallel
    result = flow.run("starter")

    assert flow.context.get("starter") == "started"
    assert result == {"slow_task1": "result1", "slow_task2": "result2"}


def streaming_results(flow):
    @flow.task("streaming_task")
    def streaming_task(context: Context) -> TaskOutput:
        # Stream intermediate results
        stream = context.get_stream()
        for i in range(3):
            # (task_id, chunk_value)
            stream.put(StreamChunk("streaming_task", f"interim_{i}"))
        return TaskOutput(output="final")

    # Get results as they arrive
    printed = []
    for stream_chunk in flow.stream("streaming_task"):
        printed.append(f"{stream_chunk.task_id}: {stream_chunk.value}")

    assert printed == [
        "streaming_task: interim_0",
        "streaming_task: interim_1",
        "streaming_task: interim_2",
        "streaming_task: final",
    ]
    assert flow.run("streaming_task") == {"streaming_task": "final"}  # under run, interim values are dropped


def dynamic_workflows(flow):
    @flow.task("conditional_task")
    def conditional_task(context: Context) -> TaskOutput:
        count = context.get("count", 0)

        if count >= 3:
            return TaskOutput(output="done")

        context.set("count", count + 1)
        return TaskOutput(output=f"iteration_{count}", next_tasks=[NextTask("conditional_task")])

    # Task will loop 3 times before finishing
    flow.add_task("finish", lambda ctx: TaskOutput("completed", None))
    result = flow.run("conditional_task")

    assert result == {"conditional_task": "done"}
    assert flow.context.get("count") == 3


def input_parameters(flow):
    @flow.task("greet")
    def parameterized_task(context: Context) -> TaskOutput:
        name = context.get("user_name")
        return TaskOutput(output=f"Hello {name}!")

    result = flow.run("greet", inputs={"user_name": "Alice"})

    assert result == {"greet": "Hello Alice!"}


def push_next_task_with_inputs(flow):
    def task1(ctx):
        return TaskOutput("result1", [NextTask("task2", inputs={"input1": "value1"})])

    def task2(ctx, inputs):
        assert inputs == {"input1": "value1"}
        return TaskOutput("result2")

    flow.add_task("task1", task1)
    flow.add_task("task2", task2)
    result = flow.run("task1")

    assert result == {"task2": "result2"}


def dynamic_routing(flow):
    @flow.task("router")
    def router(context: Context) -> TaskOutput:
        task_type = context.get("type")
        routes = {
            "process": [NextTask("process_task")],
            "analyze": [NextTask("analyze_task")],
            "report": [NextTask("report_task")],
        }
        return TaskOutput(output=f"routing to {task_type}", next_tasks=routes.get(task_type, []))

    @flow.task("process_task")
    def process_task(context: Context) -> TaskOutput:
        return TaskOutput(output="processed data")

    result = flow.run("router", inputs={"type": "process"})

    assert result == {"process_task": "processed data"}
    assert flow.run("router", inputs={"type": "other"}) == {"router": "routing to other"}


def state_management(executor):
    context = Context()
    context.from_dict({"task1": "result1"})

    flow = Flow(executor=executor, context=context)
    flow.add_task("task2", lambda ctx: TaskOutput("result2"))
    flow.run("task2")

    assert flow.context.get("task1") == "result1"
    assert flow.context.get("task2") == "result2"
    # Serialize the context to a dictionary
    assert flow.get_context().to_dict() == {"task1": "result1", "task2": "result2"}
    return flow


def map_reduce(flow):
    @flow.task("task1")
    def task1(ctx):
        ctx.set("collector", [])

        return TaskOutput("result1", [
            NextTask("task2", spawn_another=True),
            NextTask("task2", spawn_another=True),
            NextTask("task2", spawn_another=True),
        ])  # fmt: skip

    @flow.task("task2")
    def task2(ctx):
        collector = ctx.get("collector")
        collector.append("result2")
        ctx.set("collector", collector)

        return TaskOutput("", [NextTask("task3")])

    @flow.task("task3")
    def task3(ctx):
        collector = ctx.get("collector")
        return TaskOutput(collector)

    result = flow.run("task1")

    assert result == {"task3": ["result2", "result2", "result2"]}


def map_reduce_with_a_join(flow):
    reduced = []

    @flow.task("task1")
    def task1(ctx):
        mappers = [NextTask("task2", inputs={"n": n}, spawn_another=True) for n in range(3)]
        return TaskOutput("result1", [*mappers, NextTask("task3", join=True)])

    @flow.task("task2")
    def task2(ctx, n):
        ctx.append("collector", "result2")
        return TaskOutput(f"result{n}")

    @flow.task("task3")
    def task3(ctx, upstream):
        reduced.append(upstream)
        return TaskOutput(list(ctx.get("collector")))

    ctx = flow.get_context()
    ctx.set("collector", [])
    result = flow.run("task1")

    assert result == {"task3": ["result2", "result2", "result2"]}
    assert reduced == [["result0", "result1", "result2"]]


ON_ONE_FLOW = (
    basic_usage, task_chaining, parallel_execution, streaming_results, dynamic_workflows, input_parameters,
    push_next_task_with_inputs, dynamic_routing,
)  # fmt: skip


def read_liteflow(executor, workers=1):
    flow = Flow(executor=executor)
    for example in ON_ONE_FLOW:
        if example is parallel_execution:
            parallel_execution(flow, workers)
        else:
            example(flow)
    flow = state_management(executor)
    map_reduce(flow)
    map_reduce_with_a_join(flow)


@on_pools
@pytest.mark.filterwarnings("ignore::millstream.DuplicateTaskWarning")
def test_liteflow(workers):
    """The examples of LiteFlow give what its document states, time after time."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        executor = PoolExecutor(pool)
        for _ in range(TIMES):
            read_liteflow(executor, workers)


def test_liteflow_warns_of_each_name_that_is_registered_again():
    """Where the document defines a task anew under an old name, that is a DuplicateTaskWarning, and it works."""
    with (
        ThreadPoolExecutor(max_workers=4) as pool,
        PoolExecutor(pool) as executor,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        read_liteflow(executor)

    assert {warning.category for warning in caught} == {DuplicateTaskWarning}
    assert {warning.filename for warning in caught} == {__file__}
    names = [str(warning.message).split()[1] for warning in caught]
    assert names == ["greet", "task1", "task2", "task2", "task1", "task2", "task3"]


@pytest.mark.filterwarnings("ignore::millstream.DuplicateTaskWarning")
def test_liteflow_without_an_executor():
    """The thread pool executor is optional."""
    for _ in range(10):
        flow = Flow()
        for example in ON_ONE_FLOW:
            example(flow)
        flow.close()


@on_pools
@pytest.mark.filterwarnings("ignore::millstream.DuplicateTaskWarning")
def test_liteflow_map_reduce_on_one_flow(workers):
    """Map and reduce on the flow of all the other examples, in both forms, gives the stated result every time."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        flow = Flow(PoolExecutor(pool))
        map_reduce(flow)
        for _ in range(TIMES):
            assert flow.run("task1") == {"task3": ["result2", "result2", "result2"]}
        for _ in range(20):
            flow.reset()
            map_reduce_with_a_join(flow)
