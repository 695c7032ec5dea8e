"""One person at the console, in a real browser, with all that the browser reports about the pages."""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from demo.processes import ROOT
from tests.support.chromium import PATIENCE

SCREENSHOTS: Final = ROOT / "build" / "screenshots"
PICTURES: Final = {
    "overview": 1080,
    "service": 740,
    "graph-of-one": 780,
    "approvals": 700,
    "ledger-green": 740,
    "ledger-red": 700,
}
"""The pages that the documentation shows as pictures, with their height in pixels: `make pictures` copies them."""
_TALLEST = 2_400
"""Pixels of a page that a screenshot has."""
_WATCH = """
globalThis.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""
_CHECK = """
const done = arguments[arguments.length - 1];
const first = (nodes) => nodes.slice(0, 3).map((node) => node.html.slice(0, 200)).join(" | ");
const summary = ({ id, help, nodes }) => `${id}: ${help}: ${first(nodes)}`;
const graph = document.getElementById("graph");
const drawn = document.createDocumentFragment();
if (graph?.childElementCount > 100) drawn.append(...graph.childNodes);
axe.run(document, { resultTypes: ["violations"] }).then(
  ({ violations }) => done(violations.map(summary)), (error) => done([String(error)]),
).finally(() => graph?.append(drawn));
"""
_TOO_WIDE = """
const { scrollWidth, clientWidth } = document.documentElement;
if (scrollWidth <= clientWidth) return [];
const out = [...document.body.querySelectorAll("*")].filter((each) => each.getBoundingClientRect().right > clientWidth);
return [`the page is ${scrollWidth} pixels wide, in ${clientWidth}: ${out.at(-1)?.outerHTML.slice(0, 200)}`];
"""


class Look(NamedTuple):
    """How a page is looked at."""

    theme: str
    width: int
    height: int

    @property
    def name(self) -> str:
        """For the file of a screenshot."""
        return f"{self.theme}-{self.width}"


LOOKS: Final = [Look(theme, *size) for size in ((1280, 800), (360, 740)) for theme in ("light", "dark")]


class Person:
    """Uses the console at ``url``. ``axe`` is the source of axe-core."""

    def __init__(self, chrome: Chrome, url: str, axe: str) -> None:
        self.chrome, self.url, self._axe = chrome, url, axe
        self._cookies: dict[str, dict[str, Any]] = {}
        chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _WATCH})
        self.look(LOOKS[0])

    # ---- what the page does

    def open(self, path: str) -> None:
        """Shows a page, below ``/console``."""
        self.chrome.get(f"{self.url}/console{path}")

    def sign_in(self, token: str) -> None:
        """Signs in as another person, in the session that this one had before, if any."""
        self.forget()
        if token in self._cookies:
            self.chrome.execute_cdp_cmd("Network.setCookie", self._cookies[token])
            return
        self.open("/sign-in")
        self._send_token(token)
        self._cookies[token] = self.cookie()

    def sign_in_again(self, token: str) -> None:
        """Signs in once more in another tab, with the cookies lost. This one stays as it is."""
        here = self.chrome.current_window_handle
        self.forget()
        self.chrome.switch_to.new_window("tab")
        self.open("/sign-in")
        self._send_token(token)
        self.chrome.close()
        self.chrome.switch_to.window(here)

    def _send_token(self, token: str) -> None:
        self.fill("#token", token)
        self.press(Keys.ENTER)
        self.see(".who")

    def cookie(self) -> dict[str, Any]:
        """The cookie of the session."""
        [found] = self.chrome.execute_cdp_cmd("Network.getCookies", {"urls": [f"{self.url}/console/"]})["cookies"]
        return {name: found[name] for name in ("name", "value", "domain", "path", "httpOnly", "sameSite")}

    def forget(self) -> None:
        """Loses all cookies, as a stranger."""
        self.chrome.execute_cdp_cmd("Network.clearBrowserCookies", {})

    def find(self, selector: str) -> WebElement:
        """One element."""
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements."""
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def count(self, selector: str) -> int:
        """How many there are."""
        return len(self.all(selector))

    def see(self, selector: str, text: str = "") -> WebElement:
        """Waits for an element that is shown and has that text. Raises TimeoutException."""

        def shown(_: Chrome) -> WebElement | Literal[False]:
            found = self.chrome.find_elements(By.CSS_SELECTOR, selector)
            return next((each for each in found if text in each.text and each.is_displayed()), False)

        wait = WebDriverWait(self.chrome, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(shown, f"no {selector} with {text!r}")

    def wait(self, true: Callable[[], bool], what: str) -> None:
        """Waits until it is true. Raises TimeoutException."""
        WebDriverWait(self.chrome, PATIENCE, ignored_exceptions=[StaleElementReferenceException]).until(
            lambda _: true(), what
        )

    def click(self, selector: str) -> None:
        """Clicks on an element, once it is there."""
        self.see(selector).click()

    def double_click(self, selector: str) -> None:
        """Clicks twice on an element, as hasty people do."""
        ActionChains(self.chrome).double_click(self.see(selector)).perform()

    def fill(self, selector: str, text: str) -> None:
        """Types into a field, in the place of what it has."""
        field = self.see(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        ActionChains(self.chrome).send_keys(*keys).perform()

    def tab_to(self, selector: str, most: int = 120) -> None:
        """Presses the tabulator until that element has the focus."""
        for _ in range(most):
            if self.chrome.execute_script("return document.activeElement.matches(arguments[0])", selector):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"{selector} is not among the first {most} elements that the keyboard reaches")

    # ---- what the browser says of the page

    def faults(self) -> list[str]:
        """Errors and violations of the pages' policy since the last question, in the browser's words."""
        log = self.chrome.get_log("browser")  # type: ignore[no-untyped-call]  # selenium has no annotations of it
        told = [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]
        return [*told, *self.chrome.execute_script("return globalThis.violations ?? []")]

    def look(self, look: Look) -> None:
        """Changes the theme and the size of the window."""
        features = [{"name": "prefers-color-scheme", "value": look.theme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": look.width, "height": look.height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def troubles(self) -> list[str]:
        """What axe-core finds in the page, and whether the page is wider than the window. A drawing of the graph with
        thousands of equal boxes is left out, which would take minutes; a small one is not."""
        if not self.chrome.execute_script("return 'axe' in globalThis"):
            self.chrome.execute_script(self._axe)
        found = list(self.chrome.execute_async_script(_CHECK))
        return [*found, *self.chrome.execute_script(_TOO_WIDE)]

    def inspect(self, name: str) -> None:
        """Takes a picture of the page in each look, and raises AssertionError for any trouble or fault."""
        before = self.faults()
        found = [(look.name, trouble) for look in LOOKS for trouble in self._troubles_in(look, name)]
        self.look(LOOKS[0])
        if name in PICTURES:
            self.picture(SCREENSHOTS / "docs" / f"{name}.png", PICTURES[name])
        assert (before, found) == ([], []), json.dumps({"faults": before, "found": found}, indent=1)

    def _troubles_in(self, look: Look, name: str) -> Iterator[str]:
        self.look(look)
        self.picture(SCREENSHOTS / f"{name}-{look.name}.png")
        yield from self.troubles()

    def picture(self, file: Path, tallest: int = _TALLEST) -> None:
        """Writes the page into a file, as PNG."""
        page = "document.documentElement"
        width, height = self.chrome.execute_script(f"return [{page}.clientWidth, {page}.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, tallest), "scale": 1}
        taken = self.chrome.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b64decode(taken["data"]))
