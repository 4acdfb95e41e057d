import asyncio
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.agents.environment import begin, take_turn
from trl_ext.agents.environments.email_search import EmailSearch, MailIndex, Question
from trl_ext.agents.environments.email_search.index import Found
from trl_ext.agents.environments.email_search.mail import Email
from trl_ext.agents.environments.email_search.scoring import Outcome, art_e_reward, results_reward
from trl_ext.agents.players import Episode
from trl_ext.errors import ActionError, ConfigError, DatasetError, EnvironmentStepError

EMAILS = [
    Email("a", None, "Ada", ("Bela",), "Lunch", "We meet at noon in the Amber room."),
    Email("b", None, "Bela", ("Ada",), "Re: Lunch", "Make it one o'clock."),
    Email("c", None, "Carla", ("Ada",), "Invoice", "The lunch was EUR 17.50."),
]
QUESTIONS = [
    Question("How much was the lunch?", "EUR 17.50", ("17.5",), ("c",)),
    Question("Who paid for the lunch?", None),
]


@pytest.fixture(scope="module")
def index():
    return MailIndex(EMAILS)


def call(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


def play(environment, replies, question=0):
    """The steps of an episode with these replies."""

    async def run():
        await begin(environment, {**vars(environment.questions[question])})
        return [await take_turn(environment, reply) for reply in replies]

    return asyncio.run(run())


def rewards(environment, *replies, **options):
    return [pytest.approx(step.reward) for step in play(environment, replies, **options)]


def results_of(player, environment):
    """The success of a player on every question."""
    successes = []
    for number, row in enumerate(environment.rows(len(environment.questions))):
        episode = Episode(number, environment)
        environment.reset(**row)
        over = False
        while not over:
            step = asyncio.run(take_turn(environment, player.act([episode])[0]))
            episode.trajectory.rewards.append(step.reward)
            assert "invalid" not in step.info
            over = step.terminated or step.truncated
        successes.append(step.info["success"])
    return successes


@pytest.mark.parametrize("seed", range(2))
def test_the_gold_searcher_answers_all_questions(seed):
    assert all(results_of(EmailSearch.players["scripted"](0), EmailSearch(seed=seed)))


def test_the_gold_searcher_selects_the_source_of_every_question():
    assert all(results_of(EmailSearch.players["scripted"](0), EmailSearch(task="select")))


def test_keywords_answer_some_questions_and_chance_few():
    environment = EmailSearch(split="test")
    by_keywords = results_of(EmailSearch.players["keywords"](0), environment)
    by_chance = results_of(EmailSearch.players["random"](0), environment)
    assert sum(by_chance) / len(by_chance) < 0.2 < 0.4 < sum(by_keywords) / len(by_keywords) < 0.9


def test_an_episode_by_hand(index):
    replies = [call("search", query="lunch"), call("read", number=3), call("answer", answer="17 eur", sources=[3])]
    search, read, answer = play(EmailSearch(index, [QUESTIONS[0]], max_turns=10), replies)
    assert search.observation.splitlines()[0].startswith("[")
    assert "Carla: Invoice | The lunch was EUR 17.50." in search.observation
    assert read.observation.endswith("Subject: Invoice\n\nThe lunch was EUR 17.50.")
    assert (search[2:4], read[2:4], answer[2:4]) == ((False, False), (False, False), (True, False))
    assert not answer.info["success"]
    right = play(EmailSearch(index, [QUESTIONS[0]]), [call("answer", answer="17.5", sources=[3])])[0]
    assert right.info["success"]
    assert right.info["sources_right"]


def test_the_rewards_of_the_turns_add_up_to_the_reward_of_art_e(index):
    environment = EmailSearch(index, [QUESTIONS[0]], max_turns=10)
    search, read = call("search", query="lunch"), call("read", number=3)
    right, wrong = call("answer", answer="17.5", sources=[3]), call("answer", answer="18", sources=[3])
    unsure = call("answer", answer="I don't know", sources=[])
    total = 1 + 0.3 + 0.1 + 0.1 * (1 - 3 / 10)
    assert rewards(environment, search, read, right) == [0.1, 0.1, total - 0.2]
    assert rewards(environment, search, read, wrong) == [0.1, 0.1, -1 + 0.1]
    assert rewards(environment, search, search, unsure) == [0.1, 0.0, 0.0]
    assert rewards(environment, wrong) == [-0.9]
    assert rewards(environment, call("search", query="zebra")) == [0.0]


def test_not_to_know_is_right_only_where_the_mailbox_does_not_say(index):
    environment = EmailSearch(index, QUESTIONS)
    unsure = call("answer", answer="I don't know.", sources=[])
    assert not play(environment, [unsure], question=0)[0].info["success"]
    assert play(environment, [unsure], question=1)[0].info["success"]
    assert not play(environment, [call("answer", answer="Ada", sources=[1])], question=1)[0].info["success"]


def test_art_e_ranks_right_above_not_knowing_above_wrong():
    seen = Outcome(found=True, read=True, sources_right=True, cited=1)

    def worth(**changes):
        return art_e_reward(Outcome(**{**vars(seen), **changes}), turns=5, max_turns=10)

    right, two_sources = worth(correct=True, dont_know=False), worth(correct=True, dont_know=False, cited=2)
    assert right == pytest.approx(1 + 0.3 + 0.1 + 0.05)
    assert two_sources == pytest.approx(right - 0.05)
    assert worth(correct=True, dont_know=False, sources_right=False) == pytest.approx(1.05)
    assert worth(correct=False, dont_know=True) == pytest.approx(0.3)
    assert worth(correct=False, dont_know=False) == pytest.approx(-0.7)
    assert art_e_reward(Outcome(correct=False, dont_know=True), 1, 10) > worth(correct=False, dont_know=False)
    assert art_e_reward(Outcome(correct=True, cited=1), 10, 10) > worth(correct=False, dont_know=True)


def test_results_are_worth_their_relevance_and_their_senders():
    found = [Found(1, "", "", "", "Ada", "", "Lunch", ""), Found(2, "", "", "", "Bela", "", "Re: Lunch", "")]
    assert results_reward("lunch", []) == -0.1
    # lunch: once in the first, twice in the second; two senders
    assert results_reward("lunch", [(found[0], "at noon"), (found[1], "lunch")]) == pytest.approx(0.1 * 1.5 + 0.02)
    assert results_reward("a", [(found[0], "a" * 100)]) == 1.0


def test_searching_on_for_the_same_results_pays_nothing(index):
    environment = EmailSearch(index, [QUESTIONS[0]], reward="results")
    lunch, none = call("search", query="lunch"), call("search", query="zebra")
    # of "lunch": 1 + 1 + 1 occurrences in three e-mails of three senders
    assert rewards(environment, lunch, lunch, none, call("read", number=1)) == [0.13, 0.0, -0.1, 0.0]
    assert rewards(environment, call("answer", answer="17.5", sources=[])) == [1.0]
    assert rewards(environment, call("answer", answer="18", sources=[])) == [-1.0]
    assert rewards(environment, call("answer", answer="unknown", sources=[])) == [0.0]


def test_a_filter_narrows_the_last_search(index):
    environment = EmailSearch(index, [QUESTIONS[0]])
    steps = play(
        environment, [call("search", query="lunch"), call("filter", sender="carla"), call("filter", sender="x")]
    )
    assert [len(step.observation.splitlines()) for step in steps] == [3, 1, 1]
    assert steps[2].observation == "No e-mail found."


def test_an_email_is_selected(index):
    environment = EmailSearch(index, QUESTIONS, task="select")
    assert environment.questions == [QUESTIONS[0]]
    assert play(environment, [call("select", number=3)])[0].info["success"]
    assert not play(environment, [call("select", number=1)])[0].info["success"]
    assert [tool.__name__ for tool in environment.tools] == ["search", "filter", "read", "select"]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("hello", "Reply with one tool call"),
        (call("delete", number=1), "There is no tool 'delete'; the tools are: search, filter, read, answer."),
        (call("read"), "read: missing a required argument: 'number'."),
        (call("read", number=9), "There is no e-mail 9; they are numbered from 1 to 3."),
        (call("read", number="one"), "'one' is not the number of an e-mail."),
        (call("read", number=True), "'True' is not the number of an e-mail."),
        (call("read", number=-1), "'-1' is not the number of an e-mail."),
        (call("filter", after="yesterday"), "'yesterday' is not a day: write it as 2024-01-31."),
        (call("answer", answer="x", sources=["a"]), "'a' is not the number of an e-mail."),
        (call("search", text="x"), "search: missing a required argument: 'query'."),
        (call("search", query="x", limit=3), "search: got an unexpected keyword argument 'limit'."),
    ],
)
def test_what_is_wrong_with_a_call_is_told_and_costs_a_turn(index, reply, message):
    environment = EmailSearch(index, QUESTIONS, max_turns=2)
    first, second = play(environment, [reply, reply])
    assert message in first.observation
    assert first[1:4] == (-0.1, False, False)
    assert first.info["success"] is False
    assert second.truncated


def test_numbers_may_be_written_as_text(index):
    steps = play(
        EmailSearch(index, QUESTIONS), [call("read", number="3"), call("answer", answer="17.5", sources="[3]")]
    )
    assert steps[1].info["sources_right"]


@given(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_no_arguments_break_a_step(text, value):
    environment = EmailSearch(_shared(), QUESTIONS, max_turns=100)
    replies = [call("search", query=text), call("filter", sender=text, after=text), call("filter", subject=value)]
    replies += [call("read", number=value), text, call("answer", answer=value, sources=value)]
    for step in play(environment, replies):
        assert isinstance(step.observation, str)


_SHARED = []


def _shared():
    if not _SHARED:
        _SHARED.append(MailIndex(EMAILS))
    return _SHARED[0]


def test_a_judge_decides_in_place_of_words(index):
    asked = []

    def judge(*answer):
        asked.append(answer)
        return True

    reply = [call("answer", answer="seventeen and a half", sources=[3])]
    assert play(EmailSearch(index, QUESTIONS, judge=judge), reply)[0].info["success"]
    assert asked == [("How much was the lunch?", "EUR 17.50", "seventeen and a half")]
    with pytest.raises(EnvironmentStepError, match="no verdict"):
        play(EmailSearch(index, QUESTIONS, judge=lambda *answer: None), reply)


def test_rows_ask_each_question_once_before_they_begin_anew():
    environment = EmailSearch()
    count = len(environment.questions)
    rows = environment.rows(count + 3)
    assert len({row["question"] for row in rows[:count]}) == count
    assert rows[count:] == rows[:3]
    assert environment.rows(5, seed=1) != rows[:5]
    assert environment.reset(**rows[0]).endswith(rows[0]["question"])
    assert environment.reset(seed=3) == environment.reset(seed=3)


def test_train_and_test_questions_differ_and_are_all_there_is():
    train, test, both = (set(EmailSearch(split=split).questions) for split in ("train", "test", "all"))
    assert train | test == both
    assert not train & test
    assert len(train) > 3 * len(test)


def test_the_first_observation_explains_the_tools_unless_told_not_to(index):
    assert '{"name": "select"' in EmailSearch(index, QUESTIONS, task="select").reset(seed=0)
    assert '{"name": "answer"' in EmailSearch(index, QUESTIONS).reset(seed=0)
    assert EmailSearch(index, [QUESTIONS[0]], explain=False).reset(seed=0) == "Question: How much was the lunch?"


@pytest.mark.parametrize("task", ["answer", "select"])
def test_an_example_shows_calls_that_the_environment_takes_before_the_question(index, task):
    environment = EmailSearch(index, [QUESTIONS[0]], task=task, example=True)
    said = environment.reset(seed=0)
    assert [message["role"] for message in said] == ["user", "assistant"] * 3 + ["user"]
    assert said[0]["content"].startswith(
        EmailSearch(index, [QUESTIONS[0]], task=task).reset(seed=0).split("Question")[0]
    )
    assert said[-1]["content"].endswith("Question: How much was the lunch?")
    calls = [environment.parser.parse(message["content"]) for message in said[1::2]]
    assert [made["name"] for made in calls] == ["search", "read", task]
    for made in calls:
        inspect.signature(getattr(environment, made["name"])).bind(**made["arguments"])
    bare = EmailSearch(index, [QUESTIONS[0]], example=True, explain=False).reset(seed=0)
    assert bare[0]["content"] == "Question: Which day is the picnic?"


def test_a_users_mailbox_and_questions_come_from_files(tmp_path):
    mail, questions = tmp_path / "mail.csv", tmp_path / "questions.jsonl"
    mail.write_text("id,sender,subject,body\nx1,Ada,Keys,The keys are under the mat.\n")
    questions.write_text(json.dumps({"question": "Where are the keys?", "answer": "under the mat", "sources": ["x1"]}))
    environment = EmailSearch(str(mail), str(questions))
    steps = play(environment, [call("search", query="keys"), call("answer", answer="under the mat", sources=[1])])
    assert steps[1].info["success"]
    assert EmailSearch(str(mail), str(questions)).index is environment.index  # made once
    questions.write_text(json.dumps({"question": "Where are the keys?", "answer": "x", "sources": ["x2"]}))
    with pytest.raises(DatasetError, match="source 'x2'"):
        EmailSearch(str(mail), str(questions)).reset(seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split = 'dev'"),
        ({"task": "find"}, "task = 'find'"),
        ({"reward": "x"}, "reward = 'x'"),
        ({"results": 0}, "results = 0"),
        ({"max_turns": 0}, "max_turns = 0"),
        ({"questions": QUESTIONS}, "questions: given without a mailbox"),
        ({"mailbox": "mail.mbox"}, "mailbox: needs questions"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EmailSearch(**options)


@pytest.mark.parametrize("action", [None, "search", {}, {"name": "search"}, {"name": "search", "arguments": 3}])
def test_what_another_parser_makes_is_no_tool_call(index, action):
    with pytest.raises(ActionError, match="Reply with one tool call"):
        EmailSearch(index, QUESTIONS).step(action)


def test_a_tool_that_the_task_does_not_have_is_refused(index):
    with pytest.raises(ActionError, match="no tool 'select'"):
        EmailSearch(index, QUESTIONS).step({"name": "select", "arguments": {"number": 1}})
