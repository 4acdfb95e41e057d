import pytest

from trl_ext.serving.chat import ChatCompletion, ChatMessage, Choice, Reply, Usage
from trl_ext.serving.conversation import Conversation
from trl_ext.serving.refusal import Refusal


def answer(text):
    choice = Choice(message=Reply(content=text), finish_reason="stop")
    return ChatCompletion(
        model="m", choices=[choice], usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    )


def given(*pairs):
    return [ChatMessage(role=role, content=content) for role, content in pairs]


SYSTEM, ASKED, SAID, NEXT = ("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")


@pytest.fixture
def one():
    conversation = Conversation()
    new = conversation.new_in(given(SYSTEM, ASKED))
    assert [message["content"] for message in new] == ["be brief", "hi"]
    conversation.answer(new, answer("hello"))
    return conversation


def test_only_what_is_new_is_taken(one):
    assert one.new_in(given(SYSTEM, ASKED, SAID, NEXT)) == [{"role": "user", "content": "bye"}]
    more = given(SYSTEM, ASKED, SAID, ("tool", "42"), NEXT)
    assert [message["role"] for message in one.new_in(more)] == ["tool", "user"]


def test_the_last_request_may_be_sent_again(one):
    assert one.new_in(given(SYSTEM, ASKED)) is None


def test_white_space_around_the_policys_words_and_blocks_of_text_do_not_matter(one):
    assert one.new_in(given(SYSTEM, ASKED, ("assistant", " hello\n"), NEXT)) is not None
    blocks = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert one.new_in(given(SYSTEM, ("user", blocks), SAID, NEXT)) is not None


@pytest.mark.parametrize(
    ("messages", "status", "words"),
    [
        ([SYSTEM, ("user", "hi "), SAID, NEXT], 409, "message 2 is not"),
        ([ASKED, SAID, NEXT], 409, "message 1 is not"),
        ([SYSTEM, ASKED, ("assistant", "hello?"), NEXT], 409, "message 3 is not"),
        ([SYSTEM, ASKED, NEXT], 409, "message 3 is not"),
        ([SYSTEM], 409, "message 2 is not"),
        ([SYSTEM, ASKED, SAID], 400, "no new message"),
        ([SYSTEM, ASKED, SAID, NEXT, ("assistant", "mine")], 409, "did not write"),
    ],
)
def test_a_history_that_was_rewritten_is_refused(one, messages, status, words):
    with pytest.raises(Refusal, match=words) as refusal:
        one.new_in(given(*messages))
    assert refusal.value.status == status
    assert one.new_in(given(SYSTEM, ASKED, SAID, NEXT)), "and the episode can go on"


def test_an_example_by_the_assistant_may_begin_a_conversation():
    assert len(Conversation().new_in(given(SYSTEM, ASKED, SAID, NEXT))) == 4
