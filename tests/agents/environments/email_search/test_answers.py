import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.agents.environments.email_search.answers import same_answer, says_dont_know


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("eur 1250", "EUR 1,250.00"),
        ("1,250.50 EUR", "1250.5 EUR"),
        ("The Hotel Linden.", "hotel linden"),
        ("14th March, 2024", "14 March 2024"),
        ("10:00", "10:00"),
        ("malmö", "Malmo"),
        ("“Amber”", "amber"),
        ("€1,250", "1250 euros"),
        ("17.50 EUR", "EUR 17.50"),
        ("$5", "5 USD"),
        ("1\u2019250", "1250"),
    ],
)
def test_ways_to_write_the_same(given, right):
    assert same_answer(given, right)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("EUR 125", "EUR 1,250"),
        ("EUR 1.250", "EUR 1250"),  # a decimal point
        ("100", "1"),
        ("10", "1"),
        ("10:00", "1:00"),
        ("", "x"),
        ("Amber or Basalt", "Amber"),
        ("not Amber", "Amber"),
        ("EUR 1250", "USD 1250"),
        ("10.10", "10.1.0"),
    ],
)
def test_what_is_not_the_same(given, right):
    assert not same_answer(given, right)


def test_an_alias_counts_and_an_empty_one_does_not():
    assert same_answer("Ada", "Ada Abel", ("ada", "abel"))
    assert not same_answer("", "Ada Abel", ("",))
    assert not same_answer("?", "!", ())


@pytest.mark.parametrize(
    "answer", ["I don't know", "i don\u2019t know.", "Don't know!", "unknown", "", "The mailbox does not say"]
)
def test_ways_not_to_know(answer):
    assert says_dont_know(answer)


@pytest.mark.parametrize("answer", ["I don't know, maybe Amber", "Amber", "no"])
def test_an_answer_is_not_a_way_not_to_know(answer):
    assert not says_dont_know(answer)


@given(st.text(), st.text())
def test_any_text_can_be_compared(one, other):
    assert same_answer(one, other) == same_answer(other, one)
