import contextlib
import re

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from trl_ext.errors import ConfigError
from trl_ext.serving.ledger import DuplicateError, Ledger, OrderError, Rules, StaleError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def ledger_of(workers=1, concurrency=2, **rules):
    clock = Clock()
    ledger = Ledger(Rules(**rules), "run", clock)
    for number in range(workers):
        ledger.join(f"w{number}", [], concurrency)
    return ledger, clock


def rows(count, first=0):
    return [(f"row {number}", {"seed": number}) for number in range(first, first + count)]


def numbers(ledger):
    counters = ledger.counters
    return counters.asked, counters.done, counters.failed, counters.dropped, counters.open


def test_an_episode_is_leased_answered_turn_by_turn_and_done_once():
    ledger, clock = ledger_of()
    (ticket,) = ledger.ask(rows(1), "env", version=7)
    assert ledger.claim("w0") is ticket
    assert ledger.claim("w0") is None
    ledger.answered(ledger.held(ticket.lease, "w0"), 0)
    assert ticket.waits_for == "policy"
    ledger.acted(ticket)
    clock.now = 4.0
    with pytest.raises(OrderError, match=r"turn 2 of 1-run.1 cannot be answered: the policy has had 1"):
        ledger.answered(ticket, 2)
    ledger.answered(ticket, 1, final=True)
    assert (ticket.state, ticket.version, ticket.agent_seconds) == ("done", 7, 4.0)
    assert numbers(ledger) == (1, 1, 0, 0, 0)
    assert ledger.ended == [ticket]
    with pytest.raises(DuplicateError):
        ledger.held(ticket.lease, "w0")
    with pytest.raises(StaleError):
        ledger.held("9-other.1", "w0")
    assert (ledger.counters.duplicates, ledger.counters.stale) == (1, 1)


@pytest.mark.parametrize("turn", [0, 1])
def test_an_answer_that_was_taken_before_is_counted_and_changes_nothing(turn):
    ledger, _ = ledger_of()
    (ticket,) = ledger.ask(rows(1), "env", 0)
    ledger.claim("w0")
    for answered in range(turn + 1):
        ledger.answered(ticket, answered)
        before = (ticket.turn, ticket.waits_for)
        with pytest.raises(DuplicateError):
            ledger.answered(ticket, turn if answered == turn else answered)
        assert (ticket.turn, ticket.waits_for) == before
        ledger.acted(ticket)
    with pytest.raises(DuplicateError):
        ledger.answered(ticket, 0)


def test_what_a_lost_worker_played_goes_to_another_and_its_late_messages_do_not_count():
    ledger, clock = ledger_of(workers=2, heartbeat=1.0)
    first, second = ledger.ask(rows(2), "env", 0)
    for _ in range(2):
        ledger.claim("w0")
    lost = first.lease
    ledger.answered(first, 0)
    clock.now = 2.9
    ledger.heard("w1")
    ledger.sweep()
    assert "w0" in ledger.holders
    clock.now = 3.1
    ledger.sweep()
    assert "w0" not in ledger.holders
    assert [(ticket.id, lease) for ticket, lease, _ in ledger.over] == [("2-run", "2-run.1"), ("1-run", lost)]
    assert [ledger.claim("w1"), ledger.claim("w1")] == [first, second]
    assert (first.attempt, first.turn, first.waits_for, first.worker) == (2, 0, "agent", "w1")
    with pytest.raises(StaleError):
        ledger.held(lost, "w0")
    with pytest.raises(StaleError):
        ledger.held(first.lease, "w0")  # another one's
    assert ledger.counters.requeued == 2


def test_an_episode_that_is_lost_too_often_has_failed():
    ledger, _ = ledger_of(workers=0, max_attempts=3)
    (ticket,) = ledger.ask(rows(1), "env", 0)
    for attempt in range(3):
        assert ticket.state == "queued"
        ledger.join("w", [], 1)
        assert ledger.claim("w").attempt == attempt + 1
        ledger.leave("w", "it died")
    assert (ticket.state, ticket.failure) == ("failed", "lost 3 times, the last time because it died")
    assert numbers(ledger) == (1, 0, 1, 0, 0)


def test_the_deadline_does_not_run_while_the_policy_is_waited_for():
    ledger, clock = ledger_of(episode_timeout=10.0, heartbeat=100.0)
    (ticket,) = ledger.ask(rows(1), "env", 0)
    ledger.claim("w0")
    clock.now = 6.0
    ledger.answered(ticket, 0)
    clock.now = 106.0
    ledger.sweep()
    ledger.acted(ticket)
    clock.now = 109.9
    ledger.sweep()
    assert ticket.state == "running"
    clock.now = 110.1
    ledger.sweep()
    assert (ticket.state, ticket.failure) == ("failed", "took longer than episode_timeout = 10 s")
    with pytest.raises(StaleError):
        ledger.held("1-run.1", "w0")


def test_an_agent_by_http_that_is_silent_loses_its_episode_only():
    ledger, clock = ledger_of(workers=0, silence=5.0)
    ledger.join("http:a", [], None)
    one, other = ledger.ask(rows(2), "env", 0)
    ledger.claim("http:a"), ledger.claim("http:a")
    clock.now = 4.0
    ledger.answered(other, 0)
    clock.now = 5.5
    ledger.sweep()
    assert (one.state, other.state) == ("queued", "running")
    ledger.acted(other)
    ledger.answered(other, 1, final=True)
    clock.now = 11.0
    ledger.sweep()
    assert not ledger.holders


def test_what_a_rollout_does_not_wait_for_is_dropped():
    ledger, _ = ledger_of()
    tickets = ledger.ask(rows(3), "env", 0)
    ledger.claim("w0")
    ledger.close(tickets)
    assert numbers(ledger) == (3, 0, 0, 3, 0)
    assert [lease for _, lease, _ in ledger.over] == ["1-run.1"]
    assert not ledger.queue
    with pytest.raises(StaleError):
        ledger.held("1-run.1", "w0")


def test_with_a_policy_lag_an_episode_is_played_on_for_a_later_rollout_until_it_is_too_old():
    ledger, _ = ledger_of(max_policy_lag=1)
    late, later = ledger.ask(rows(2), "env", version=0)
    ledger.claim("w0"), ledger.claim("w0")
    ledger.close([late, later])
    ledger.answered(late, 0, final=True)  # between the rollouts
    assert numbers(ledger) == (2, 1, 0, 0, 1)
    again, new = ledger.ask([rows(1)[0], rows(1)[0]], "env", version=1)
    assert again is late
    assert (new is late, new.version) == (False, 1)
    assert later.state == "running"
    ledger.close([again, new])
    ledger.ask([], "env", version=2)
    assert (later.state, later.failure) == ("dropped", "dropped: the policy went on from 0 to 2")
    assert new.state == "queued"
    assert numbers(ledger) == (3, 1, 0, 1, 1)
    with pytest.raises(StaleError):
        ledger.held(later.lease, "w0")


def test_workers_get_the_environments_that_they_have_and_no_more_than_they_take():
    ledger, _ = ledger_of(workers=0)
    ledger.join("cats", ["cat"], 1)
    ledger.join("all", [], 1)
    dog, cat, other = *ledger.ask(rows(1), "dog", 0), *ledger.ask(rows(2, first=1), "cat", 0)
    assert ledger.claim("cats") is cat
    assert ledger.claim("cats") is None
    assert ledger.claim("all") is dog
    ledger.answered(cat, 0, final=True)
    ledger.holders["cats"].draining = True
    assert ledger.claim("cats") is None
    assert other.state == "queued"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"heartbeat": 0}, "heartbeat = 0: must be greater than 0"),
        ({"max_attempts": 0}, "max_attempts = 0: must be"),
        ({"episode_timeout": -1.0}, "episode_timeout = -1.0: must be"),
        ({"max_policy_lag": -1}, "max_policy_lag = -1: must be at least 0"),
    ],
)
def test_bad_rules_are_refused(rule, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Rules(**rule)


class AnyOrder(RuleBasedStateMachine):
    """Anything may happen at any time: the accounts add up after each step, and nothing ends twice."""

    leases = Bundle("leases")

    @initialize(lag=st.integers(0, 2), attempts=st.integers(1, 3))
    def begin(self, lag, attempts):
        rules = Rules(max_policy_lag=lag, max_attempts=attempts, heartbeat=1.0, silence=5.0, episode_timeout=20.0)
        self.clock = Clock()
        self.ledger = Ledger(rules, "run", self.clock)
        self.asked, self.over, self.version = [], [], 0

    @rule(count=st.integers(0, 4), first=st.integers(0, 3), newer=st.integers(0, 2))
    def ask(self, count, first, newer):
        self.version += newer
        self.asked.append(self.ledger.ask(rows(count, first), "env", self.version))

    @precondition(lambda self: self.asked)
    @rule()
    def close(self):
        self.ledger.close(self.asked.pop(0))

    @rule(name=st.sampled_from("abc"), concurrency=st.none() | st.integers(1, 3))
    def join(self, name, concurrency):
        self.ledger.join(name, [], concurrency)

    @rule(name=st.sampled_from("abc"))
    def leave(self, name):
        self.ledger.leave(name, "it left")

    @rule(target=leases, name=st.sampled_from("abc"))
    def claim(self, name):
        if name not in self.ledger.holders:
            return ("9-other.1", name)
        ticket = self.ledger.claim(name)
        return (ticket.lease if ticket else "none", name)

    @rule(lease=leases, turn=st.integers(0, 2), final=st.booleans())
    def answer(self, lease, turn, final):
        with contextlib.suppress(DuplicateError, StaleError, OrderError):
            self.ledger.answered(self.ledger.held(*lease), turn, final)

    @rule(lease=leases, fails=st.booleans())
    def act_or_fail(self, lease, fails):
        ticket = self.ledger.running.get(lease[0])
        if ticket is not None and fails:
            self.ledger.failed(ticket, "it broke")
        elif ticket is not None and ticket.waits_for == "policy":
            self.ledger.acted(ticket)

    @rule(lease=consumes(leases))
    def give_back(self, lease):
        ticket = self.ledger.running.get(lease[0])
        if ticket is not None:
            self.ledger.release(ticket, "it was given back")

    @rule(seconds=st.floats(0.0, 8.0))
    def wait(self, seconds):
        self.clock.now += seconds
        self.ledger.sweep()

    @invariant()
    def adds_up(self):
        if not hasattr(self, "ledger"):
            return
        ledger = self.ledger
        asked, done, failed, dropped, still = numbers(ledger)
        assert asked == done + failed + dropped + still
        assert still == len(ledger.queue) + len(ledger.running)
        assert len(set(ledger.ended)) == len(ledger.ended) == done + failed + dropped
        held = [ticket for holder in ledger.holders.values() for ticket in holder.tickets]
        assert sorted(ticket.lease for ticket in held) == sorted(ledger.running)
        assert all(ticket.state == "running" for ticket in held)
        assert all(ticket.state == "queued" for ticket in ledger.queue)


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase
