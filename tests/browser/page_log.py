"""What a page did that a quiet, offline page does not do."""

from __future__ import annotations

from dataclasses import dataclass, field

from playwright.sync_api import ConsoleMessage, Page, Request, Route

INSIDE = ("data:", "blob:", "about:")


@dataclass
class PageLog:
    """Records requests, errors and dialogs of `page` from the moment it is made."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Every address asked for, `data:` and `blob:` left out."""
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    allowed: str = ""
    """The one document that may be opened."""

    def __post_init__(self) -> None:
        self.page.on("request", self._on_request)
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("dialog", self._on_dialog)

    def cut_off(self, document: str) -> None:
        """Abort every request but the one for `document`; those attempted stay in `requests`."""
        self.allowed = document
        self.page.route("**/*", self._abort)

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith(INSIDE) and request.url != self.allowed:
            self.requests.append(request.url)

    def _abort(self, route: Route) -> None:
        url = route.request.url
        if url.startswith(INSIDE) or url == self.allowed:
            route.continue_()
        else:
            route.abort()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _on_dialog(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()
