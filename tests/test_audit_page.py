"""The page of an audit in a real browser: judged with the keyboard, saved, and read by training."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from benchmarks.page import BROWSER, DRIVER, browsing
from glyphs.data.verdicts import VERDICT_COLUMNS, read_verdicts
from glyphs.evaluation.audit_report import write_report_of_audit
from glyphs.evaluation.auditset import AuditSet, Suspect
from tests.small import CLASSES, make_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER or not DRIVER, reason="no browser: install Debian's chromium and chromium-driver, or the like"
    ),
]
KEEP_BLOBS = "window.blobs = []; URL.createObjectURL = (blob) => { window.blobs.push(blob); return 'data:,'; };"
LAST_BLOB = "const done = arguments[0]; window.blobs.at(-1).text().then(done);"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with browsing() as driver:
        yield driver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reports of five suspicious images, two of whose names and classes need care in a CSV file and in HTML."""
    images, labels = make_images(5, 0)
    files = ['a "b", c.png', "</script><b>.png", "=1.png", "3.png", "4.png"]
    names = [*CLASSES, "=", "<i>"]
    audited = AuditSet(images, images, labels, files, ["train"] * 5, [f"{n:016x}" for n in range(5)], names, [])
    suspects = [Suspect(place, None if place == 4 else 3, 1 - place / 10, "label") for place in range(5)]
    write_report_of_audit(tmp_path, audited, suspects, "a summary & <more>\n")
    return tmp_path


def shown(driver: webdriver.Chrome, name: str) -> str:
    return driver.find_element(By.ID, name).text


def test_labels_are_judged_with_the_keyboard_and_saved(browser: webdriver.Chrome, folder: Path) -> None:
    browser.get((folder / "audit.html").as_uri())
    browser.execute_script(KEEP_BLOBS)
    assert shown(browser, "where") == "1 of 5; 0 judged"
    assert shown(browser, "reason") == 'a "b", c.png: label, score 1.0000'
    assert browser.execute_script("return document.getElementById('picture').naturalWidth") == 28
    press = ActionChains(browser)
    press.send_keys("k", "s", "d", "d", "u").perform()  # the last of them takes back nothing: it is of the fifth
    assert shown(browser, "where") == "5 of 5; 4 judged"
    assert not browser.find_element(By.ID, "relabel").is_enabled()  # nothing is suggested
    ActionChains(browser).send_keys("s").perform()
    assert shown(browser, "verdict") == "none yet"
    ActionChains(browser).send_keys("l", "<i>", Keys.ENTER).perform()
    assert shown(browser, "verdict") == "relabel"
    ActionChains(browser).send_keys(Keys.ARROW_LEFT, "u", "n").perform()
    assert shown(browser, "where") == "4 of 5; 4 judged"  # the next without a verdict is this one
    ActionChains(browser).send_keys("l", "nonsense", Keys.ENTER, Keys.ESCAPE).perform()
    assert "there is no such class" in shown(browser, "saved")
    ActionChains(browser).send_keys("w").perform()
    saved = browser.execute_async_script(LAST_BLOB)
    rows = list(csv.DictReader(io.StringIO(saved)))
    assert list(rows[0]) == list(VERDICT_COLUMNS)
    assert [row["verdict"] for row in rows] == ["keep", "relabel", "drop", "", "relabel"]
    assert [row["suggested"] for row in rows] == ["'="] * 4 + ["<i>"]
    assert [row["file"] for row in rows][:3] == ['a "b", c.png', "</script><b>.png", "'=1.png"]
    (folder / "audit.csv").write_text(saved, encoding="utf-8")
    assert len(read_verdicts(folder / "audit.csv")) == 5
    browser.find_element(By.TAG_NAME, "summary").click()
    assert shown(browser, "summary") == "a summary & <more>"
    problems = [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]
    assert problems == []


def test_an_audit_that_found_nothing_has_a_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    audited = AuditSet(images, images, torch.zeros(1, dtype=torch.int64), ["a"], ["train"], ["0"], CLASSES, [])
    write_report_of_audit(tmp_path, audited, [], "")
    browser.get((tmp_path / "audit.html").as_uri())
    ActionChains(browser).send_keys("k", "n", Keys.ARROW_RIGHT).perform()
    assert shown(browser, "where") == "Nothing is suspicious."
