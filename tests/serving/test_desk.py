"""What agents say, in orders that sockets bring about only now and then: the desk without a network."""

import contextlib
import threading
import time

from tests.agents.talk import ROWS
from tests.serving.playing import play, remote_trainer
from trl_ext.serving import messages as protocol
from trl_ext.serving.ledger import Rules
from trl_ext.serving.server import RolloutServer

HELLO = protocol.Hello(protocol=protocol.PROTOCOL)


class FakeLink:
    """A worker by hand."""

    def __init__(self, desk, id):
        self.desk, self.id, self.got = desk, id, []
        desk.attach(self, HELLO)

    def put(self, message):
        self.got.append(message)

    def last(self, kind):
        """The newest message of a kind; waits for one."""
        end = time.monotonic() + 20
        while True:
            with self.desk.changed:
                self.desk._flush()
            found = [message for message in self.got if isinstance(message, kind)]
            if found:
                return found[-1]
            assert time.monotonic() < end, f"no {kind.__name__}"
            time.sleep(0.01)

    def say(self, kind, **values):
        return self.desk.hear(self, kind(**values))

    def opens(self, text):
        lease = self.last(protocol.Lease).lease
        message = protocol.EnvironmentMessage(role="user", content=text)
        self.say(protocol.Opened, lease=lease, messages=[message])
        return lease

    def ends(self, lease, turn, reward=1.0):
        self.say(protocol.Stepped, lease=lease, turn=turn, reward=reward, terminated=True, truncated=False)


@contextlib.contextmanager
def beside(work):
    """`work` in a thread, while the rollout runs here."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(20)
    if errors:
        raise errors[0]


def asked(desk, count=1):
    while len(desk.ledger.queue) < count:
        time.sleep(0.01)


def test_what_a_lost_worker_said_last_is_not_in_the_episode_of_the_next(tiny):
    server = RolloutServer()
    desk = server.desk

    def work():
        asked(desk)
        first = FakeLink(desk, "first")
        lost = first.opens("aaaa")
        turn = first.last(protocol.Act).turn
        with desk.changed:  # the trainer sees all of it at once
            first.say(protocol.Stepped, lease=lost, turn=turn, reward=9, terminated=False, truncated=False)
            desk.detach(first)
            second = FakeLink(desk, "second")
            lease = second.opens("bb")
        assert lease != lost
        turn = second.last(protocol.Act).turn
        first.ends(lost, turn, reward=9.0)
        assert first.got[-1] is None  # its socket is closed
        second.ends(lost, turn, reward=9.0)
        assert second.last(protocol.Over).lease == lost
        second.ends(lease, turn)
        second.ends(lease, turn)

    with beside(work):
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    assert (one.messages[0]["content"], one.rewards) == ("bb", [1.0])
    assert one.prompt_ids == remote_trainer(tiny, server).processing_class(text="bb")["input_ids"]
    counters = desk.ledger.counters
    assert (counters.asked, counters.done, counters.requeued) == (1, 1, 1)
    assert (counters.stale, counters.duplicates) == (1, 1)


def test_a_worker_that_is_lost_while_the_policy_writes_gets_no_answer_and_the_next_one_begins_anew(tiny):
    server = RolloutServer()
    desk = server.desk
    writing, lost = threading.Event(), threading.Event()

    def work():
        asked(desk)
        first = FakeLink(desk, "first")
        first.opens("aaaa")
        assert writing.wait(20)
        desk.detach(first)
        lost.set()
        second = FakeLink(desk, "second")
        lease = second.opens("bb")
        second.ends(lease, second.last(protocol.Act).turn)
        assert not [message for message in first.got if isinstance(message, protocol.Act)]

    trainer = remote_trainer(tiny, server)
    generate = trainer._generate_single_turn

    def slowly(*args, **kwargs):
        writing.set()
        assert lost.wait(20)
        return generate(*args, **kwargs)

    trainer._generate_single_turn = slowly
    with beside(work):
        (one,) = play(trainer, ROWS.select([0]))["trajectory"]
    assert [message["role"] for message in one.messages] == ["user", "assistant"]
    assert one.messages[0]["content"] == "bb"
    assert len(one.completion_ids) == len(one.mask) == len(one.logprobs) == sum(one.mask) <= 6


def test_a_turn_that_has_not_come_is_garbage_and_a_worker_gives_an_episode_back(tiny):
    server = RolloutServer(rules=Rules(max_attempts=2))
    desk = server.desk

    def work():
        asked(desk)
        first = FakeLink(desk, "first")
        lease = first.last(protocol.Lease).lease
        error = first.say(protocol.Stepped, lease=lease, turn=3, reward=1, terminated=True, truncated=False)
        assert error == f"turn 3 of {lease} cannot be answered: the policy has had 0"
        first.say(protocol.Returned, lease=lease)
        again = first.last(protocol.Lease).lease
        assert again != lease
        first.say(protocol.Returned, lease=again)

    with beside(work):
        (one,) = play(remote_trainer(tiny, server, {"max_failures": 1.0}), ROWS.select([0]))["trajectory"]
    assert one.failure == "reset: lost 2 times, the last time because first gave it back"
    assert desk.ledger.counters.garbage == 1


def test_what_the_page_shows_goes_along_with_an_episode(tiny):
    from trl_ext.serving.views import episode_of, status_of

    server = RolloutServer()
    desk = server.desk

    def work():
        asked(desk)
        worker = FakeLink(desk, "w")
        lease = worker.opens("bb")
        turn = worker.last(protocol.Act).turn
        status = status_of(desk)
        (running,) = status.running
        assert (running.worker, running.turn, running.waits_for, running.attempt) == ("w", 1, "agent", 1)
        assert (status.policy.rollout, status.workers[0].running, status.counters.open) == (True, 1, 1)
        assert [turn.role for turn in episode_of(desk, running.id).turns] == ["user"]
        worker.ends(lease, turn, reward=0.5)

    with beside(work):
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    status = status_of(desk)
    (finished,) = status.finished
    assert (finished.state, finished.reward, finished.turns, finished.worker) == ("done", 0.5, 1, "w")
    assert [point.reward for point in status.series] == [0.5]
    assert (status.policy.rollout, status.running) == (False, [])
    shown = episode_of(desk, finished.id)
    assert [(turn.role, turn.reward) for turn in shown.turns] == [("user", None), ("assistant", 0.5)]
    assert shown.turns[1].text == one.messages[1]["content"]
    assert episode_of(desk, "9-other") is None
