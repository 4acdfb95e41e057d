import pytest

from trl_ext.errors import ConfigError
from trl_ext.rewards import list_rewards, make_reward, register_reward


def test_a_function_becomes_a_type_and_sees_text_whatever_the_format():
    seen = {}

    @register_reward("seen")
    def seen_reward(completions, target=None, prompts=None, **columns):
        seen.update(completions=completions, target=target, prompts=prompts, **columns)
        return [1.0] * len(completions)

    chat = [
        [{"role": "assistant", "content": "yes"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "no"}]}],
    ]
    prompts = [[{"role": "user", "content": "a?"}], [{"role": "user", "content": "b?"}]]
    reward = make_reward({"type": "seen", "target": "answer"})
    assert reward(chat, prompts=prompts, answer=["1", "2"], level=[3, 4], trainer_state=None, log_extra=None) == [
        1.0,
        1.0,
    ]
    assert seen == {
        "completions": ["yes", "no"],
        "target": ["1", "2"],
        "prompts": ["a?", "b?"],
        "answer": ["1", "2"],
        "level": [3, 4],
    }


def test_the_options_of_a_class_are_what_a_spec_may_contain():
    @register_reward("long_enough", aliases=("long",))
    class LongEnough:
        """1 from `least` characters on."""

        def __init__(self, least: int, strict: bool = False):
            self.least = least

        def __call__(self, completions: list[str]) -> list[float | None]:
            return [float(len(text) >= self.least) for text in completions]

    assert make_reward({"type": "long", "least": 3})(["ab", "abc"]) == [0.0, 1.0]
    assert "long_enough" in list_rewards()
    for spec, message in {
        "least: must be given": {},
        "least = 'x': input should be a valid integer": {"least": "x"},
        "leest: no such option of 'long_enough'; did you mean least": {"leest": 1},
    }.items():
        with pytest.raises(ConfigError, match=spec):
            make_reward({"type": "long_enough", **message})


def test_what_a_class_takes_beside_its_named_options_is_no_option():
    @register_reward("open_ended")
    class OpenEnded:
        def __init__(self, least: int = 1, *others, **more):
            self.least = least

        def __call__(self, completions):
            return [float(self.least)] * len(completions)

    assert make_reward({"type": "open_ended", "least": 3})(["a"]) == [3.0]
    with pytest.raises(ConfigError, match="more: no such option"):
        make_reward({"type": "open_ended", "more": 3})


def test_a_name_can_be_taken_once():
    register_reward("mine", aliases=("my_alias",))(lambda completions: [])
    for taken in ("mine", "my_alias", "exact_match", "weighted_sum"):
        with pytest.raises(ConfigError, match=f"reward type '{taken}' is registered already"):
            register_reward(taken)(lambda completions: [])


def test_an_unknown_type_lists_the_close_ones_or_all():
    with pytest.raises(ConfigError, match="no reward type 'exactmatch'; close ones: exact_match"):
        make_reward({"type": "exactmatch"})
    with pytest.raises(ConfigError, match="no reward type 'zzz'; there are: bertscore, bias, "):
        make_reward({"type": "zzz"})
