import csv
import json
import mailbox
from datetime import datetime
from email.message import EmailMessage

import pytest

from trl_ext.agents.environments.email_search.mail import Email, Question
from trl_ext.agents.environments.email_search.mail_files import read_mailbox, read_questions
from trl_ext.errors import DatasetError

ROW = {
    "id": "m1",
    "date": "2024-03-01 14:30",
    "sender": "a@a.org",
    "recipients": "b@b.org, c@c.org",
    "subject": "Hi",
    "body": "x",
}
MAIL = Email("m1", datetime(2024, 3, 1, 14, 30), "a@a.org", ("b@b.org", "c@c.org"), "Hi", "x")


def test_jsonl_and_csv_give_the_same_emails(tmp_path):
    lines, table = tmp_path / "mail.jsonl", tmp_path / "mail.csv"
    lines.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"recipients": ["b@b.org", "c@c.org"]}) + "\n")
    assert read_mailbox(lines) == [MAIL, MAIL]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW | {"body": 'two\nlines, and "quotes"'})
        writer.writerow(ROW | {"body": "long" * 50_000})
    assert [email.body for email in read_mailbox(table)] == ['two\nlines, and "quotes"', "long" * 50_000]


def test_an_mbox_is_read_with_its_headers_and_plain_or_html_text(tmp_path):
    box = mailbox.mbox(tmp_path / "mail.mbox")
    plain = EmailMessage()
    plain["Message-ID"], plain["From"], plain["To"], plain["Cc"] = (
        "<1@x>",
        "Ada <a@a.org>",
        "b@b.org, c@c.org",
        "d@d.org",
    )
    plain["Subject"], plain["Date"] = "Grüße", "Fri, 01 Mar 2024 14:30:00 +0100"
    plain.set_content("Guten Tag, Zoë")
    html = EmailMessage()
    html["Subject"] = "Only HTML"
    html.set_content("<p>Hello <b>you</b></p><style>p {}</style><script>no()</script><br>there", subtype="html")
    both = EmailMessage()
    both.set_content("plain")
    both.add_alternative("<p>html</p>", subtype="html")
    for message in (plain, html, both):
        box.add(message)
    box.add(b"Subject: broken\nContent-Type: text/plain; charset=no-such-charset\nDate: yesterday\n\ncaf\xe9\n")
    box.add(b"Content-Type: multipart/mixed>;\n\n\xff\xfe To: x:\xff\xfe\nbroken\n")
    box.flush()
    first, second, third, last, _ = read_mailbox(tmp_path / "mail.mbox")
    assert (first.message_id, first.sender, first.recipients) == (
        "<1@x>",
        "Ada <a@a.org>",
        ("b@b.org", "c@c.org", "d@d.org"),
    )
    assert (first.subject, first.body.strip(), first.date.hour) == ("Grüße", "Guten Tag, Zoë", 14)
    assert second.body.split() == ["Hello", "you", "there"]
    assert third.body.strip() == "plain"
    assert (last.subject, last.date) == ("broken", None)
    assert "caf" in last.body


def test_questions_have_aliases_and_sources(tmp_path):
    lines, table = tmp_path / "q.jsonl", tmp_path / "q.csv"
    lines.write_text(
        json.dumps({"question": "Who?", "answer": "Ada", "aliases": ["Ada A."], "sources": ["m1"]})
        + "\n"
        + json.dumps({"question": "Why?", "answer": None})
    )
    assert read_questions(lines) == [Question("Who?", "Ada", ("Ada A.",), ("m1",)), Question("Why?", None)]
    table.write_text("question,answer,aliases,sources\nWho?,Ada,Ada A.;A.,m1; m2\nWhy?,,,\n")
    assert read_questions(table) == [Question("Who?", "Ada", ("Ada A.", "A."), ("m1", "m2")), Question("Why?", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "", "must end in one of .mbox, .jsonl, .csv"),
        ("m.jsonl", "{\n", ":1: not JSON"),
        ("m.jsonl", json.dumps(ROW) + "\n[]\n", ":2: must be a JSON object"),
        ("m.jsonl", json.dumps(ROW | {"body": None}), ":1: 'body' must be text"),
        ("m.jsonl", json.dumps(ROW | {"date": "tomorrow"}), ":1: date 'tomorrow': must be ISO"),
        ("m.jsonl", json.dumps(ROW | {"recipients": 5}), ":1: recipients 5: must be a list, or text"),
        ("m.jsonl", json.dumps(ROW | {"date": "Mon, 01 Jan 2024 00:00:00 +99999999999999"}), "must be ISO"),
        ("m.csv", "sender,subject\na,b\n", ":2: 'body' must be text"),
        ("m.csv", "sender,subject\na,b,c\n", ":2: 'body' must be text"),
    ],
)
def test_bad_mailboxes_are_refused_with_file_and_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DatasetError) as refused:
        read_mailbox(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["none.mbox", "none.jsonl", "none.csv"])
def test_a_file_that_is_not_there_is_refused_and_not_made(tmp_path, name):
    with pytest.raises(DatasetError, match=name):
        read_mailbox(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_row_without_a_question_is_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": " "}))
    with pytest.raises(DatasetError, match=r"q.jsonl:1: 'question' must be text"):
        read_questions(path)
