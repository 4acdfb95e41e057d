"""The live page in a real Chromium (Debian's): what it shows, and that nothing it shows can do anything."""

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serving.browsing import HOSTILE, TOO_FAINT, StagedDesk, Watched
from tests.serving.loopback import kept_port, reverse_proxy, serving
from trl_ext.serving.app import create_app
from trl_ext.serving.options import ServerOptions
from trl_ext.serving.replies import EpisodeView, Failure, Point, Turn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "a-token-of-the-tests"
expect.set_options(timeout=60_000)  # the page asks once a second, on a machine that may stand still for some
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("the live page is tested in Chromium: apt-get install chromium")
    assert CHROMIUM, "no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context.new_page()


@pytest.fixture
def desk() -> StagedDesk:
    return StagedDesk()


@pytest.fixture
def address(desk: StagedDesk) -> Iterator[str]:
    with serving(create_app(desk, ServerOptions())) as address:
        yield address


def test_a_server_that_has_just_begun_says_what_is_missing(desk, address, page):
    desk.clear()
    watched = Watched(page)
    page.goto(address)
    for text in (
        "No episode has ended yet.",
        "No worker is connected.",
        "No episode is running.",
        "Nothing has failed.",
    ):
        expect(page.get_by_text(text)).to_be_visible()
    expect(page.get_by_role("img", name="Reward: no rollout yet")).to_be_visible()
    watched.assert_quiet(address)


def test_the_page_follows_a_run(desk, address, page):
    desk.clear()
    watched = Watched(page)
    page.goto(address)
    expect(page.get_by_text("No episode has ended yet.")).to_be_visible()
    desk.end("7-live")
    desk.state.counters.failed = 1234
    desk.state.failures.append(Failure(id="8-live", worker="w", error="turn 1: ValueError: no", at=time.time() - 60))
    for step, reward in enumerate((0.25, None, 0.5)):
        desk.state.series.append(Point(step=step, episodes=8, reward=reward, success=reward, seconds=1.0))
    row = page.get_by_role("row", name="7-live")
    expect(row).to_contain_text("success")
    expect(row).to_contain_text("0.75")
    expect(page.get_by_role("group", name="Failures")).to_contain_text("turn 1: ValueError: no")
    expect(page.locator("#numbers")).to_contain_text("1,234")
    reward = page.get_by_role("img", name="Reward")
    expect(reward).to_have_accessible_name("Reward by step, 0.25 to 0.5; step 2: 0.5. Arrow keys read the points.")
    reward.press("ArrowLeft")
    reward.press("ArrowLeft")
    expect(page.locator("#reward .readout")).to_have_text("step 0: 0.25")
    desk.state.finished.clear()
    expect(row).to_have_count(0)
    watched.assert_quiet(address)


def test_the_page_shows_what_workers_play(page):
    """The real server, workers and rollout; the policy is the scripted one of benchmarks/server.py."""
    from benchmarks.server import ScriptedTrainer  # these need torch, which the others do not wait for
    from tests.serving import playing
    from trl_ext.agents.environments.grid_world import GridWorld
    from trl_ext.serving.rollout import remote_rollout

    trainer, rows = ScriptedTrainer(), [{"prompt": "", "seed": seed} for seed in range(16)]
    with playing.serving() as server, playing.workers(server, GridWorld, count=2):
        trainer.rollout_func, watched = remote_rollout(server, max_turns=8, max_turn_tokens=1), Watched(page)
        page.goto(server.url)
        expect(page.get_by_role("row", name="worker-1")).to_be_visible()
        for step in (0, 1):
            trainer.state.global_step = step
            rollout = threading.Thread(target=playing.play, args=(trainer, rows))  # this thread's loop is Playwright's
            rollout.start()
            expect(page.get_by_role("img", name="Reward")).to_have_accessible_name(re.compile(f"; step {step}: "))
            rollout.join()
        finished = page.get_by_role("group", name="Last episodes")
        expect(finished.get_by_role("link")).to_have_count(32)
        finished.get_by_role("link").first.click()
        expect(page.get_by_role("article").first).to_have_text(re.compile("user[a-d][1-4]>[a-d][1-4]:"))
        expect(page.get_by_role("article").nth(1)).to_have_text(re.compile("assistantturn 1reward .*[udlr]$"))
        watched.assert_quiet(server.url + "/")


def test_an_episode_opens_turn_by_turn_by_keyboard(desk, address, page):
    desk.episodes["7-live"] = an_episode(failure="turn 2: TimeoutError: step took longer than 60 s", state="failed")
    desk.end("7-live", state="failed", reward=None)
    watched = Watched(page)
    page.goto(address)
    page.get_by_role("link", name="7-live").press("Enter")
    opened = page.get_by_role("region", name="Episode 7-live")
    expect(opened).to_be_focused()
    expect(opened).to_contain_text("turn 2: TimeoutError: step took longer than 60 s")
    expect(opened.get_by_role("article")).to_have_text(
        [
            "systemSay the sum.",
            "user1 + 2",
            "assistantturn 1reward \N{MINUS SIGN}0.54",
            "userNo.",
            "assistantturn 2reward 13",
        ]
    )
    page.get_by_role("link", name="Close").press("Enter")
    expect(page.get_by_text("Choose an episode to read it turn by turn.")).to_be_visible()
    page.goto(address + "#episode=9-gone")
    expect(page.get_by_text("It cannot be shown: no episode '9-gone', or it ended long ago")).to_be_visible()
    watched.complaints.remove("error: Failed to load resource: the server responded with a status of 404 (Not Found)")
    watched.assert_quiet(address)


def test_an_episode_that_runs_grows_under_its_reader(desk, address, page):
    desk.episodes["7-live"] = an_episode(state="running")
    page.goto(address + "#episode=7-live")
    turns = page.get_by_role("article")
    expect(turns).to_have_count(5)
    turns.first.evaluate("(node) => { node.seen = true; }")
    desk.episodes["7-live"] = an_episode(state="done", success=True)
    desk.episodes["7-live"].turns.append(Turn(role="user", text="Right."))
    expect(turns).to_have_count(6)
    expect(turns.last).to_have_text("userRight.")
    expect(page.locator("#turns")).to_contain_text("success")
    assert turns.first.evaluate("(node) => node.seen"), "what was there is drawn again, and a selection in it is lost"


def test_rows_that_look_the_same_stay_as_many_as_they_are(desk, address, page):
    desk.state.failures = [Failure(id="8-live", worker="w", error="turn 1: ValueError: no", at=1.0)] * 2
    page.goto(address)
    rows = page.get_by_role("group", name="Failures").get_by_role("row", name="8-live")
    for version in (1000, 1001, 1002):  # so many times it is drawn
        desk.state.policy.version = version
        expect(page.locator("#about")).to_contain_text(f"step {version:,}")
        expect(rows).to_have_count(2)


def test_of_very_many_running_episodes_the_first_are_listed_and_all_counted(desk, address, page):
    page.goto(address)
    expect(page.locator("#running-title")).to_have_text("Running episodes")
    desk.state.queues.running = 4096
    expect(page.locator("#running-title")).to_have_text("Running episodes: the first 4 of 4,096")
    expect(page.locator("#numbers")).to_contain_text("4,096")


def test_a_long_text_is_cut_until_it_is_asked_for(desk, address, page):
    desk.episodes["7-live"] = an_episode(turns=[Turn(role="user", text="word " * 2000 + "the end")])
    page.goto(address + "#episode=7-live")
    expect(page.get_by_role("article")).not_to_contain_text("the end")
    page.get_by_role("button", name="Show all 10,007 characters").click()
    expect(page.get_by_role("article")).to_contain_text("the end")


def an_episode(**values: Any) -> EpisodeView:
    turns = [
        Turn(role="system", text="Say the sum."),
        Turn(role="user", text="1 + 2"),
        Turn(role="assistant", text="4", reward=-0.5),
        Turn(role="user", text="No."),
        Turn(role="assistant", text="3", reward=1.0),
    ]
    standard = {"id": "7-live", "state": "done", "environment": "sums", "row": {"seed": 1}, "worker": "w"}
    return EpisodeView(**standard | {"attempts": 1, "step": 3, "turns": turns} | values)


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 900}], ids=["phone", "desktop"])
def test_hostile_texts_are_shown_as_texts_and_do_nothing(browser, viewport):
    desk = StagedDesk(HOSTILE)
    number = next(number for number in range(40) if desk._fails(number))
    with browser.new_context(viewport=viewport) as context, serving(create_app(desk, ServerOptions())) as address:
        page = context.new_page()
        watched = Watched(page)
        page.goto(f"{address}#episode={number}-demo")
        expect(page.get_by_role("article")).to_have_count(11)
        text = page.get_by_role("article").last.inner_text()
        assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in text
        assert r"&lt;b&gt;\u0000\ud800\u001b[31m\u007f\u202eesrever\u2066" in text
        shown = page.locator("body").text_content()
        assert shown.count(r"\ud800") > 50
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800\u202a-\u202e\u2066-\u2069]", shown)
        assert page.locator("main :is(script, img, iframe, style, base, meta, a[href^=javascript])").count() == 0
        before = page.locator("#about").inner_text()
        desk.state.policy.version += 1
        expect(page.locator("#about")).not_to_have_text(before)  # drawn a second time
        assert page.evaluate("[document.documentElement.scrollWidth - innerWidth, document.title]") == [0, "Rollouts"]
        watched.assert_quiet(address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_can_read_it_in_both_schemes(browser, address, scheme):
    with browser.new_context(viewport=PHONE, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(address + "#episode=5-demo")
        expect(page.get_by_role("article")).to_have_count(11)
        found = page.evaluate(TOO_FAINT)
        assert found["checked"] > 100
        assert found["faint"] == []
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 23)"
        assert dark == (scheme == "dark")


def test_the_page_works_under_the_path_of_a_reverse_proxy(desk, address, page):
    desk.end("7-live")
    desk.episodes["7-live"] = an_episode()
    with serving(reverse_proxy("/team/rollouts/", address)) as outside:
        watched = Watched(page)
        page.goto(outside + "team/rollouts/")
        page.get_by_role("link", name="7-live").click()
        expect(page.get_by_role("article")).to_have_count(5)
        watched.assert_quiet(outside + "team/rollouts/")


def test_a_token_is_asked_for_kept_for_the_tab_and_never_in_an_address(desk, page):
    desk.end("7-live")
    with serving(create_app(desk, ServerOptions(token=TOKEN))) as address:
        watched = Watched(page)
        page.goto(address)
        field = page.get_by_label("The server asks for its access token")
        expect(field).to_be_focused()
        field.fill("another-token")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not take this token.")
        assert page.locator("#state").is_hidden()
        field.fill(TOKEN)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("link", name="7-live")).to_be_visible()
        expect(field).to_be_hidden()
        page.reload()
        expect(page.get_by_role("link", name="7-live")).to_be_visible()
        assert not any("token" in url for url in watched.requests + [page.url])
        kept = page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]")
        assert kept == [0, "", [TOKEN]]
        other_tab = page.context.new_page()
        other_tab.goto(address)
        expect(other_tab.get_by_label("The server asks for its access token")).to_be_visible()


def test_a_lost_server_is_said_and_found_again(desk, page):
    app = create_app(desk, ServerOptions())
    with kept_port() as port:
        with serving(app, port) as address:
            page.goto(address)
            expect(page.get_by_role("status")).to_have_text("live")
        expect(page.get_by_role("status")).to_contain_text("lost connection, retrying")
        desk.end("7-live")
        with serving(app, port):
            expect(page.get_by_role("status")).to_have_text("live")
            expect(page.get_by_role("link", name="7-live")).to_be_visible()


def test_a_server_that_answers_with_an_error_is_no_lost_connection(address, page):
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("live")
    page.route("**/status", lambda route: route.fulfill(status=429, json={"error": {"message": "too many requests"}}))
    expect(page.get_by_role("status")).to_contain_text("too many requests, retrying")
    page.unroute("**/status")
    expect(page.get_by_role("status")).to_have_text("live")


def test_a_server_that_stops_is_said(desk, address, page):
    desk.state.stopping = True
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("stopping")


def test_a_page_that_nobody_sees_asks_nothing(address, page):
    page.clock.install()
    watched = Watched(page)
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("live")
    turn = "(hidden) => { Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });"
    turn += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(turn, True)
    expect(page.get_by_role("status")).to_have_text("paused")
    asked = len(watched.requests)
    page.clock.run_for(60_000)
    assert len(watched.requests) == asked
    page.evaluate(turn, False)
    expect(page.get_by_role("status")).to_have_text("live")
    assert len(watched.requests) > asked
