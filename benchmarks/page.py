"""How soon the page answers: from the end of a drawing's last stroke to the browser's frame that shows the answer.

    python benchmarks/page.py MODEL [--drawings 30]

Starts a service and Chromium without a window, on the same cores, and draws with a pointer's events.  A drawing of
several characters takes a second request, which reads text.  Needs Chromium and its driver: Debian's packages chromium
and chromium-driver.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service as DriverService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from benchmarks.prediction import show
from benchmarks.service import serving
from glyphs.core.cpus import usable_cpus

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root in a container needs
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
Stroke = Sequence[tuple[float, float]]  # corners, in pixels from the paper's middle
SEVEN: Stroke = [(-90, -100), (90, -100), (-10, 110)]
DRAWINGS: dict[str, Sequence[Stroke]] = {
    "7": [SEVEN],
    "T": [[(-80, -100), (80, -100)], [(0, -100), (0, 110)]],
    "777": [[(0.4 * x + middle, 0.6 * y) for x, y in SEVEN] for middle in (-140, 0, 140)],
}
# The words are taken away, so that an answer that is the one before shows as well.
WATCH = """
const [paper, words] = ["paper", "words"].map((id) => document.getElementById(id));
let ended = null;
window.taken = null;
paper.addEventListener("pointerup", (event) => {
  ended = event.timeStamp;
  window.taken = null;
  words.textContent = "";
}, true);
new MutationObserver(() => {
  const stroke = ended;  // an answer of before it may still wait for its frame when a stroke ends
  if (words.textContent) requestAnimationFrame(() => {
    if (stroke === ended) window.taken = performance.now() - ended;
  });
}).observe(words, { childList: true });
"""
REQUESTS = """
const entries = performance.getEntriesByType("resource").filter((entry) => entry.name.includes("/predict"));
const [last] = entries.slice(-1);
performance.clearResourceTimings();
return last.duration;
"""


class Page:
    """A browser that shows the page of a service."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def wait(self, happens: Callable[[], object], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < deadline, self["answer"].text
            time.sleep(0.02)

    def draw(self, corners: Stroke, scale: float = 1) -> None:
        """Draw a stroke."""
        pen = ActionChains(self.driver, duration=30)
        (x, y), *others = [(round(x * scale), round(y * scale)) for x, y in corners]
        pen.move_to_element_with_offset(self["paper"], x, y).click_and_hold()
        for to_x, to_y in others:
            pen.move_by_offset(to_x - x, to_y - y)
            x, y = to_x, to_y
        pen.release().perform()

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def browsing() -> Iterator[webdriver.Chrome]:
    """A browser without a window, until the context ends."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, DriverService(DRIVER))
        try:
            driver.set_window_size(1100, 900)
            yield driver
        finally:
            driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .pth or .onnx file")
    parser.add_argument("--drawings", type=int, default=30, help="of each kind (default: 30)")
    arguments = parser.parse_args()
    if not BROWSER or not DRIVER:
        raise SystemExit("there is no chromium with its chromedriver")

    print(f"CPU, {usable_cpus()} threads, {arguments.drawings} drawings of each kind")
    figures: dict[str, list[float]] = {}
    with serving("--model", str(arguments.model.resolve())) as (_, port), browsing() as driver:
        driver.get(f"http://127.0.0.1:{port}/")
        page = Page(driver)
        page.wait(lambda: arguments.model.name in page["model"].text)
        driver.execute_script(WATCH)
        for number in range(arguments.drawings + 1):  # the first warms up
            for name, strokes in DRAWINGS.items():
                for stroke in strokes:
                    page.draw(stroke)
                page.wait(lambda: driver.execute_script("return window.taken"))
                taken, request = driver.execute_script("return window.taken"), driver.execute_script(REQUESTS)
                if number:
                    figures.setdefault(f"{name}: from stroke to answer, ms", []).append(taken)
                    figures.setdefault(f"{name}: of these, its last request", []).append(request)
                else:
                    print(f"{name!r} is read as {page['letter'].text!r}")
                page["clear"].click()
                page.wait(lambda: "Nothing drawn" in page["words"].text)
    print(f"{'':44}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, values in figures.items():
        show(name, values)


if __name__ == "__main__":
    main()
