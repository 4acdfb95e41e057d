import re

import pytest

from trl_ext.agents.environments.email_search.answers import same_answer
from trl_ext.agents.environments.email_search.synthetic import synthetic_mailbox
from trl_ext.errors import ConfigError


def test_the_same_seed_gives_the_same_mailbox_and_another_seed_another():
    synthetic_mailbox.cache_clear()
    first = synthetic_mailbox(seed=1)
    synthetic_mailbox.cache_clear()
    assert synthetic_mailbox(seed=1) == first
    assert synthetic_mailbox(seed=2)[1] != first[1]


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_stands_in_its_source_and_in_no_other_email_of_its_thread(seed):
    emails, questions = synthetic_mailbox(seed=seed)
    by_id = {email.message_id: email for email in emails}
    assert len(by_id) == len(emails) == 3000
    for question in questions:
        if question.answer is None:
            assert question.sources == question.aliases == ()
            continue
        (source,) = (by_id[message_id] for message_id in question.sources)
        assert question.answer in source.body
        assert all(same_answer(alias, question.answer, question.aliases) for alias in question.aliases)
        thread = source.subject.removeprefix("Re: ")
        others = [email for email in emails if email.subject.endswith(thread) and email is not source]
        if "trip" in thread:  # more people travel to this city
            others = [email for email in others if email.recipients == source.recipients]
        if "supplier" not in question.question:  # that one was on the shortlist
            assert not any(question.answer in email.body for email in others)


def test_questions_differ_and_about_one_in_seven_has_no_answer():
    _, questions = synthetic_mailbox()
    assert len({question.question for question in questions}) == len(questions) > 300
    share = sum(question.answer is None for question in questions) / len(questions)
    assert 0.1 < share < 0.2


def test_what_has_no_answer_is_nowhere_in_the_mailbox():
    emails, questions = synthetic_mailbox()
    for question in questions:
        if question.answer is None and "INV-" in question.question:
            number = re.search(r"INV-\d+", question.question)[0]
            assert not any(number in email.body + email.subject for email in emails)
        elif question.answer is None and "hotel" in question.question:
            person, city = re.match(r"At which hotel does (.+) stay in (\w+)\?", question.question).groups()
            booked = [email for email in emails if email.subject == f"Your trip to {city}"]
            assert not any(person in " ".join(email.recipients) for email in booked)


def test_an_answer_in_a_thread_comes_after_what_it_answers():
    emails, _ = synthetic_mailbox()
    dates = [email.date for email in emails]
    assert dates == sorted(dates)
    first = {}
    for email in emails:
        first.setdefault(email.subject, email.date)
    replies = [email for email in emails if email.subject.startswith("Re: Budget")]
    assert replies
    assert all(first[email.subject.removeprefix("Re: ")] < email.date for email in replies)


def test_too_few_emails_are_refused():
    with pytest.raises(ConfigError, match="emails = 10: must be at least"):
        synthetic_mailbox(emails=10)
