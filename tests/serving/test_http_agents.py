import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from datasets import Dataset

from tests.agents.talk import ROWS
from tests.serving import loopback
from tests.serving.loopback import kept_port, reverse_proxy
from tests.serving.playing import play, remote_trainer, serving, until
from trl_ext.serving.desk import Desk
from trl_ext.serving.http_agents import HttpAgents
from trl_ext.serving.ledger import Rules
from trl_ext.serving.messages import ClaimRequest
from trl_ext.serving.refusal import Refusal

SCRIPT = Path(__file__).with_name("openai_agent.py")


def post(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def claimed(server):
    end = time.monotonic() + 60  # a trainer may have to be made first
    while time.monotonic() < end:
        try:
            return post(server, "/episodes/claim", {"agent": "test"})
        except urllib.error.HTTPError as error:
            if (error.code, error.headers["Retry-After"]) != (503, "1"):
                raise
            time.sleep(0.05)
    raise AssertionError("no episode")


@contextlib.contextmanager
def agent(server, work):
    """`work(episode, client)` plays one episode in a thread, while the rollout runs here."""
    errors = []

    def run():
        try:
            episode = claimed(server)
            work(episode, openai.OpenAI(base_url=episode["base_url"], api_key="none", max_retries=1))
        except BaseException as error:
            errors.append(error)
            with contextlib.suppress(Exception):
                post(server, f"/episodes/{episode['lease']}/result", {"failure": "the test failed"})

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def ask(client, messages, **options):
    return client.chat.completions.create(model="policy", messages=messages, **options)


def user(text):
    return {"role": "user", "content": text}


def said(completion):
    return {"role": "assistant", "content": completion.choices[0].message.content}


def fresh_logps(model, trajectory):
    ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
    with torch.no_grad():
        logps = torch.log_softmax(model(ids).logits[0, :-1], -1)
    return logps.gather(1, ids[0, 1:, None]).squeeze(1)[-len(trajectory.completion_ids) :]


def test_an_episode_of_an_openai_client_is_kept_as_it_was_sampled(tiny):
    """The tokens are those that `generate` gave, the new messages are tokenised once, the log-probs are a forward's."""
    completions = []

    def work(episode, client):
        messages = [{"role": "system", "content": "ab"}, user("cc>")]
        for _ in range(3):
            completions.append(ask(client, messages, temperature=0.1, user="x"))
            messages += [said(completions[-1]), user(" a:")]
        again = ask(client, messages[:-2])
        assert again.id == completions[-1].id  # the same request gets the same answer
        result = {"reward": 0.75, "success": True, "metrics": {"length": 3}}
        reply = post(server, f"/episodes/{episode['lease']}/result", result)
        assert reply == {"counted": True}
        assert post(server, f"/episodes/{episode['lease']}/result", result) == {"counted": False}
        with pytest.raises(openai.ConflictError, match="has ended"):
            ask(client, messages)

    with serving() as server:
        trainer = remote_trainer(tiny, server)
        sampled, generate = [], trainer._generate_single_turn

        def remember(prefixes, *args, **kwargs):
            ids, logps = generate(prefixes, *args, **kwargs)
            sampled.append((prefixes[0], ids[0]))
            return ids, logps

        trainer._generate_single_turn = remember
        with agent(server, work):
            (one,) = play(trainer, ROWS.select([0]))["trajectory"]
    tokenizer = trainer.processing_class
    assert one.prompt_ids == tokenizer(text="abcc>")["input_ids"]
    between = tokenizer(text=" a:")["input_ids"]
    assert one.completion_ids == [*sampled[0][1], *between, *sampled[1][1], *between, *sampled[2][1]]
    assert sampled[2][0] == one.prompt_ids + one.completion_ids[: -len(sampled[2][1])]
    mask = torch.tensor(one.mask, dtype=torch.bool)
    assert mask.tolist() == [
        *[True] * len(sampled[0][1]),
        *[False] * 3,
        *[True] * len(sampled[1][1]),
        *[False] * 3,
        *[True] * len(sampled[2][1]),
    ]
    assert (torch.tensor(one.logprobs) - fresh_logps(trainer.model, one)).abs()[mask].max() <= 1e-4
    assert (one.rewards, one.success, one.terminated) == ([0.0, 0.0, 0.75], True, True)
    assert one.metrics["length"] == 3
    for completion, (prefix, ids) in zip(completions, sampled, strict=True):
        assert completion.choices[0].message.content == tokenizer.decode(ids, skip_special_tokens=True)
        ended = ids[-1] == tokenizer.eos_token_id
        assert completion.choices[0].finish_reason == ("stop" if ended else "length")
        assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (len(prefix), len(ids))
    assert (server.desk.ledger.counters.done, server.desk.ledger.counters.duplicates) == (1, 3)


def test_a_rewritten_history_and_what_cannot_be_answered_get_clear_errors(tiny):
    def work(episode, client):
        messages = [user("a>")]
        first = ask(client, messages, max_tokens=2, response_format={"type": "text"}, stream=False)
        assert first.usage.completion_tokens <= 2
        for wrong, status, words in (
            ([user("b>"), said(first), user("c")], 409, "message 1 is not what this episode has there"),
            ([user("a>"), {"role": "assistant", "content": "else"}, user("c")], 409, "message 2 is not"),
            ([user("a>"), said(first), user("c"), {"role": "assistant", "content": "I"}], 409, "did not write"),
            ([user("a>"), said(first)], 400, "no new message"),
        ):
            with pytest.raises(openai.APIStatusError, match=words) as error:
                ask(client, wrong)
            assert error.value.status_code == status
        for option, words in (
            ({"stream": True}, "stream: .*not supported: answers come whole"),
            ({"response_format": {"type": "json_object"}}, "response_format: .*not supported"),
            ({"n": 2}, "^Error code: 400.*n: "),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: .*not supported"),
        ):
            with pytest.raises(openai.BadRequestError, match=words):
                ask(client, [*messages, said(first), user("c")], **option)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(server, f"/episodes/{episode['lease']}/result", {"rewards": [1.0, 2.0]})
        post(server, f"/episodes/{episode['lease']}/result", {"rewards": [1.5]})

    with serving() as server, agent(server, work):
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    assert (one.rewards, one.turns) == ([1.5], 1)


@pytest.mark.parametrize(
    ("limits", "code", "turns", "truncated"),
    [
        ({"max_turns": 2}, "max_turns", 2, "max_turns"),
        ({"max_turn_tokens": 25}, "context_length_exceeded", 2, "context"),
    ],
)
def test_an_episode_without_room_ends_with_the_agents_result(tiny, limits, code, turns, truncated):
    def work(episode, client):
        messages = [user("a>")]
        for _ in range(turns):
            messages += [said(ask(client, messages)), user("bbb" * 4)]
        for _ in range(2):
            with pytest.raises(openai.BadRequestError) as error:
                ask(client, messages)
            assert error.value.code == code
        post(server, f"/episodes/{episode['lease']}/result", {"reward": 0.5, "success": False})

    with serving() as server, agent(server, work):
        trainer = remote_trainer(tiny, server, limits, config_options={"max_completion_length": 70})
        trainer.eos_token_ids, trainer.generation_config.eos_token_id = [], None  # each turn goes on to its limit
        (one,) = play(trainer, ROWS.select([0]))["trajectory"]
    assert (one.turns, one.truncated, one.terminated, one.reward, one.success) == (turns, truncated, False, 0.5, False)
    assert len(one.turn_ends) == turns
    assert sum(one.token_rewards) == 0.5


def test_an_agent_that_is_busy_says_so_and_one_that_is_silent_loses_its_episode():
    now = 0.0
    desk = Desk(Rules(silence=100.0), clock=lambda: now)
    agents = HttpAgents(desk)
    desk.ask([("row", {})], "env", 0)
    lease = agents.claim(ClaimRequest()).lease
    for _ in range(2):
        now += 90.0
        desk.sweep()
        agents.alive(lease)
    now += 101.0
    desk.sweep()
    with pytest.raises(Refusal, match=f"there is no lease {lease}, or it is over"):
        agents.alive(lease)
    again = agents.claim(ClaimRequest()).lease
    assert again != lease
    assert desk.ledger.held(again).agent_seconds == 0.0


def test_an_agent_gives_an_episode_back_and_another_plays_it(tiny):
    def work(episode, client):
        assert client.models.list().data[0].id == "policy"
        ask(client, [user("a>")])
        url = f"/episodes/{episode['lease']}/result"
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(server, url, {"returned": True, "reward": 1})
        assert post(server, url, {"returned": True}) == {"counted": False}
        with pytest.raises(openai.ConflictError, match="or it is over"):
            client.models.list()
        again = claimed(server)
        assert (again["id"], again["row"]) == (episode["id"], episode["row"])
        ask(client.with_options(base_url=again["base_url"]), [user("b>")])
        post(server, f"/episodes/{again['lease']}/result", {"reward": 1})

    with serving() as server, agent(server, work):
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    assert (one.messages[0]["content"], one.rewards) == ("b>", [1.0])
    assert (server.desk.ledger.counters.done, server.desk.ledger.counters.requeued) == (1, 1)


def test_an_agent_plays_through_a_reverse_proxy_under_a_path(tiny):
    def work(episode, client):
        assert episode["base_url"].startswith(outside + "team/rollouts/episodes/")
        ask(client, [user("a>")])
        with urllib.request.urlopen(outside + "team/rollouts/health", timeout=60) as reply:
            assert json.load(reply) == {"status": "ok"}
        post(server, f"/episodes/{episode['lease']}/result", {"reward": 1})

    with (
        kept_port() as port,
        serving(public_url=f"http://127.0.0.1:{port}/team/rollouts/") as server,
        loopback.serving(reverse_proxy("/team/rollouts/", server.url + "/"), port) as outside,
        agent(server, work),
    ):
        (one,) = play(remote_trainer(tiny, server), ROWS.select([0]))["trajectory"]
    assert one.rewards == [1.0]


def test_requests_outside_of_an_episode_are_answered_and_train_nothing(tiny):
    def work(episode, client):
        plain = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        assert plain.models.list().data[0].id == "policy"
        assert ask(plain, [user("a>")], max_tokens=3).usage.completion_tokens <= 3
        ask(client, [user("b>")])
        post(server, f"/episodes/{episode['lease']}/result", {"reward": 1})

    with serving() as server, agent(server, work):
        output = play(remote_trainer(tiny, server), ROWS.select([0]))
    assert [one.messages[0]["content"] for one in output["trajectory"]] == ["b>"]


def test_when_too_many_wait_for_the_policy_others_are_told_to_come_again(tiny):
    with serving(max_waiting=1, request_timeout=0.5) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        answers = []

        def first():
            try:
                ask(client, [user("a")])
            except openai.APIStatusError as error:
                answers.append(error)

        thread = threading.Thread(target=first)
        thread.start()
        until(lambda: server.desk.pendings)
        with pytest.raises(openai.RateLimitError, match="too many requests wait") as full:
            ask(client, [user("b")])
        assert full.value.response.headers["Retry-After"] == "1"
        thread.join()
        assert not server.desk.pendings, "nobody waits any more"
        assert not any(server.desk.runs(move) for move in server.desk._moves), "and the policy need not answer"
    assert [error.status_code for error in answers] == [503]


def test_a_script_with_the_openai_client_trains_the_policy(tiny, tmp_path):
    """It imports nothing of trl_ext; the run is two optimizer steps of 16 episodes."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import openai_agent; "
    code += "assert not any(name.startswith('trl_ext') for name in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean, cwd=tmp_path)
    rows = Dataset.from_list([{"prompt": "", "seed": seed} for seed in range(64)])
    options = {"max_completion_length": 60, "max_steps": 2, "per_device_train_batch_size": 16}
    with serving(token="secret-token") as server:
        trainer = remote_trainer(tiny, server, {"max_turns": 6}, rows=rows, config_options=options)
        command = [sys.executable, str(SCRIPT), server.url, "4", "secret-token"]
        script = subprocess.Popen(command, env=clean, cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:
            trainer.train()
        finally:
            script.kill()
            script.wait()
    log = trainer.state.log_history[0]
    assert log["episode/failed"] == 0
    assert 1 <= log["episode/turns"] == log["episode/turns_taken"] <= 6
    counters = server.desk.ledger.counters
    assert (counters.asked, counters.done) == (32, 32)
    assert [point.episodes for point in server.desk.board.series] == [16, 16]
    assert log["reward"] == pytest.approx(server.desk.board.series[0].reward, abs=1e-5)
