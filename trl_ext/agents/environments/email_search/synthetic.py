"""A mailbox of an invented office, and questions about it, made from a seed: nothing is downloaded."""

import random
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache

from trl_ext.agents.environments.email_search import synthetic_words as words
from trl_ext.agents.environments.email_search.mail import Email, Question
from trl_ext.errors import ConfigError

_FIRST_DAY = date(2024, 1, 8)
_DAYS = 480


@lru_cache(maxsize=4)
def synthetic_mailbox(emails: int = 3000, seed: int = 0) -> tuple[tuple[Email, ...], tuple[Question, ...]]:
    """So many e-mails in the order of their dates, and some 380 questions, of which about one in seven has no answer.

    The facts are in threads: a meeting is called, then moved; a budget is asked for, then granted otherwise. A question
    is after what holds in the end. The rest is small talk of the same people about the same projects.

    Raises:
        ConfigError: fewer e-mails than hold the facts.
    """
    office = _Office(random.Random(seed))
    for tell in (
        office.invoices,
        office.meetings,
        office.leads,
        office.deadlines,
        office.budgets,
        office.trips,
        office.purchases,
    ):
        tell()
    facts = len(office.emails)
    if emails < facts:
        raise ConfigError(f"emails = {emails}: must be at least {facts}, the e-mails that hold the facts")
    for _ in range(emails - facts):
        office.small_talk()
    ordered = sorted(office.emails, key=lambda email: (email.date, email.message_id))
    office.rng.shuffle(office.questions)
    return tuple(ordered), tuple(office.questions)


class _Office:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.emails: list[Email] = []
        self.questions: list[Question] = []
        lasts = rng.sample(words.LAST_NAMES, len(words.FIRST_NAMES))
        self.people = [f"{first} {last}" for first, last in zip(words.FIRST_NAMES, lasts, strict=True)]

    def invoices(self) -> None:
        numbers = self.rng.sample(range(1000, 9999), 100)
        orders = self.rng.sample([(vendor, goods) for vendor in words.VENDORS for goods in words.GOODS], 100)
        for index, (number, (vendor, goods)) in enumerate(zip(numbers, orders, strict=True)):
            if index >= 80:  # these were never sent
                self._ask(f"What is the total of invoice INV-{number}?", None)
                continue
            buyer, day, cents = self._person(), self._day(), self.rng.randrange(4000, 2_000_000)
            due = day + timedelta(days=self.rng.choice([14, 21, 30, 45]))
            amount = f"EUR {cents // 100:,}.{cents % 100:02}"
            subject = f"Invoice INV-{number}"
            sent = self._send(
                day, _accounts(vendor), [buyer], subject,
                f"Dear {_first(buyer)},\n\nplease find attached invoice INV-{number} for {goods}. "
                f"The total is {amount}, payable by {_spoken(due)}.\n\nKind regards\n{vendor}",
            )  # fmt: skip
            self._send(
                day + timedelta(days=1), buyer, [self._person()], f"Fwd: {subject}",
                f"Can you pay this one? It is for {goods}, from {vendor}. I checked the delivery.\n\n{_first(buyer)}",
            )  # fmt: skip
            if self.rng.random() < 0.4:
                self._send(
                    due + timedelta(days=3), _accounts(vendor), [buyer], f"Reminder: INV-{number}",
                    f"Dear {_first(buyer)},\n\nwe have not yet received the payment of invoice INV-{number}. "
                    f"Please ignore this if it has crossed with yours.\n\n{vendor}",
                )  # fmt: skip
            if index % 3 == 0:
                self._ask(f"What is the total of invoice INV-{number}?", amount, _amounts(cents), sent)
            elif index % 3 == 1:
                self._ask(f"How much did {vendor} charge for {goods}?", amount, _amounts(cents), sent)
            else:
                self._ask(f"By when must invoice INV-{number} of {vendor} be paid?", _spoken(due), _dates(due), sent)

    def meetings(self) -> None:
        slots = self._pairs(words.PROJECTS, words.MEETINGS, 100)
        for index, (project, kind) in enumerate(slots):
            if index >= 88:
                self._ask(f"In which room is the {kind} of project {project}?", None)
                continue
            host, guests, day = self._person(), self.rng.sample(self.people, 4), self._day()
            held = day + timedelta(days=self.rng.randrange(5, 20))
            (first, last), (room, other_room) = self._two(words.TIMES), self._two(words.ROOMS)
            subject = f"{project}: {kind}"
            sent = moved = self._send(
                day, host, guests, subject,
                f"Hello all,\n\nthe {kind} of project {project} is on {_spoken(held)} at {first} in room {room}. "
                f"Please bring your open points.\n\n{_first(host)}",
            )  # fmt: skip
            self._send(day, guests[0], [host], f"Re: {subject}", f"Thanks, I will be there.\n\n{_first(guests[0])}")
            if index % 2:
                moved = self._send(
                    day + timedelta(days=2), host, guests, f"Re: {subject}",
                    f"Sorry, there was a clash: the {kind} of {project} now begins at {last}, the day stays. "
                    f"We meet in room {other_room}.\n\n{_first(host)}",
                )  # fmt: skip
            if index % 4 < 2:
                answer = last if moved != sent else first
                self._ask(f"At what time does the {kind} of project {project} begin?", answer, _times(answer), moved)
            else:
                answer = other_room if moved != sent else room
                self._ask(
                    f"In which room is the {kind} of project {project}?", answer, (f"room {answer}",), moved
                )  # fmt: skip

    def leads(self) -> None:
        for index, project in enumerate(words.PROJECTS):
            old, new, chief = self.rng.sample(self.people, 3)
            if index % 6 == 0:
                self._ask(f"Who took over the lead of project {project}?", None)
                continue
            sent = self._send(
                self._day(), chief, self.rng.sample(self.people, 5), f"Change in the {project} team",
                f"Dear colleagues,\n\n{old} moves to another team next month. {new} takes over the lead of project "
                f"{project}. Please give {_first(new)} a warm welcome.\n\n{_first(chief)}",
            )  # fmt: skip
            self._ask(f"Who took over the lead of project {project}?", new, tuple(new.split()), sent)

    def deadlines(self) -> None:
        for index, (project, paper) in enumerate(self._pairs(words.PROJECTS, words.PAPERS, 64)):
            asker, writer = self.rng.sample(self.people, 2)
            day = self._day()
            due = day + timedelta(days=self.rng.randrange(14, 60))
            if index >= 56:
                self._ask(f"When is the {paper} of project {project} due?", None)
                continue
            subject = f"{paper.capitalize()} for {project}"
            sent = self._send(
                day, asker, [writer], subject,
                f"Hi {_first(writer)},\n\ncan you send me the {paper} of project {project} by {_spoken(due)}?\n\n"
                f"{_first(asker)}",
            )  # fmt: skip
            if index % 2:
                self._send(
                    day + timedelta(days=3), writer, [asker], f"Re: {subject}",
                    f"That is tight: I am away for a week. Could I have more time?\n\n{_first(writer)}",
                )  # fmt: skip
                due += timedelta(days=self.rng.randrange(7, 21))
                sent = self._send(
                    day + timedelta(days=4), asker, [writer], f"Re: {subject}",
                    f"No problem. Let us say {_spoken(due)} for the {paper}, then.\n\n{_first(asker)}",
                )  # fmt: skip
            self._ask(f"When is the {paper} of project {project} due?", _spoken(due), _dates(due), sent)

    def budgets(self) -> None:
        for index, project in enumerate(words.PROJECTS):
            lead, chief = self.rng.sample(self.people, 2)
            if index % 6 == 3:
                self._ask(f"What budget was approved for project {project}?", None)
                continue
            day, wanted = self._day(), self.rng.randrange(30, 200) * 1000
            granted = wanted - self.rng.randrange(1, 20) * 1000
            self._send(
                day, lead, [chief], f"Budget of {project}",
                f"Dear {_first(chief)},\n\nfor the next phase of project {project} we need EUR {wanted:,}. The plan is "
                f"attached.\n\n{_first(lead)}",
            )  # fmt: skip
            sent = self._send(
                day + timedelta(days=6), chief, [lead], f"Re: Budget of {project}",
                f"Hi {_first(lead)},\n\nthe board approved EUR {granted:,} for {project}, not all that you asked for."
                f"\n\n{_first(chief)}",
            )  # fmt: skip
            self._ask(
                f"What budget was approved for project {project}?", f"EUR {granted:,}", _amounts(granted * 100), sent
            )

    def trips(self) -> None:
        trips = self.rng.sample([(person, city) for person in self.people for city in words.CITIES], 70)
        for index, (person, city) in enumerate(trips):
            if index >= 60:
                self._ask(f"At which hotel does {person} stay in {city}?", None)
                continue
            day, hotel = self._day(), self.rng.choice(words.HOTELS)
            code = "".join(self.rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=6))
            sent = self._send(
                day, words.TRAVEL_DESK, [person], f"Your trip to {city}",
                f"Dear {_first(person)},\n\nyour trip to {city} is booked. You stay at the {hotel}; the booking code "
                f"is {code}. Trains are on a separate ticket.\n\nThe travel desk",
            )  # fmt: skip
            if index % 2:
                self._ask(f"At which hotel does {person} stay in {city}?", hotel, (f"the {hotel}",), sent)
            else:
                self._ask(f"What is the booking code of {person}'s hotel in {city}?", code, (), sent)

    def purchases(self) -> None:
        for index, thing in enumerate(words.PURCHASES):
            buyer, day, shortlist = self._person(), self._day(), self.rng.sample(words.VENDORS, 3)
            if index % 7 == 6:
                self._ask(f"Which supplier was chosen for the {thing}?", None)
                continue
            team = self.rng.sample(self.people, 3)
            self._send(
                day, buyer, team, f"New {thing}",
                f"We have three offers for the {thing}: {shortlist[0]}, {shortlist[1]} and {shortlist[2]}. "
                f"What do you think?\n\n{_first(buyer)}",
            )  # fmt: skip
            chosen = self.rng.choice(shortlist)
            sent = self._send(
                day + timedelta(days=9), buyer, team, f"Re: New {thing}",
                f"Thank you all. We go with {chosen} for the {thing}; they also take the old ones back.\n\n"
                f"{_first(buyer)}",
            )  # fmt: skip
            self._ask(f"Which supplier was chosen for the {thing}?", chosen, (), sent)

    def small_talk(self) -> None:
        subject, body = self.rng.choice(words.SMALL_TALK)
        writer, reader, other = self.rng.sample(self.people, 3)
        names = {
            "project": self.rng.choice(words.PROJECTS),
            "vendor": self.rng.choice(words.VENDORS),
            "city": self.rng.choice(words.CITIES),
            "goods": self.rng.choice(words.GOODS),
            "reader": _first(reader),
            "other": other,
        }
        text = f"{body.format(**names)}\n\n{_first(writer)}"
        self._send(self._day(), writer, [reader], subject.format(**names), text)

    def _send(self, day: date, sender: str, recipients: Sequence[str], subject: str, body: str) -> str:
        message_id = f"<{len(self.emails):05}@example.org>"
        at = datetime(day.year, day.month, day.day, self.rng.randrange(7, 19), self.rng.randrange(60))
        if self.emails and self.emails[-1].date and at <= self.emails[-1].date and subject.startswith("Re: "):
            at = self.emails[-1].date + timedelta(minutes=self.rng.randrange(5, 300))  # an answer comes after
        to = tuple(_address(person) for person in recipients)
        self.emails.append(Email(message_id, at, _address(sender), to, subject, body))
        return message_id

    def _ask(self, question: str, answer: str | None, aliases: Sequence[str] = (), source: str | None = None) -> None:
        self.questions.append(Question(question, answer, tuple(aliases), (source,) if source else ()))

    def _person(self) -> str:
        return self.rng.choice(self.people)

    def _day(self) -> date:
        return _FIRST_DAY + timedelta(days=self.rng.randrange(_DAYS))

    def _two(self, choices: Sequence[str]) -> list[str]:
        return self.rng.sample(choices, 2)

    def _pairs(self, first: Sequence[str], second: Sequence[str], count: int) -> list[tuple[str, str]]:
        return self.rng.sample([(one, other) for one in first for other in second], count)


def _address(person: str) -> str:
    return person if "<" in person else f"{person} <{person.lower().replace(' ', '.')}@example.org>"


def _accounts(vendor: str) -> str:
    return f"{vendor} <accounts@{vendor.lower().replace(' ', '-')}.example>"


def _first(person: str) -> str:
    return person.split()[0]


def _spoken(day: date) -> str:
    return f"{day.day} {_month(day)} {day.year}"


def _month(day: date) -> str:  # strftime would follow the locale
    return words.MONTHS[day.month - 1]


def _dates(day: date) -> tuple[str, ...]:
    month = _month(day)
    return (day.isoformat(), f"{month} {day.day}, {day.year}", f"{day.day} {month}", f"{month} {day.day}")


def _amounts(cents: int) -> tuple[str, ...]:
    whole = f"{cents // 100}.{cents % 100:02}"
    return (whole, f"{whole} EUR", f"€{whole}", f"{whole} euros")


def _times(clock: str) -> tuple[str, ...]:
    hour, minute = map(int, clock.split(":"))
    return (f"{(hour - 1) % 12 + 1}:{minute:02} {'am' if hour < 12 else 'pm'}", f"{clock} h")
