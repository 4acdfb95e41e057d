import asyncio
import gc
import threading
import time
from types import SimpleNamespace

import pytest

from trl_ext.agents import stepping
from trl_ext.agents.stepping import Clock, Stepper
from trl_ext.errors import ConfigError

LONG = 60.0  # so that no stall of the machine is taken for a call that hangs


class Gauge:
    """How many are inside at once, at most. They leave by threes: fewer that run together would wait in vain."""

    def __init__(self):
        self.inside = self.most = 0
        self.lock, self.threes = threading.Lock(), threading.Barrier(3)
        self.third = None

    def work(self, value):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.threes.wait(LONG)
        with self.lock:
            self.inside -= 1
        self.threes.wait(LONG)  # the place of one that left early would be taken by a fourth
        return value

    async def async_work(self, value):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.third = self.third or asyncio.Event()
        leave = self.third
        if self.inside == 3:
            self.third = None
            leave.set()
        await leave.wait()
        self.inside -= 1
        return value


@pytest.mark.parametrize("method", ["work", "async_work"])
def test_calls_run_together_up_to_the_limit_and_come_back_in_order(method):
    gauge = Gauge()
    stepper = Stepper(max_concurrency=3, timeout=LONG)
    assert stepper.run([stepper.call(getattr(gauge, method), i) for i in range(9)]) == list(range(9))
    assert gauge.most == 3


def test_what_raises_or_hangs_is_an_exception_in_its_place():
    def hang():
        time.sleep(30)

    async def hang_async():
        await asyncio.sleep(30)

    def leave():
        raise SystemExit(3)

    async def leave_async():
        raise SystemExit(3)

    def own_timeout():
        raise TimeoutError("the server's")

    def own_silent_timeout():
        raise TimeoutError

    def run_out():
        return next(iter([]))

    short, long, none = (Stepper(10, timeout) for timeout in (0.1, LONG, None))
    calls = [short.call(hang), long.call(lambda: 1), short.call(hang_async), long.call(lambda: 1 / 0)]
    calls += map(long.call, (leave, leave_async, own_timeout, own_silent_timeout, run_out))
    assert [str(result) for result in long.run([*calls, none.call(own_silent_timeout)])] == [
        "hang took longer than step_timeout = 0.1 s",
        "1",
        "hang_async took longer than step_timeout = 0.1 s",
        "division by zero",
        "the environment raised SystemExit",
        "the environment raised SystemExit",
        "the server's",
        "",
        "the environment raised StopIteration",
        "",
    ]
    assert long.run([long.call(lambda: 2)]) == [2]  # the loop is still there


def test_the_limit_is_that_of_each_call_and_does_not_run_while_it_waits_for_its_turn(monkeypatch):
    """By a clock that only the calls move: five of 0.15 s, one after the other, with a limit of 0.2 s for each."""
    clock = SimpleNamespace(now=0.0)

    class Loop(asyncio.SelectorEventLoop):
        def time(self):
            return clock.now

    def work(seconds):
        clock.now += seconds

    monkeypatch.setattr(asyncio, "new_event_loop", Loop)
    stepper = Stepper(max_concurrency=1, timeout=0.2)
    assert stepper.run([stepper.call(work, 0.15) for _ in range(5)]) == [None] * 5
    assert clock.now == pytest.approx(0.75)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_limit_that_no_call_could_keep_is_refused(timeout):
    with pytest.raises(ConfigError, match=f"step_timeout = {timeout}: must be greater than 0"):
        Stepper(1, timeout)


def test_a_stepper_that_is_gone_leaves_no_thread_behind():
    async def thread_of_the_loop():
        return threading.current_thread()

    stepper = Stepper(4, LONG)
    (thread,) = stepper.run([stepper.call(thread_of_the_loop)])
    assert thread.is_alive()
    del stepper
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()


def test_all_calls_have_one_event_loop():
    async def loop():
        return asyncio.get_running_loop()

    stepper = Stepper(4, None)
    (first,), (second,) = (stepper.run([stepper.call(loop)]) for _ in range(2))
    assert first is second


def test_a_function_that_returns_a_coroutine_is_awaited():
    async def inner():
        return 7

    stepper = Stepper(4, LONG)
    assert stepper.run([stepper.call(lambda: inner())]) == [7]


def test_a_clock_knows_when_each_call_began_and_how_long_it_took(monkeypatch):
    wall, counter = iter([1000.0, 2000.0]), iter([5.0, 5.5, 8.0, 10.0])
    fake = SimpleNamespace(time=lambda: next(wall), perf_counter=lambda: next(counter))
    monkeypatch.setattr(stepping, "time", fake)  # not the module's own functions: other threads may call those
    clock = Clock()
    with clock:
        pass
    with pytest.raises(KeyError), clock:
        raise KeyError
    assert clock.calls == [(1000.0, 0.5), (2000.0, 2.0)]
    assert clock.seconds == 2.5
