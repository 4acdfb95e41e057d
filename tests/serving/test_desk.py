"""What agents say, in orders that sockets bring about only now and then: the desk without a network."""

import contextlib
import threading
import time

from tests.agents.talk import ROWS
from tests.serving.playing import play, remote_trainer, until
from trl_ext.serving import messages as protocol
from trl_ext.serving.ledger import Rules
from trl_ext.serving.server import RolloutServer


class FakeLink:
    """A worker by hand."""

    def __init__(self, desk, id, concurrency=1):
        self.desk, self.id, self.got = desk, id, []
        desk.attach(self, protocol.Hello(protocol=protocol.PROTOCOL, concurrency=concurrency))

    def put(self, message):
        self.got.append(message)

    def last(self, kind):
        """The newest message of a kind; waits for one."""
        end = time.monotonic() + 60
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
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def asked(desk, count=1):
    until(lambda: len(desk.ledger.queue) >= count)


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
        assert writing.wait(60)
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
        assert lost.wait(60)
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


def test_a_worker_that_plays_an_episode_again_because_its_lease_came_twice_is_told_that_it_is_over(tiny):
    server = RolloutServer()

    def work():
        asked(server.desk)
        worker = FakeLink(server.desk, "w")
        lease = worker.opens("bb")
        worker.opens("bb")  # while it runs: said twice, and answered once
        turn = worker.last(protocol.Act).turn
        assert not [message for message in worker.got if isinstance(message, protocol.Over)]
        worker.ends(lease, turn)
        worker.opens("bb")
        assert worker.last(protocol.Over).lease == lease

    with beside(work):
        play(remote_trainer(tiny, server), ROWS.select([0]))
    counters = server.desk.ledger.counters
    assert (counters.done, counters.duplicates, counters.stale) == (1, 2, 0)


def test_the_first_waits_for_others_as_long_as_it_was_told_to(tiny, monkeypatch):
    """However often the processes that wait for the main one hear from it."""
    monkeypatch.setattr("trl_ext.serving.rollout.BEAT_SECONDS", 0.01)
    server = RolloutServer()
    trainer = remote_trainer(tiny, server, {"gather_seconds": 300.0})
    rounds, sizes = [], []

    def work():
        asked(server.desk, 2)
        both = [FakeLink(server.desk, name) for name in "ab"]
        both[0].opens("bb")
        before = len(rounds)
        until(lambda: len(rounds) > before + 2)
        both[1].opens("bb")
        for worker in both:
            worker.ends(worker.last(protocol.Lease).lease, worker.last(protocol.Act).turn)

    generate, collect = trainer._generate_single_turn, server.desk.collect

    def sampling(prefixes, *args, **kwargs):
        sizes.append(len(prefixes))
        return generate(prefixes, *args, **kwargs)

    def collecting(*args):
        rounds.append(1)
        return collect(*args)

    trainer._generate_single_turn, server.desk.collect = sampling, collecting
    with beside(work):
        play(trainer, ROWS.select(range(2)))
    assert sizes[0] == 2


def test_the_status_lists_so_many_running_episodes_and_counts_all_of_them():
    from trl_ext.serving.views import RUNNING, status_of

    desk = RolloutServer().desk
    FakeLink(desk, "w", concurrency=2 * RUNNING)
    desk.ask([(str(number), {"seed": number}) for number in range(3 * RUNNING)], "env", 0)
    status = status_of(desk)
    assert (status.queues.running, status.queues.episodes) == (2 * RUNNING, RUNNING)
    assert [one.row for one in status.running] == [f"seed={number}" for number in range(RUNNING)]


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
