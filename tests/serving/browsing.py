"""A page of a browser that is watched."""

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page

# In the page itself: what its policy stopped would be seen in no other way by some engines.
_REPORT_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


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
