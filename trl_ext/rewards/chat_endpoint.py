"""Questions to a language model over an endpoint that speaks OpenAI's chat completions: concurrent, counted, cached."""

import asyncio
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import random
import re
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from trl_ext.errors import RewardError
from trl_ext.rewards.text import as_text

MAX_CHARACTERS = 50_000
BACKOFF = 1.0  # seconds before the first retry; doubles with each
MAX_WAIT = 60.0

Messages = list[dict[str, str]]
Answer = TypeVar("Answer")

_COUNTS = ("requests", "cached", "unparsed", "prompt_tokens", "completion_tokens")
_JITTER = random.Random()  # of its own: training draws from the global one
_FORMAT_REFUSED = re.compile(r"response_format|json.?schema|structured.?output|guided", re.IGNORECASE)


@dataclass(frozen=True)
class Form(Generic[Answer]):
    """What a reply has to look like.

    Args:
        response_format: the request's field of that name; left out once the endpoint refuses it.
        parse: what a reply says. It raises ValueError with what is wrong, which the model is then told.
        reminder: the sentence that asks for the form, for the second request after a reply that cannot be used.
    """

    response_format: dict[str, Any]
    parse: Callable[[str], Answer]
    reminder: str


class ChatEndpoint:
    """A model behind `base_url`/chat/completions, for a reward to inherit or to hold.

    `api_key_env` names the environment variable that holds the key; without that variable no key is sent.

    Connection errors, timeouts (`timeout` seconds in all for a request), 429 and 5xx are tried again `retries` times:
    after 1 s, 2 s, 4 s and so on, or after Retry-After, at most 60 s, with jitter. Then, and at once for any other
    status, it raises. At most `concurrency` requests of an `ask_all` run at a time.

    `cache` is a folder with the replies that could be used, one JSON file each, named by the sha256 of model and
    messages: not of endpoint, temperature and max_tokens. The attributes `requests`, `cached`, `unparsed` (answers of
    None), `prompt_tokens` and `completion_tokens` count what was used.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str,
        temperature: float,
        timeout: float,
        retries: int,
        concurrency: int,
        cache: str | None,
        max_tokens: int,
    ):
        url = urlsplit(base_url)
        # Neither message repeats a value that may hold a secret.
        if url.username is not None or url.password is not None:
            raise ValueError("base_url: must have no user or password in it")
        if not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
            raise ValueError("api_key_env: must be the name of an environment variable, not a key")
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ValueError(f"base_url = {base_url!r}: must start with http:// or https://")
        if not model:
            raise ValueError("model = '': must be a name that the endpoint knows")
        at_least = {"retries": (retries, 0), "concurrency": (concurrency, 1), "max_tokens": (max_tokens, 1)}
        for name, (value, low) in at_least.items():
            if value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature = {temperature}: must be at least 0")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout = {timeout}: must be greater than 0")
        self.model, self.url, self.api_key_env = model, f"{base_url.rstrip('/')}/chat/completions", api_key_env
        self.temperature, self.timeout, self.retries = temperature, timeout, retries
        self.concurrency, self.max_tokens = concurrency, max_tokens
        self.cache = None if cache is None else Path(cache).expanduser()
        self.requests = self.cached = self.unparsed = self.prompt_tokens = self.completion_tokens = 0
        self._structured = True

    def ask_all(
        self,
        questions: Sequence[Callable[[], Messages]],
        form: Form[Answer] | Sequence[Form[Answer]],
        counts: Counter[str],
        skip_failures: bool = False,
    ) -> list[Answer | None]:
        """The answer to each question, as `ask` gives it. The messages of a question are made when its turn comes.

        `form` is that of all questions, or a form for each. What was used is added to `counts` and to the attributes,
        also where it raises. With `skip_failures` a question where the endpoint failed is answered None and logged as
        a warning; it raises where it failed at all of them.

        Raises:
            ConnectionError: the endpoint failed, after the retries.
            RewardError: the environment variable holds what cannot be a key.
        """
        used: Counter[str] = Counter()
        try:
            forms = [form] * len(questions) if isinstance(form, Form) else form
            return _run(self._ask_all(questions, forms, used, skip_failures))
        finally:
            counts.update(used)
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + used[name])

    async def _ask_all(
        self,
        questions: Sequence[Callable[[], Messages]],
        forms: Sequence[Form[Answer]],
        counts: Counter[str],
        skip_failures: bool,
    ) -> list[Answer | None]:
        http = _http_library()
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", key):  # the library's own error would show it
            raise RewardError(f"environment variable {self.api_key_env} has characters that no API key has")
        places = asyncio.Semaphore(self.concurrency)
        limits = http.Limits(max_connections=self.concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        failed: list[ConnectionError] = []

        def without_key(error: BaseException) -> BaseException:
            if key and key in str(error):  # an endpoint that repeats it
                return ConnectionError(str(error).replace(key, "***"))
            return error

        async def answer(question: Callable[[], Messages], form: Form[Answer]) -> Answer | None:
            async with places:
                try:
                    return await self.ask(client, question(), form, counts)
                except ConnectionError as error:
                    failed.append(error)
                    if not skip_failures or len(failed) == len(questions):
                        raise
                    logging.getLogger(__name__).warning("one question has no answer: %s", without_key(error))
                    return None

        async with http.AsyncClient(headers=headers, timeout=None, limits=limits) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(answer(question, form))
                        for question, form in zip(questions, forms, strict=True)
                    ]
            except ExceptionGroup as errors:
                raise without_key(errors.exceptions[0]) from None
        return [task.result() for task in tasks]

    async def ask(self, client: Any, messages: Messages, form: Form[Answer], counts: Counter[str]) -> Answer | None:
        """What the model answers, from the cache if it is there; None where neither of two replies can be used.

        A reply that `form.parse` refuses is sent back once with what is wrong. `client` is an httpx.AsyncClient.

        Raises:
            ConnectionError: the endpoint failed, after the retries.
        """
        file = None if self.cache is None else self.cache / f"{sha256([self.model, messages])}.json"
        if file is not None:
            cached = _read_cached(file, form.parse)
            if cached is not None:
                counts["cached"] += 1
                return cached
        for _ in range(2):
            reply = await self._request(client, messages, form.response_format, counts)
            try:
                answer = form.parse(reply)
            except ValueError as wrong:
                messages = [
                    *messages,
                    {"role": "assistant", "content": plain(reply) or "(nothing)"},
                    {"role": "user", "content": f"That reply cannot be used: {wrong}. {form.reminder}"},
                ]
            else:
                if file is not None:
                    _write_whole(file, json.dumps({"model": self.model, "reply": reply}))
                return answer
        counts["unparsed"] += 1
        return None

    async def _request(
        self, client: Any, messages: Messages, response_format: dict[str, Any], counts: Counter[str]
    ) -> str:
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        attempt = 0
        while True:
            structured = self._structured
            wait, may_retry = 0.0, True
            counts["requests"] += 1
            try:
                async with asyncio.timeout(self.timeout):  # the library's own limits each read, not the whole
                    response = await client.post(
                        self.url, json=body | ({"response_format": response_format} if structured else {})
                    )
            except (TimeoutError, _http_library().TransportError) as error:
                problem = f"no reply in {self.timeout:g} s" if isinstance(error, TimeoutError) else repr(error)
            else:
                status = response.status_code
                if status == 400 and structured and _FORMAT_REFUSED.search(response.text):
                    self._structured = False
                    continue
                reply = _read_reply(response, counts) if status == 200 else None
                if reply is not None:
                    return reply
                problem = f"HTTP {status}: {' '.join(response.text.split()):.200}"
                may_retry = status in (200, 429) or status >= 500
                wait = _seconds(response.headers.get("Retry-After"))
            if not may_retry or attempt == self.retries:
                raise ConnectionError(f"{self.url}: {problem} (attempt {attempt + 1} of {self.retries + 1})")
            backoff = min(BACKOFF * 2**attempt * _JITTER.uniform(0.5, 1.5), MAX_WAIT)
            await asyncio.sleep(max(backoff, wait))
            attempt += 1


def summary(counts: Counter[str]) -> str:
    """What was used, for a log."""
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in _COUNTS)


def plain(text: str) -> str:
    """Text that any endpoint can decode, no longer than `MAX_CHARACTERS`: cut in the middle."""
    if len(text) > MAX_CHARACTERS:
        half = MAX_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sha256(value: Any) -> str:
    """A name for a JSON value, the same in every process."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(work)
    with ThreadPoolExecutor(1) as pool:  # a notebook's thread, for one, has a loop that cannot run a second
        return pool.submit(_run_here, work).result()


def _run_here(work: Coroutine[Any, Any, Answer]) -> Answer:
    # asyncio.run would leave this thread without the loop that other libraries have set for it.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(work)


def _http_library() -> Any:
    """httpx2 or httpx, whichever the installed huggingface_hub (2 and 1) brings: what is used here is in both."""
    return importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")


def _read_reply(response: Any, counts: Counter[str]) -> str | None:
    """The text of a chat completion, its tokens counted; None for what is none (a proxy's page, an error as 200)."""
    try:
        body = response.json()
        reply = as_text([body["choices"][0]["message"]])
        usage = body.get("usage") or {}
        tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return None
    counts.update(tokens)
    return reply


def _read_cached(file: Path, parse: Callable[[str], Answer]) -> Answer | None:
    """The answer in a cached reply; None where there is none or the file is damaged."""
    try:
        return parse(json.loads(file.read_text(encoding="utf-8"))["reply"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_whole(file: Path, text: str) -> None:
    """Write a file that no other process ever sees in part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _seconds(retry_after: str | None) -> float:
    """What a Retry-After header asks for, as seconds or as a date, from 0 to `MAX_WAIT`; 0 where it makes no sense."""
    try:
        wait = float(retry_after or 0)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(str(retry_after)) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):  # no date; a date without a zone
            return 0.0
    return min(max(wait, 0.0), MAX_WAIT) if not math.isnan(wait) else 0.0
