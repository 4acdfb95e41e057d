from types import SimpleNamespace

import pytest

from tests.agents.talk import Talk
from trl_ext.agents.environment import Step
from trl_ext.agents.sampled_episode import Limits, SampledEpisode

EOS = 1
GO_ON, OVER = Step("ab", 0.5, False, False, {"success": True}), Step("ab", 1.0, True, False, {})


class Letters:
    """A renderer whose tokens are characters, with `EOS` beside them."""

    stop_tokens = frozenset([EOS])
    tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: "".join(
            map(chr, [token for token in ids if token != EOS] if skip_special_tokens else ids)
        )
    )

    def opening(self, prompt, messages):
        return messages, [ord(letter) for letter in messages[0]["content"]]

    def between(self, messages, ended):
        return [ord(letter) for letter in messages[0]["content"]]


def begun(max_turns=5, max_turn_tokens=3, max_tokens=10, context=100):
    episode = SampledEpisode({"prompt": ""}, Letters(), Limits(max_turns, max_turn_tokens, max_tokens, context), Talk())
    episode.open([{"role": "user", "content": "go"}])
    return episode


def text(letters):
    return [ord(letter) for letter in letters]


def test_a_turn_goes_on_until_it_ends_or_is_full():
    episode = begun()
    assert not episode.add(text("x"), [-1.0])
    assert episode.turn_room == 2
    assert episode.add(text("yzw"), [-2.0, -3.0, -4.0])  # of which there is room for two
    assert (episode.trajectory.completion_ids, episode.turn_room) == (text("xyz"), 0)
    other = begun()
    assert other.add([*text("x"), EOS], [-1.0, -2.0])


@pytest.mark.parametrize("limits", [{"max_tokens": 2}, {"context": 4}])
def test_a_turn_that_ends_with_the_last_token_there_is_room_for_is_an_action(limits):
    episode = begun(**limits)
    assert episode.add([*text("x"), EOS], [-1.0, -2.0])
    episode.answer(GO_ON)
    assert (episode.trajectory.turns, episode.trajectory.truncated) == (1, "context")
    cut = begun(**limits)
    assert not cut.add(text("xy"), [-1.0, -2.0])
    assert (cut.trajectory.turns, cut.trajectory.truncated) == (0, "context")
    assert cut.trajectory.messages[-1] == {"role": "assistant", "content": "xy"}


@pytest.mark.parametrize(("room", "truncated"), [(2, "context"), (3, "")])
def test_an_answer_is_read_only_where_a_turn_can_follow(room, truncated):
    episode = begun(max_tokens=3 + room)
    episode.add(text("xyz"), [-1.0] * 3)
    episode.answer(GO_ON)  # of two tokens
    assert episode.trajectory.truncated == truncated
    assert episode.trajectory.mask == [1, 1, 1] + ([] if truncated else [0, 0])


def test_an_opening_without_room_for_a_turn_is_cut_off_at_once():
    assert not begun(context=2).playing
    assert begun(context=3).playing


def test_the_environment_reads_no_special_tokens():
    episode = begun()
    episode.add([*text("x"), EOS], [-1.0, -2.0])
    episode.answer(OVER)
    assert episode.trajectory.messages[-2] == {"role": "assistant", "content": "x"}


def test_an_episode_that_fails_later_has_neither_success_nor_reward():
    episode = begun()
    episode.add(text("xyz"), [-1.0] * 3)
    episode.answer(GO_ON)
    assert episode.trajectory.success
    episode.add(text("x"), [-1.0])
    episode.fail(ValueError("it\nbroke"))
    one = episode.finish(0, 1.0)
    assert (one.success, one.reward, one.failure) == (None, None, "turn 2: ValueError: it broke")
    assert not episode.playing


def test_log_probabilities_that_the_engine_did_not_give_are_not_made_up():
    episode = begun()
    episode.add(text("xyz"), None)
    episode.answer(OVER)
    assert episode.finish(0, 1.0).logprobs is None


def test_an_episode_without_a_token_gets_one_that_does_not_count():
    episode = begun()
    episode.fail(OSError("gone"))
    one = episode.finish(7, 1.0)
    assert (one.completion_ids, one.mask, one.logprobs) == ([7], [0], [0.0])
