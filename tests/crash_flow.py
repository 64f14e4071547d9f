"""The flow that ``test_crash`` kills again and again: chain, fan-out, lazy fan-out, join, router, retries, map, graph.

``python crash_flow.py STORE LOG SYNC`` starts the run, or goes on with it, and prints its results. Each body writes
its key into the log when it begins, and what was delivered is written there, too.
"""

import json
import os
import sys

from millstream import Flow, NextTask, TaskOutput, current_task
from millstream.stores.sqlite import SQLiteStore

RUN = "crash"
CHAIN, FAN, LAZY, TALK, MAP = 120, 120, 120, 40, 60


def build(store, log):
    flow = Flow(store=store, max_workers=4, name="crash")

    def note(what="begun"):
        me = current_task()
        os.write(log, f"{what} {me.name} {me.key.rpartition(':')[2]} {me.attempt}\n".encode())

    @flow.task
    def begin(ctx):
        note()
        ctx["factor"] = 3
        names = ("fan", "lazy", "talk")
        return [NextTask("chain", {"n": 0}), *map(NextTask, names), NextTask("finish", join=True)]

    @flow.task
    def chain(n):
        note()
        return TaskOutput(n, [NextTask("chain", {"n": n + 1})] if n < CHAIN else [])

    @flow.task
    def fan():
        note()
        parts = [NextTask("part", {"n": n}, spawn_another=True) for n in range(FAN)]
        return TaskOutput("fanned", [*parts, NextTask("total", join=True)])

    @flow.task(retries=3)
    def part(ctx, n):
        note()
        ctx.append("tries", n)
        if n % 17 == 0 and current_task().attempt < 3:
            raise ConnectionError("try again")
        ctx.append("parts", n)
        return n * ctx.get("factor")

    @flow.task
    def total(upstream):
        note()
        return sum(upstream)

    @flow.task
    def lazy():
        note()
        return TaskOutput("lazy", (NextTask("item", {"n": n}, spawn_another=True) for n in range(LAZY)))

    @flow.task
    def item(n):
        note()
        return n

    @flow.task
    def talk(ctx):
        note()
        for n in range(TALK):
            yield f"word {n}"
            yield NextTask("answer", {"n": n}, spawn_another=True)
            ctx.append("talked", n)
        return "talked"

    @flow.task
    def answer(n):
        note()
        return n

    @flow.task(routes=["even", "odd"])
    def finish(ctx):
        note()
        return "even" if ctx.get("total") % 2 == 0 else "odd"

    @flow.task
    def even():
        note()
        return "even"

    @flow.task
    def odd(ctx):
        note()
        ctx["rows"] = list(range(MAP))
        return "odd"

    @flow.task(depends_on=["even", "odd"], for_each="$ctx.parts")
    def mapped(item):
        note()
        return item * 2

    @flow.task(depends_on=["mapped"])
    def last(mapped, ctx):
        note()
        return [sum(mapped), *(sorted(ctx.get(key)) for key in ("parts", "tries", "talked"))]

    return flow


def main():
    path, log, sync = sys.argv[1:]
    log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = SQLiteStore(path, sync=sync)
    with build(store, log) as flow:
        if any(run.id == RUN for run in flow.runs()):
            chunks = flow.stream(resume=RUN)
        else:
            chunks = flow.stream("begin", run_id=RUN)
        for chunk in chunks:
            os.write(log, f"chunk {chunk.task_id} {chunk.value!r}\n".encode())
        print(json.dumps(flow.resume(RUN), sort_keys=True))
    store.close()


if __name__ == "__main__":
    main()
