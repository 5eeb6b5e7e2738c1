"""The page in a real browser, which these tests need: Chromium and its driver."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from benchmarks.page import BROWSER, DRIVER, SEVEN, Page, browsing
from tests.conftest import ROOT, Running, running
from tests.small import draw_glyph, onnx_weights, save_small_onnx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER or not DRIVER, reason="no browser: install Debian's chromium and chromium-driver, or the like"
    ),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def service(kept: Path) -> Iterator[Running]:
    models = [ROOT / "pretrained" / f"glyphs{classes}.pth" for classes in (47, 62)]
    with running("inference.py", "--serve", "--port", 0, "--model", *models, "--collect", kept) as process:
        yield process


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with browsing() as driver:
        yield driver


@pytest.fixture
def page(browser: webdriver.Chrome, service: Running) -> Iterator[Page]:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1100, 900)
    browser.get(f"http://127.0.0.1:{service.port}/")
    page = Page(browser)
    page.wait(lambda: "glyphs47" in page["model"].text)
    page.errors()
    yield page
    assert page.errors() == []  # nothing that the content security policy stopped, either


def test_a_drawn_digit_is_read_while_it_is_drawn(page: Page) -> None:
    assert "Nothing drawn" in page["answer"].text
    page.draw(SEVEN)
    page.wait(lambda: page["letter"].text == "7")
    assert re.fullmatch(r"[\d.]+ % sure", page["words"].text)
    bars = page["bars"].find_elements(By.TAG_NAME, "li")
    assert len(bars) == 5
    assert bars[0].text.split()[0] == "7"
    assert page.driver.execute_script("return document.getElementById('saw').naturalWidth") == 28
    assert page["answer"].get_attribute("aria-live") == "polite"
    page["undo"].click()
    page.wait(lambda: "Nothing drawn" in page["answer"].text)
    assert not page["undo"].is_enabled()


NO_ANSWER_TO_THE_FIRST = """
const real = window.fetch;
let first = true;
window.fetch = (path, options) => {
  if (!first || !path.startsWith("predict")) return real(path, options);
  first = false;
  return new Promise((_, reject) => options.signal.addEventListener("abort", () => reject(new Error("aborted"))));
};
"""


def test_the_end_of_a_stroke_waits_for_no_earlier_answer(page: Page) -> None:
    page.driver.execute_script(NO_ANSWER_TO_THE_FIRST)
    page.draw(SEVEN)
    page.wait(lambda: page["letter"].text == "7")


def test_several_characters_are_read_as_text(page: Page) -> None:
    for place in (-140, 0, 140):
        page.draw([(x * 0.4 + place, y * 0.6) for x, y in SEVEN])
    page.wait(lambda: page["letter"].text == "777")
    assert re.fullmatch(r"[\d.]+ % sure", page["words"].text)
    assert not page["correct"].is_displayed()  # a correction is of one character
    assert not page["saw"].is_displayed()
    page["clear"].click()
    page.wait(lambda: "Nothing drawn" in page["words"].text)


def test_another_model_can_be_chosen(page: Page) -> None:
    about = page["description"]
    assert (about.get_attribute("textContent") or "").startswith("glyphs47.pth: trained on handwriting")
    page.driver.find_element(By.TAG_NAME, "summary").click()
    assert "Pretrained weights" in page["card"].text
    page.draw(SEVEN)
    page.wait(lambda: page["letter"].text == "7")
    page["model"].send_keys("glyphs62")
    page.wait(lambda: about.text.startswith("glyphs62.pth: "))
    assert len(page["label"].find_elements(By.TAG_NAME, "option")) == 62
    page.wait(lambda: page["letter"].text == "7")


def test_an_alphabet_narrows_the_answer(page: Page) -> None:
    page.draw([(0, -110), (0, 110)])
    page.wait(lambda: page["letter"].text != "")
    page["alphabet"].send_keys("ab")
    page.wait(lambda: len(page["bars"].find_elements(By.TAG_NAME, "li")) == 2)
    page["alphabet"].send_keys("!")
    page.wait(lambda: "the model does not know '!'" in page["words"].text)
    assert any("400" in error for error in page.errors())


def test_a_picture_is_chosen_and_a_correction_kept(page: Page, kept: Path, tmp_path: Path) -> None:
    draw_glyph(5).resize((300, 300)).save(tmp_path / "picture.webp")
    page["file"].send_keys(str(tmp_path / "picture.webp"))
    page.wait(lambda: page["correct"].is_displayed())
    page["label"].send_keys("L")
    page["keep"].click()
    page.wait(lambda: page["kept"].text == "Kept as L.")
    assert len(list((kept / "L").glob("*.png"))) == 1
    (tmp_path / "text.png").write_text("no picture")
    page["file"].send_keys(str(tmp_path / "text.png"))
    page.wait(lambda: "This cannot be read" in page["words"].text)
    assert any("422" in error for error in page.errors())


# How far each bar lies to the right of its name, and how much higher its row is.
ROOM = """
const edges = (element) => element.getBoundingClientRect();
return [...document.querySelectorAll("#bars li")].map((row) => {
  const name = edges(row.querySelector("b"));
  return [edges(row.querySelector("i")).left - name.right, edges(row).height - name.height];
});
"""


@pytest.mark.parametrize(("width", "mobile"), [(1100, False), (390, True)])
def test_classes_that_are_words_have_room(browser: webdriver.Chrome, tmp_path: Path, width: int, mobile: bool) -> None:
    names = ["acorn", "blue-triangle", "construction site", "no entry for vehicles of any kind", "star"]
    metadata = {"format": "1", "class_names": json.dumps(names), "preprocess": "plain"}
    model = save_small_onnx(tmp_path / "logos.onnx", metadata, onnx_weights(len(names)))
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    with running("inference.py", "--serve", "--port", 0, "--model", model) as service:
        browser.get(f"http://127.0.0.1:{service.port}/")
        page = Page(browser)
        page.wait(lambda: "logos" in page["model"].text)
        assert "character" not in browser.find_element(By.TAG_NAME, "header").text
        page.draw(SEVEN, 0.7)
        page.wait(lambda: "sure" in page["words"].text)
        rooms = browser.execute_script(ROOM)
        assert len(rooms) == len(names)
        assert min(min(room) for room in rooms) >= 0
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        page["alphabet"].send_keys("acorn star")
        page.wait(lambda: len(browser.execute_script(ROOM)) == 2)


HAND_OVER = """
const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "picture.png", {type: "image/png"}));
const event = arguments[1] === "paste"
  ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})
  : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
return document.body.dispatchEvent(event);
"""


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(page: Page, how: str) -> None:
    picture = base64.b64encode((ROOT / "samples/letter.jpg").read_bytes()).decode()
    goes_on = page.driver.execute_script(HAND_OVER, picture, how)
    page.wait(lambda: page["letter"].text == "R")
    assert goes_on is (how == "paste")  # a browser that goes on would leave the page for a dropped picture


def test_the_keyboard_alone_draws_and_clears(page: Page) -> None:
    for _ in range(3):
        if page.driver.switch_to.active_element.get_attribute("id") == "paper":
            break
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
    pen = page.driver.switch_to.active_element
    assert pen.get_attribute("id") == "paper"
    pen.send_keys(
        *[Keys.ARROW_UP] * 7, *[Keys.ARROW_LEFT] * 5, " ", *[Keys.ARROW_DOWN] * 14, *[Keys.ARROW_RIGHT] * 8, " "
    )
    page.wait(lambda: page["letter"].text == "L")
    pen.send_keys(Keys.DELETE)
    page.wait(lambda: "Nothing drawn" in page["words"].text)


def test_a_phone_shows_all_of_it(page: Page) -> None:
    metrics = {"width": 390, "height": 664, "deviceScaleFactor": 2, "mobile": True}  # between a browser's bars
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
    page.draw(SEVEN, 0.7)
    page.wait(lambda: page["letter"].text == "7")
    box = "return document.getElementById('letter').getBoundingClientRect().bottom"
    assert page.driver.execute_script("return scrollY") == 0
    assert page.driver.execute_script(box) <= 664  # seen beside the paper
    for name in ("undo", "clear"):
        assert page[name].size["height"] >= 44  # a finger's width


def test_a_service_that_went_away_is_told_and_found_again(browser: webdriver.Chrome, service: Running) -> None:
    model = ROOT / "pretrained" / "glyphs47.pth"
    with running("inference.py", "--serve", "--port", 0, "--model", model) as first:
        browser.get(f"http://127.0.0.1:{first.port}/")
        page = Page(browser)
        page.wait(lambda: "glyphs47" in page["model"].text)
    page.draw(SEVEN)
    page.wait(lambda: "does not answer" in page["words"].text)
    with running("inference.py", "--serve", "--port", first.port, "--model", model):
        page.wait(lambda: page["letter"].text == "7")


def test_a_token_comes_with_the_address_and_leaves_it(browser: webdriver.Chrome) -> None:
    model = ROOT / "pretrained" / "glyphs47.pth"
    with running("inference.py", "--serve", "--port", 0, "--model", model, "--token", "secret") as service:
        page = Page(browser)
        browser.get(f"http://127.0.0.1:{service.port}/")
        page.wait(lambda: "Authorization" in page["words"].text)
        browser.get("about:blank")
        browser.get(f"http://127.0.0.1:{service.port}/#token=secret")
        page.wait(lambda: "glyphs47" in page["model"].text)
        assert "secret" not in browser.current_url
        page.draw(SEVEN)
        page.wait(lambda: page["letter"].text == "7")
