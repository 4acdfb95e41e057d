import sqlite3
import threading
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.agents.environments.email_search.index import Filter, MailIndex
from trl_ext.agents.environments.email_search.mail import Email
from trl_ext.agents.environments.email_search.synthetic import synthetic_mailbox
from trl_ext.errors import DatasetError

EMAILS = [
    Email(
        "<1>", datetime(2024, 1, 5, 9), "Ada Abel <ada@a.org>", ("Bela <b@b.org>",), "Invoice 17", "The total is 5 EUR."
    ),
    Email("<2>", datetime(2024, 2, 1, 8), "Bela <b@b.org>", ("Ada Abel <ada@a.org>",), "Re: Invoice 17", "It is paid."),
    Email("<3>", None, "Émile ÖZ", (), "Lunch", "Shall we have lunch? An invoice is no lunch."),
    Email("<4>", datetime(2024, 2, 1, 9), "x\ud800y", ("a\0b",), "\ud800", "100% _ sure; DROP TABLE email; --"),
]


@pytest.fixture(scope="module")
def index():
    return MailIndex(EMAILS)


def numbers(results):
    return {found.number for found in results[0]}


def test_words_are_found_in_subject_body_sender_and_recipients(index):
    assert numbers(index.search("invoices total")) == {1}  # the stem, in subject and body
    assert numbers(index.search("ada")) == {1, 2}
    assert numbers(index.search("emile")) == {3}  # without accents
    assert index.search("nothing of this") == ([], True)


def test_all_words_come_first_and_some_of_them_where_no_email_has_all(index):
    found, complete = index.search("invoice lunch")
    assert ([one.number for one in found], complete) == ([3], True)
    found, complete = index.search("invoice elephants")
    assert (sorted(one.number for one in found), complete) == ([1, 2, 3], False)


def test_filters_narrow_a_search(index):
    assert numbers(index.search("invoice", Filter(sender="ABEL"))) == {1}
    assert numbers(index.search("invoice", Filter(recipient="ada@"))) == {2}
    assert numbers(index.search("invoice", Filter(subject="re:"))) == {2}
    assert numbers(index.search("invoice", Filter(after=date(2024, 2, 1)))) == {2}
    assert numbers(index.search("invoice", Filter(before=date(2024, 1, 5)))) == {1}
    assert numbers(index.search("", Filter(sender="öz"))) == {3}
    assert numbers(index.search("invoice", Filter(sender="%"))) == set()  # no wildcard
    assert numbers(index.search("", Filter(after=date(2024, 1, 5), before=date(2024, 2, 1)))) == {1, 2, 4}


def test_a_query_without_words_finds_the_newest(index):
    assert [found.number for found in index.search("?!", limit=2)[0]] == [4, 2]


def test_an_email_is_read_by_its_number(index):
    found, body = index.read(1)
    assert (found.message_id, found.day, found.clock, body) == ("<1>", "2024-01-05", "09:00", "The total is 5 EUR.")
    assert index.read(0) is None
    assert index.read(10**30) is None
    assert index.numbers(["<2>", "<1>"]) == [2, 1]
    with pytest.raises(DatasetError, match="'<9>'"):
        index.numbers(["<9>"])


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "'",
        'a AND NOT "b',
        "NEAR(a b",
        "subject:x",
        "^a + *",
        "x'; DROP TABLE email; --",
        "-a",
        "_",
        "²",
        "a" * 10**6,
    ],
)
def test_full_text_syntax_and_sql_in_a_query_are_only_words(index, query):
    index.search(query, Filter(sender=query, recipient=query, subject=query))
    index.search(query)
    assert index.read(1) is not None


@given(st.text(), st.text())
def test_no_text_breaks_a_search_or_changes_the_mailbox(query, part):
    index = _shared()
    found, _ = index.search(query, Filter(subject=part))
    assert {one.number for one in found} <= {1, 2, 3, 4}
    assert index.search(f'"{query}" OR {part}')
    assert [index.read(number)[0].message_id for number in (1, 2, 3, 4)] == ["<1>", "<2>", "<3>", "<4>"]


_SHARED = []


def _shared():
    if not _SHARED:
        _SHARED.append(MailIndex(EMAILS))
    return _SHARED[0]


def test_the_connection_cannot_write(index):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        index._rows("DELETE FROM email", ())
    assert index.read(1) is not None


def test_threads_search_at_the_same_time():
    emails, questions = synthetic_mailbox()
    index = MailIndex(emails)
    asked = [question.question for question in questions[:40]]
    alone = [index.search(question) for question in asked]
    results, errors = {}, []

    def work(name):
        try:
            results[name] = [index.search(question) for question in asked]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(results.values()) == [alone] * 8
    assert index._idle.qsize() <= 8


def test_the_temporary_file_goes_with_the_index_and_a_named_one_stays(tmp_path):
    index = MailIndex(EMAILS)
    path = index.path
    assert path.is_file()
    del index
    assert not path.exists()
    MailIndex(EMAILS, tmp_path / "mail.sqlite")
    assert (tmp_path / "mail.sqlite").is_file()


def test_an_empty_mailbox_is_refused():
    with pytest.raises(DatasetError, match="mailbox is empty"):
        MailIndex([])
