import asyncio
import hashlib
import json
import logging
import pickle
import random
import threading
from collections import Counter

import pytest

from tests.rewards.chat_server import in_order, verdict
from trl_ext.errors import RewardError
from trl_ext.rewards import chat_endpoint
from trl_ext.rewards.chat_endpoint import ChatEndpoint, Form, plain, sha256, summary

DEFAULTS = {"api_key_env": "OPENAI_API_KEY", "temperature": 0.5, "timeout": 60.0, "retries": 3, "concurrency": 16,
            "cache": None, "max_tokens": 9}  # fmt: skip


def number_in(reply):
    score = json.loads(reply)["score"]
    if score > 1:
        raise ValueError("the score is too high")
    return score


FORM = Form({"type": "json_object"}, number_in, "Answer with a number.")


def make(endpoint, **options):
    return ChatEndpoint(**{"model": "m", "base_url": endpoint.url, **DEFAULTS, **options})


def messages(text):
    return [{"role": "user", "content": text}]


def ask(chat, *texts, counts=None):
    return chat.ask_all(
        [lambda text=text: messages(text) for text in texts], FORM, Counter() if counts is None else counts
    )


def test_each_question_has_its_answer(endpoint):
    endpoint.answer = lambda body, number: verdict(float(body["messages"][0]["content"]))
    texts = [f"0.{number}" for number in range(20)]
    assert ask(make(endpoint), *texts) == [float(text) for text in texts]
    assert sorted(body["messages"][0]["content"] for body in endpoint.bodies) == sorted(texts)
    assert {**endpoint.bodies[0], "messages": None} == {
        "model": "m", "messages": None, "temperature": 0.5, "max_tokens": 9, "response_format": {"type": "json_object"}
    }  # fmt: skip
    assert ask(make(endpoint)) == []


def test_messages_are_made_when_their_turn_comes(endpoint):
    made = []

    def question(text):
        made.append(len(endpoint.bodies))
        return messages(text)

    chat = make(endpoint, concurrency=1)
    chat.ask_all([lambda text=text: question(text) for text in "abc"], FORM, Counter())
    assert made == [0, 1, 2]


@pytest.mark.parametrize(
    ("reply", "wrong"), [(verdict(7), "the score is too high"), ("hm", "Expecting value"), ("", "Expecting value")]
)
def test_a_reply_that_cannot_be_used_is_sent_back_once_with_what_is_wrong(endpoint, reply, wrong):
    endpoint.answer = in_order(reply, verdict(0.5))
    assert ask(make(endpoint), "x") == [0.5]
    first, second = (body["messages"] for body in endpoint.bodies)
    assert second[:1] == first
    assert second[1] == {"role": "assistant", "content": reply or "(nothing)"}
    assert second[2]["role"] == "user"
    assert wrong in second[2]["content"]
    assert "Answer with a number." in second[2]["content"]


def test_a_second_reply_that_cannot_be_used_gives_none(endpoint):
    endpoint.answer = in_order(verdict(7), verdict(8), verdict(1))
    chat = make(endpoint, concurrency=1)
    assert ask(chat, "x", "y") == [None, 1]
    assert (chat.unparsed, chat.requests) == (1, 3)


def test_what_was_used_is_counted_for_the_batch_and_in_all_also_where_it_raises(endpoint):
    endpoint.answer = in_order("hm", verdict(1), verdict(1), (400, "no", {}))
    chat, counts = make(endpoint), Counter()
    ask(chat, "x", counts=counts)
    assert summary(counts) == "2 requests, 0 cached, 0 unparsed, 20 prompt tokens, 6 completion tokens"
    ask(chat, "y", counts=counts)
    with pytest.raises(ConnectionError):
        ask(chat, "z", counts=counts)
    assert counts == {"requests": 4, "prompt_tokens": 30, "completion_tokens": 9}
    assert (chat.requests, chat.cached, chat.prompt_tokens, chat.completion_tokens) == (4, 0, 30, 9)


@pytest.mark.parametrize("failure", [(429, "slow down", {"Retry-After": "0"}), (503, "busy", {})])
def test_429_and_5xx_are_tried_again(endpoint, failure):
    endpoint.answer = in_order(failure, failure, verdict(1))
    assert ask(make(endpoint), "x") == [1.0]
    assert len(endpoint.bodies) == 3
    assert endpoint.bodies[0] == endpoint.bodies[2]


def test_500_until_the_retries_end_raises(endpoint):
    endpoint.answer = lambda body, number: (500, "out of memory", {})
    with pytest.raises(ConnectionError, match=r"HTTP 500: out of memory \(attempt 3 of 3\)"):
        ask(make(endpoint, retries=2), "x")
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize(
    "text", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "[1]", "[" * 9999]
)
def test_a_200_that_is_no_chat_completion_is_a_failure_of_the_endpoint(endpoint, text):
    endpoint.answer = in_order((200, text, {"raw": "yes"}), verdict(1))
    assert ask(make(endpoint), "x") == [1.0]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_other_statuses_raise_at_once(endpoint, status):
    endpoint.answer = lambda body, number: (status, "no", {})
    with pytest.raises(ConnectionError, match=rf"HTTP {status}: no \(attempt 1 of 4\)"):
        ask(make(endpoint), "x")
    assert len(endpoint.bodies) == 1


def test_a_dead_endpoint_raises_after_the_retries(endpoint):
    endpoint.close()
    with pytest.raises(ConnectionError, match=r"ConnectError.* \(attempt 3 of 3\)"):
        ask(make(endpoint, retries=2), "x")


def test_a_request_without_reply_ends_at_the_timeout(endpoint):
    endpoint.answer = lambda body, number: endpoint.released.wait(30) or verdict(1)
    with pytest.raises(ConnectionError, match=r"no reply in 0.2 s \(attempt 2 of 2\)"):
        ask(make(endpoint, timeout=0.2, retries=1), "x")


def test_the_timeout_is_for_the_whole_reply_and_not_for_each_read(endpoint):
    endpoint.answer = lambda body, number: (200, "{}", {"drip": "yes", "raw": "yes"})
    with pytest.raises(ConnectionError, match=r"no reply in 0.3 s"):
        ask(make(endpoint, timeout=0.3, retries=0), "x")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("2", 2), ("1e9", 60), ("-5", 0), ("nan", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
     ("Wed, 21 Oct 2915 07:28:00 GMT", 60)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_capped(header, seconds):
    assert chat_endpoint._seconds(header) == seconds


def test_retry_after_is_waited_for(endpoint, monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def record(seconds):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(chat_endpoint.asyncio, "sleep", record)
    endpoint.answer = in_order((429, "", {"Retry-After": "7"}), (500, "", {}), verdict(1))
    assert ask(make(endpoint), "x") == [1.0]
    waits = [seconds for seconds in waits if seconds]
    assert waits[0] == 7
    assert 0.001 <= waits[1] <= 0.003  # BACKOFF * 2 with a jitter of one half


def test_response_format_is_dropped_for_good_once_it_is_refused(endpoint):
    endpoint.answer = lambda body, number: (
        (400, "Unknown field: response_format", {}) if "response_format" in body else verdict(1)
    )
    chat = make(endpoint, concurrency=1, retries=0)
    assert ask(chat, "x", "y") == [1.0, 1.0]
    assert ["response_format" in body for body in endpoint.bodies] == [True, False, False]
    endpoint.answer = lambda body, number: (400, "response_format", {})  # no endless loop where it was not sent
    with pytest.raises(ConnectionError, match="HTTP 400"):
        ask(chat, "x")


def test_cached_replies_make_no_request(endpoint, tmp_path):
    folder = tmp_path / "new" / "cache"
    endpoint.answer = lambda body, number: verdict(0.25)
    assert ask(make(endpoint, cache=str(folder)), "x", "y") == [0.25, 0.25]
    assert len(endpoint.bodies) == 2
    again = make(endpoint, cache=str(folder))
    assert ask(again, "y", "x", "z") == [0.25] * 3
    assert (again.cached, again.requests) == (2, 1)
    expected = {
        hashlib.sha256(json.dumps(["m", body["messages"]]).encode()).hexdigest() + ".json" for body in endpoint.bodies
    }
    assert {file.name for file in folder.iterdir()} == expected  # and no file half written
    ask(make(endpoint, cache=str(folder), model="other"), "x")
    assert len(endpoint.bodies) == 4


def test_a_corrected_reply_is_cached_and_an_unusable_one_is_not(endpoint, tmp_path):
    endpoint.answer = in_order("hm", "hm", "hm", verdict(1))
    chat = make(endpoint, cache=str(tmp_path))
    assert ask(chat, "x") == [None]
    assert list(tmp_path.iterdir()) == []
    assert [ask(chat, "x") for _ in range(2)] == [[1.0], [1.0]]
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("damage", ["", '{"rep', "[]", '{"reply": 3}', '{"reply": "hm"}', "\x00"])
def test_a_damaged_cache_file_is_asked_for_anew(endpoint, tmp_path, damage):
    chat = make(endpoint, cache=str(tmp_path))
    ask(chat, "x")
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert ask(chat, "x") == [0.5]
    assert len(endpoint.bodies) == 2
    assert ask(chat, "x") == [0.5]
    assert len(endpoint.bodies) == 2


def test_no_more_requests_run_at_a_time_than_concurrency_allows(endpoint):
    together = threading.Barrier(3, timeout=20)

    def answer(body, number):
        together.wait()  # breaks unless three requests are here at the same time
        return verdict(1)

    endpoint.answer = answer
    assert ask(make(endpoint, concurrency=3, retries=0), *"abcdefghi") == [1.0] * 9
    assert endpoint.most_in_flight == 3


def test_the_key_is_sent_and_kept_out_of_cache_log_and_errors(endpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-very-secret\n")
    caplog.set_level(logging.DEBUG)
    chat = make(endpoint, api_key_env="MY_KEY", cache=str(tmp_path))
    ask(chat, "x")
    assert endpoint.keys == ["Bearer sk-very-secret"]
    endpoint.answer = lambda body, number: (401, "Bearer sk-very-secret is no key", {})
    with pytest.raises(ConnectionError, match=r"Bearer \*\*\* is no key") as caught:
        ask(chat, "y")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    (file,) = tmp_path.iterdir()
    assert "secret" not in file.read_text() + caplog.text


@pytest.mark.parametrize("key", ["sk-first\nsecret", "sk-sécret"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(endpoint, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(RewardError, match="environment variable OPENAI_API_KEY") as caught:
        ask(make(endpoint), "x")
    assert "sk-" not in str(caught.value)
    assert endpoint.bodies == []


def test_without_the_variable_no_key_is_sent(endpoint):
    ask(make(endpoint), "x")
    assert endpoint.keys == [None]


@pytest.mark.parametrize("usage", ["null", "{}", '{"prompt_tokens": null}'])
def test_an_endpoint_that_counts_no_tokens_is_no_failure(endpoint, usage):
    message = json.dumps({"message": {"content": verdict(1)}})
    endpoint.answer = lambda body, number: (200, f'{{"choices": [{message}], "usage": {usage}}}', {"raw": "yes"})
    assert ask(make(endpoint), "x") == [1.0]


def test_it_works_where_an_event_loop_runs(endpoint):
    async def notebook():
        return ask(make(endpoint), "x", "y")

    assert asyncio.run(notebook()) == [0.5, 0.5]


def test_the_event_loop_of_the_thread_is_left_alone(endpoint):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        ask(make(endpoint), "x")
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_the_global_random_state_is_left_alone(endpoint, tmp_path):
    endpoint.answer = in_order((500, "", {}), verdict(1))
    random.seed(3)
    before = random.getstate()
    ask(make(endpoint, cache=str(tmp_path)), "x")
    assert random.getstate() == before


def test_text_is_cut_in_the_middle_and_can_be_decoded_anywhere():
    half = chat_endpoint.MAX_CHARACTERS // 2
    assert plain("a" * half + "b" * 7 + "c" * half) == "a" * half + "\n[... 7 characters left out ...]\n" + "c" * half
    assert plain("a" * 2 * half) == "a" * 2 * half
    assert plain("\ud83d\ude42 \ud800 \x00") == "🙂 \ufffd \x00"


def test_a_name_is_that_of_the_value():
    assert sha256(["a", 1]) == sha256(["a", 1]) != sha256(["a", 2])


def test_it_pickles(endpoint):
    assert ask(pickle.loads(pickle.dumps(make(endpoint))), "x") == [0.5]
