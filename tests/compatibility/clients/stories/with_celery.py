"""A program that uses one feature of Celery after another. It prints `ok CHAPTER` after each."""

import sys
import threading

from celery import chord, group
from celery.exceptions import TaskRevokedError

from ledger import PATIENCE, lines, please, until, write

def results():
    """Results, errors, retries and groups work."""
    import jobs

    assert jobs.add.delay(2, 3).get(PATIENCE) == 5
    broken = jobs.fail.delay()
    try:
        broken.get(PATIENCE)
        raise AssertionError("the failed task raised no error")
    except ValueError as why:
        assert str(why) == "an intended failure"
    assert broken.status == "FAILURE"
    assert jobs.third_time.delay().get(PATIENCE) == 2
    assert group(jobs.add.s(n, n) for n in range(30))().get(PATIENCE) == [2 * n for n in range(30)]
    chain = jobs.add.s(1, 2) | jobs.add.s(10)
    assert chain().get(PATIENCE) == 13


def countdown():
    """Waiting tasks that exceed the prefetch do not block one that is due."""
    import jobs

    for number in range(6):
        jobs.note.apply_async((f"later-{number}",), countdown=10)
    jobs.note.delay("now")
    until(lambda: len(lines()) == 7, "all seven tasks are done")
    assert lines()[0] == "now" and sorted(lines()[1:]) == [f"later-{n}" for n in range(6)], lines()


def topics():
    """Messages are routed by topic to one queue, the other, both or none."""
    import jobs

    for key in ("news.local", "fine.sport", "news.sport", "weather"):
        jobs.where.apply_async((key,), exchange="topics", routing_key=key)
    jobs.where.delay("end")
    until(lambda: len(lines()) == 5, "all five tasks are done")
    assert sorted(lines()) == ["end jobs", "fine.sport fine.sport", "news.local news.local",
                               "news.sport news.sport", "news.sport news.sport"], lines()


def control():
    """ping, inspect, revoke, rate_limit and the events of a worker work."""
    import jobs

    seen = []
    connection = jobs.app.connection_for_read()
    receiver = jobs.app.events.Receiver(connection, handlers={"*": seen.append})
    listener = threading.Thread(target=receiver.capture)
    listener.start()
    try:
        inspect = jobs.app.control.inspect()
        (worker,) = inspect.ping()
        assert sorted(queue["name"] for queue in inspect.active_queues()[worker]) == ["jobs", "news", "sport"]
        assert "jobs.add" in inspect.registered()[worker]
        until(lambda: any(event["type"] == "worker-heartbeat" for event in seen), "a heartbeat arrived")
        assert jobs.add.delay(1, 1).get(PATIENCE) == 2
        until(lambda: {"task-received", "task-started", "task-succeeded"} <= {event["type"] for event in seen},
              "the events of a task arrived")
        waits = jobs.note.apply_async(("never",), countdown=3600)
        until(lambda: [task["request"]["id"] for task in inspect.scheduled()[worker]] == [waits.id], "scheduled")
        waits.revoke()
        until(lambda: waits.id in inspect.revoked()[worker], "revoked")
        jobs.app.control.rate_limit("jobs.add", "100/s")
        early = jobs.note.apply_async(("never",), countdown=4)
        early.revoke()
        try:
            early.get(PATIENCE)
            raise AssertionError("a revoked task returned a result")
        except TaskRevokedError:
            pass
        assert lines() == []
    finally:
        # The receiver checks this after the next event, and a worker's heartbeat is one.
        receiver.should_stop = True
        listener.join()
        connection.release()


def killed_worker():
    """A worker is killed during tasks that are acknowledged late. The next worker gets them, marked as redelivered."""
    import jobs

    tasks = [jobs.stay.delay(number) for number in range(2)]
    until(lambda: len(lines()) == 2, "started")
    please("worker")
    assert [task.get(PATIENCE) for task in tasks] == [0, 1]
    assert sorted(lines()) == ["stay 0 False", "stay 0 True", "stay 1 False", "stay 1 True"], lines()


def killed_broker():
    """The broker is killed during 100 tasks. Each is done, and done twice only if marked as redelivered."""
    import jobs

    for number in range(80):
        jobs.mark.apply_async((number,), ignore_result=True)
    until(lambda: len(lines()) >= 10, "ten")
    please("broker")
    for number in range(80, 100):
        jobs.mark.apply_async((number,), ignore_result=True, retry=True,
                              retry_policy={"max_retries": 100, "interval_start": 0.1, "interval_max": 0.3})
    until(lambda: {int(line.split()[0]) for line in lines()} == set(range(100)), "all 100 tasks are done")
    first = [int(line.split()[0]) for line in lines() if line.endswith("False")]
    assert len(first) == len(set(first)), "a task was done twice without a redelivered mark"


def delayed():
    """Delayed delivery with 28 exchanges and queues: tasks that are due, delays that survive a broker restart, and a
    chord whose unlock task is delayed."""
    import delayed as app

    assert app.later.delay("now").get(PATIENCE) == "now"
    slow = [app.later.apply_async((f"in-{seconds}",), countdown=seconds) for seconds in (9, 5, 1, 7)]
    far = app.later.apply_async(("never",), countdown=2**28 - 1)
    sum_of_squares = chord([app.square.s(n) for n in range(5)])(app.total.s())
    assert sum_of_squares.get(PATIENCE) == 30
    please("broker")
    assert [task.get(PATIENCE) for task in slow] == ["in-9", "in-5", "in-1", "in-7"]
    assert lines() == ["now", "in-1", "in-5", "in-7", "in-9"], lines()
    assert not far.ready()
    with app.app.connection_for_write() as connection:
        channel = connection.channel()
        counts = [channel.queue_declare(f"celery_delayed_{level}", passive=True).message_count for level in range(28)]
        assert counts == 27 * [0] + [1], counts


def priorities():
    """Messages that wait while the worker is busy are processed by priority, and in order within a priority."""
    import urgent

    for number in range(2):
        urgent.gate.apply_async((number,), priority=10)
    until(lambda: len(lines()) == 2, "busy")
    sent = [(priority, number) for number in range(3) for priority in (0, 5, 10, 3, None, 9)]
    for priority, number in sent:
        urgent.note.apply_async((f"{priority or 0}-{number}-{priority is None}",), priority=priority)
    write("open")
    until(lambda: len(lines()) == 3 + len(sent), "all tasks are done")
    by_priority = sorted(sent, key=lambda one: -(one[0] or 0))
    expected = [f"{priority or 0}-{number}-{priority is None}" for priority, number in by_priority]
    done = lines()[3:]
    # Two tasks run at the same time, so that neighbours may be swapped.
    moved = [one for at, one in enumerate(done) if abs(expected.index(one) - at) > 1]
    assert sorted(done) == sorted(expected) and not moved, done


def turns():
    """One worker consumes several full queues in turn, not one after the other."""
    import shared

    for number in range(2):
        shared.gate.delay(number)
    until(lambda: len(lines()) == 2, "busy")
    for name in shared.NAMES:
        for _ in range(20):
            shared.note.apply_async((name,), queue=name)
    write("open")
    until(lambda: len(lines()) == 63, "all tasks are done")
    first = lines()[3:33]
    counts = [first.count(name) for name in shared.NAMES]
    assert min(counts) >= 5, counts


CHAPTERS = {name: run for name, run in list(globals().items()) if name in (
    "results", "countdown", "topics", "control", "killed_worker", "killed_broker", "priorities", "delayed", "turns")}

if __name__ == "__main__":
    CHAPTERS[sys.argv[1]]()
    print("ok", sys.argv[1], flush=True)
