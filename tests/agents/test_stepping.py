import asyncio
import threading
import time

import pytest

from trl_ext.agents.stepping import Clock, Stepper


class Gauge:
    """How many are inside at once, at most."""

    def __init__(self):
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def work(self, value):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.02)
        with self.lock:
            self.inside -= 1
        return value

    async def async_work(self, value):
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.02)
        self.inside -= 1
        return value


@pytest.mark.parametrize("method", ["work", "async_work"])
def test_calls_run_together_up_to_the_limit_and_come_back_in_order(method):
    gauge = Gauge()
    stepper = Stepper(max_concurrency=3, timeout=5)
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

    stepper = Stepper(max_concurrency=8, timeout=0.1)
    calls = [hang, lambda: 1, hang_async, lambda: 1 / 0, leave, leave_async, own_timeout]
    results = stepper.run([stepper.call(function) for function in calls])
    assert [str(result) for result in results] == [
        "hang took longer than step_timeout = 0.1 s",
        "1",
        "hang_async took longer than step_timeout = 0.1 s",
        "division by zero",
        "the environment raised SystemExit",
        "the environment raised SystemExit",
        "the server's",
    ]
    assert stepper.run([stepper.call(lambda: 2)]) == [2]  # the loop is still there


def test_the_limit_is_that_of_each_call_and_does_not_run_while_it_waits_for_its_turn():
    stepper = Stepper(max_concurrency=1, timeout=0.2)
    assert stepper.run([stepper.call(lambda: time.sleep(0.1)) for _ in range(5)]) == [None] * 5


def test_all_calls_have_one_event_loop():
    async def loop():
        return asyncio.get_running_loop()

    stepper = Stepper(4, None)
    (first,), (second,) = (stepper.run([stepper.call(loop)]) for _ in range(2))
    assert first is second


def test_a_function_that_returns_a_coroutine_is_awaited():
    async def inner():
        return 7

    stepper = Stepper(4, 1.0)
    assert stepper.run([stepper.call(lambda: inner())]) == [7]


def test_a_clock_knows_when_each_call_began_and_how_long_it_took(monkeypatch):
    wall, counter = iter([1000.0, 2000.0]), iter([5.0, 5.5, 8.0, 10.0])
    monkeypatch.setattr(time, "time", lambda: next(wall))
    monkeypatch.setattr(time, "perf_counter", lambda: next(counter))
    clock = Clock()
    with clock:
        pass
    with pytest.raises(KeyError), clock:
        raise KeyError
    assert clock.calls == [(1000.0, 0.5), (2000.0, 2.0)]
    assert clock.seconds == 2.5
