"""A desk that stands still, for what the page shows of it, and a page that is watched."""

import time
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page

from tests.serving.demo import DemoDesk
from trl_ext.serving.replies import EpisodeView, FinishedEpisode, Status

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    "<iframe srcdoc='<script>parent.alert(4)</script>'></iframe><a href='javascript:alert(5)'>x</a>"
    "<style>*{display:none}</style><base href='//evil.example/'>"
    "<meta http-equiv=refresh content='0;url=//evil.example/'>"
    "{{7*7}}${7*7}\"'`--><!--]]>&lt;b&gt;\x00\ud800\x1b[31m\x7f\u202eesrever\u2066\ufeff"
    + "W" * 500
    + "Z"
    + "\u0335\u0310" * 60
)
# A contrast of 4.5 is what WCAG 2 asks of text of this size. Gives the texts that have less.
TOO_FAINT = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, k, place) => sum + k * linear(color[place] / 255), 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [];
  let checked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(node.closest("svg") ? style.fill : style.color)), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    checked++;
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${node.textContent.slice(0, 40)}`);
  }
  return { checked, faint };
}"""
# In the page itself: what its policy stopped would be seen in no other way by some engines.
_REPORT_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


class StagedDesk(DemoDesk):
    """Stands still: the page shows what a test writes into `state` and `episodes`."""

    def __init__(self, hostile: str = ""):
        super().__init__(hostile)
        self.state, self.episodes = super().status(), {}

    def status(self) -> Status:
        self.state.now = time.time()
        return self.state

    def episode(self, id: str) -> EpisodeView | None:
        return self.episodes.get(id) or super().episode(id)

    def clear(self) -> None:
        """As a server is that has just begun."""
        for rows in (
            self.state.workers,
            self.state.running,
            self.state.finished,
            self.state.failures,
            self.state.series,
        ):
            rows.clear()
        self.state.started = time.time()

    def end(self, id: str, **values: Any) -> None:
        row = {"environment": "grid_world", "row": "seed=1", "worker": "w", "step": 3, "turns": 2, "seconds": 1.5}
        outcome = {"state": "done", "reward": 0.75, "success": True, "ended": time.time()}
        self.state.finished.insert(0, FinishedEpisode(**{"id": id} | row | outcome | values))


class Watched:
    """Everything that a page does besides being shown."""

    def __init__(self, page: Page):
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("popup", lambda popup: self.complaints.append(f"popup: {popup.url}"))
        page.on("download", lambda download: self.complaints.append(f"download: {download.url}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(_REPORT_VIOLATIONS)

    def assert_quiet(self, under: str) -> None:
        """Nothing was complained of, ran that should not, or was asked for outside of an address."""
        assert self.complaints == []
        assert self.page.evaluate("violations") == []
        assert self.requests
        assert all(url.startswith(under) for url in self.requests), self.requests
        assert urlsplit(self.page.url).netloc == urlsplit(under).netloc

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()
