import pytest

from trl_ext.rewards.text import Extract, as_text, last_boxed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([], ""),
        (None, ""),
        (42, "42"),
    ],
)
def test_text_of_every_format(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("extract", "text", "found"),
    [
        ("think", "<think>2+2</think>\n4", "4"),
        ("think", "no thoughts", "no thoughts"),
        ("boxed", r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", r"\boxed{open", ""),
        ("boxed", "none", ""),
        ({"type": "tag", "tag": "answer"}, "<answer>1</answer> <answer> 2 </answer>", "2"),
        ({"type": "tag", "tag": "answer"}, "<answer>1", ""),
        ({"type": "regex", "pattern": r"answer: (\d+)"}, "answer: 1, answer: 2", "2"),
        ({"type": "regex", "pattern": r"\d+"}, "1 and 2", "2"),
        ({"type": "regex", "pattern": r"(a+)+$"}, "a" * 40 + "b", ""),
    ],
)
def test_extract_takes_the_last_one_and_nothing_if_it_is_not_there(extract, text, found):
    assert Extract.model_validate(extract)(text) == found


def test_braces_inside_a_box_are_balanced():
    assert last_boxed(r"\boxed{\{a{b}\}}") == r"\{a{b}\}"
