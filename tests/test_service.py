"""The service, as a process of its own that clients talk to over loopback."""

import asyncio
import contextlib
import copy
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from starlette.exceptions import HTTPException
from starlette.requests import Request

import inference
from benchmarks.service_torture import BROKEN, bomb
from glyphs.core.arrays import Bytes, Probabilities
from glyphs.core.errors import ConfigError, PictureError
from glyphs.models import runtime as networks
from glyphs.output.rows import Reading
from glyphs.pictures.decode import open_picture, to_grey
from glyphs.reading.predictor import GlyphPredictor
from glyphs.serving import service as service_module
from glyphs.serving.engine import Engine
from glyphs.serving.gate import Limits, Metrics
from tests.conftest import ROOT, Running, refused, run_python, running
from tests.small import NAMES, draw_glyph, save_small_onnx

PNG = "image/png"
DOCUMENT = ROOT / "docs" / "SERVICE.md"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def limited(model: Path, collect: Path | None = None, **limits: float) -> contextlib.AbstractContextManager[Running]:
    """A service with limits of its own, started as `inference.py` starts it."""
    options = f"port=0, collect=Path({str(collect)!r})" if collect else "port=0"
    code = f"""
        import sys
        from pathlib import Path
        from glyphs.core.process import run
        from glyphs.reading.predictor import GlyphPredictor
        from glyphs.serving.gate import Limits
        from glyphs.serving.service import serve
        model = Path({str(model)!r})
        sys.exit(run(lambda: serve([GlyphPredictor(model)], {options}, limits=Limits(**{limits!r}))))
    """
    return running("-c", textwrap.dedent(code))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collect") / "kept"


@pytest.fixture(scope="module")
def service(model: Path, kept: Path) -> Iterator[Running]:
    with running("inference.py", "--serve", "--port", 0, "--model", model, "--collect", kept) as process:
        yield process


def png(number: int = 0) -> bytes:
    file = io.BytesIO()
    draw_glyph(number).save(file, "PNG")
    return file.getvalue()


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart body of named files, and its content type."""
    head = 'Content-Disposition: form-data; name="picture"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [b"--limit\r\n" + head.format(name).encode() + content + b"\r\n" for name, content in files]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def test_rows_are_those_of_inference(service: Running, model: Path, tmp_path: Path) -> None:
    blank = io.BytesIO()
    Image.new("L", (50, 50), 255).save(blank, "PNG")
    good = {f"{number}.png": png(number) for number in range(6)}
    # Those without an answer come first, so that a row at another's place shows.
    pictures = {"blank.png": blank.getvalue(), "text.png": b"no picture"} | good
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "out.json"
    names = [str(tmp_path / name) for name in pictures]
    options = ["--alphabet", "0123456789c", "--min-confidence", "0.17", "--top-k", "3"]
    inference.main(["--model", str(model), "--image", *names, "--output", str(output), *options])
    expected = json.loads(output.read_text(encoding="utf-8"))
    assert {row["status"] for row in expected} >= {"ok", "uncertain", "no_glyph", "failed"}
    body, kind = form(*pictures.items())
    status, rows, _ = service.predict(body, "?alphabet=0123456789c&min_confidence=0.17&top_k=3", kind)
    assert status == 200
    assert [row["file"] for row in rows] == list(pictures)
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == list(other)
        if row["status"] == "failed":
            row["error"] = row["error"].replace("the picture", other["file"])
        assert row | {"file": None} == other | {"file": None}


def test_a_lone_picture_that_shows_nothing_is_answered(service: Running) -> None:
    """The network has nothing to see, then."""
    blank = io.BytesIO()
    Image.new("L", (50, 50), 255).save(blank, "PNG")
    for _ in range(3):  # on whichever thread
        status, [row], _ = service.predict(blank.getvalue())
        assert (status, row["status"]) == (200, "no_glyph")


def test_one_picture_is_the_body(service: Running) -> None:
    for kind in (PNG, "application/octet-stream", "image/x-anything; q=1"):
        status, [row], _ = service.predict(png(), kind=kind)
        assert (status, row["file"], row["status"], len(row["top_k"])) == (200, None, "ok", 5)


def test_text_is_read_as_inference_reads_it(model: Path, tmp_path: Path) -> None:
    page = Image.new("L", (240, 80), 255)
    for place in range(3):
        page.paste(draw_glyph(place), (80 * place, 0))
    page.save(tmp_path / "page.png")
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    names = [str(tmp_path / name) for name in ("page.png", "blank.png", "no.png")]
    output = tmp_path / "out.json"
    inference.main(["--model", str(model), "--image", *names, "--text", "--output", str(output), "--top-k", "2"])
    expected = json.loads(output.read_text(encoding="utf-8"))
    assert [row["status"] for row in expected] == ["ok", "no_glyph", "failed"]
    body, kind = form(*[(Path(name).name, Path(name).read_bytes()) for name in names])
    with running("inference.py", "--serve", "--port", 0, "--model", model, "--text") as service:
        assert service.ask("GET", "/model")[1]["text"] is True
        for query in ("?top_k=2", "?top_k=2&text=true"):
            status, rows, _ = service.predict(body, query, kind)
            assert status == 200
            for row, other in zip(rows, expected, strict=True):
                assert list(row) == list(other)
                error = row["error"] and row["error"].replace("the picture", other["file"])
                assert row | {"file": None, "error": None} == other | {"file": None, "error": None}
                assert error == other["error"]
        [row] = service.predict(png(), "?text=false")[1]
        assert "prediction" in row
        [row] = service.predict((tmp_path / "page.png").read_bytes(), "?alphabet=01")[1]
        assert set(row["text"]) <= {"0", "1", " "}


def test_a_request_may_say_what_its_text_can_hold(service: Running, model: Path, tmp_path: Path) -> None:
    page = Image.new("L", (240, 80), 255)
    for place in range(3):
        page.paste(draw_glyph(place), (80 * place, 0))
    page.save(tmp_path / "page.png")
    content, predictor = (tmp_path / "page.png").read_bytes(), GlyphPredictor(model)
    for query, pattern in (("", None), ("&pattern=%5BA-Z%5D%7B3%7D", "[A-Z]{3}")):
        [row] = service.predict(content, f"?text=true{query}")[1]
        assert (row["status"], row["text"]) == ("ok", predictor.read(tmp_path / "page.png", pattern=pattern).text)
        assert bool(re.fullmatch("[A-Z]{3}", row["text"])) == bool(pattern)


def test_a_request_chooses_among_the_models(model: Path, tmp_path: Path) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        weights = np.random.default_rng(seed).normal(0, 0.05, (28 * 28, len(NAMES))).astype(np.float32)
        save_small_onnx(tmp_path / folder / "model.onnx", weights=weights)
    paths = [tmp_path / folder / "model.onnx" for folder in ("one", "two")]
    with running("inference.py", "--serve", "--port", 0, "--model", *paths) as service:
        facts = service.ask("GET", "/model")[1]
        assert (facts["model"], facts["models"]) == ("one/model.onnx", ["one/model.onnx", "two/model.onnx"])
        assert service.ask("GET", "/model?model=two/model.onnx")[1]["model"] == "two/model.onnx"
        assert service.ask("GET", "/model?model=three")[0] == 400
        queries = ["", "?model=one/model.onnx", "?model=two/model.onnx"]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda query: service.predict(png(), query)[1][0], queries * 4))
        for query, row in zip(queries * 4, found, strict=True):
            [own] = [GlyphPredictor(path).predict(draw_glyph()) for path in (paths[1 if "two" in query else 0],)]
            assert (row["prediction"], row["confidence"]) == (own.prediction, pytest.approx(own.confidence, abs=1e-5))
        assert found[0]["confidence"] != found[2]["confidence"]


def test_the_weights_in_the_box_show_their_card() -> None:
    with running("inference.py", "--serve", "--port", 0, "--model", ROOT / "pretrained" / "glyphs62.pth") as service:
        facts = service.ask("GET", "/model")[1]
    assert facts["card"] == (ROOT / "pretrained" / "README.md").read_text(encoding="utf-8")
    assert facts["settings"]["emnist_split"] == "byclass"
    assert "handwriting" in facts["description"]
    assert not {"data_dir", "output_dir", "finetune"} & set(facts["settings"])


def test_what_the_network_saw_is_given_back(service: Running) -> None:
    import base64

    _, [row], _ = service.predict(png(), "?saw=true")
    with Image.open(io.BytesIO(base64.b64decode(row["saw"]))) as saw:
        assert saw.size == (28, 28)
        assert max(saw.tobytes()) > 200
    _, [row], _ = service.predict(b"nothing", "?saw=true")
    assert row["saw"] is None


@pytest.mark.parametrize("body", [b"", b"no picture", png()[:60]])
def test_a_lone_picture_that_cannot_be_read_is_a_422_with_its_row(service: Running, body: bytes) -> None:
    status, [row], _ = service.predict(body)
    assert (status, row["status"]) == (422, "failed")
    assert row["error"].startswith("the picture: is ")


def test_too_many_pixels(service: Running) -> None:
    status, [row], _ = service.predict(bomb())
    assert (status, row["status"]) == (422, "failed")
    assert "50,000 x 50,000 pixels" in row["error"] or "more than 80,000,000 pixels" in row["error"]


@pytest.mark.parametrize(
    ("query", "fact"),
    [
        ("?top_k=0", "top_k: is not a whole number from 1"),
        ("?top_k=x", "top_k"),
        ("?min_confidence=2", "min_confidence: is not a number from 0 to 1"),
        ("?min_confidence=nan", "min_confidence"),
        ("?alphabet=%C3%A9", "the model does not know 'é'"),
        ("?alphabet=", "alphabet: is empty"),
        ("?text=yes", "text: is neither true nor false"),
        ("?pattern=[0-9]", "pattern: is for text"),
        ("?text=true&pattern=[0-9", "is no regular expression"),
        ("?text=true&saw=true", "saw: is for single characters"),
        ("?model=other.onnx", "model: there is no other.onnx; choose one of model.onnx"),
    ],
)
def test_wrong_parameters_are_a_400(service: Running, query: str, fact: str) -> None:
    status, answer, headers = service.predict(png(), query)
    assert status == 400
    assert fact in answer["error"]
    assert headers["connection"] == "close"


# The third is what curl sends with --data-binary.
@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_a_picture_is_told_by_its_bytes(service: Running, kind: str) -> None:
    status, [row], _ = service.predict(png(), kind=kind)
    assert (status, row["status"]) == (200, "ok")
    status, [row], _ = service.predict(b'{"image": "test.png"}', kind=kind)
    assert (status, row["status"]) == (422, "failed")
    assert "is not a picture" in row["error"]


def test_a_pattern_is_compiled_where_no_request_waits_for_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, threads = GlyphPredictor(model), []

    def view(*arguments: Any) -> GlyphPredictor:
        threads.append(threading.current_thread())
        return GlyphPredictor.view(predictor, *arguments)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": png(), "more_body": False}

    monkeypatch.setattr(predictor, "view", view)
    service = service_module.Service({"model": predictor})
    query = b"text=true&pattern=[0-9]"
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": query, "headers": []}
    response = asyncio.run(service.predict(Request(scope, receive)))
    service.engine.close()
    assert response.status_code == 200
    assert threads
    assert threading.main_thread() not in threads


def test_a_form_must_hold_files_and_be_whole(service: Running) -> None:
    body, kind = form(("a.png", png()))
    assert service.predict(b"--limit--\r\n", kind=kind)[0] == 400
    assert service.predict(body[:-30], kind=kind)[0] in (400, 422)
    assert service.predict(body, kind="multipart/form-data")[0] == 400
    assert service.predict(os.urandom(1000), kind=kind)[0] == 400


def test_too_many_pictures_are_a_413(service: Running) -> None:
    body, kind = form(*[(f"{number}.png", png(number % 10)) for number in range(64)])
    status, rows, _ = service.predict(body, kind=kind)
    assert (status, len(rows)) == (200, 64)
    body, kind = form(*[(f"{number}.png", png()) for number in range(65)])
    assert service.predict(body, kind=kind)[0] == 413


def test_other_paths_and_methods(service: Running) -> None:
    for path in ("/nothing", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/service.py", "//", "/health/"):
        status, answer, _ = service.ask("GET", path)
        assert (status, list(answer)) == (404, ["error"]), path
    assert service.ask("GET", "/predict")[0] == 405
    assert service.ask("GET", "/health", b"x" * 10)[0] == 400


def test_health_model_and_openapi(service: Running) -> None:
    assert service.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    status, facts, _ = service.ask("GET", "/model")
    assert (status, facts["model"], facts["classes"], facts["collect"]) == (200, "model.onnx", NAMES, True)
    assert facts["limits"]["body_bytes"] == 16 << 20
    _, described, _ = service.ask("GET", "/openapi.json")
    assert set(described["paths"]) == {"/predict", "/collect", "/health", "/model", "/metrics"}
    parameters = {each["name"] for each in described["paths"]["/predict"]["post"]["parameters"]}
    assert parameters == {"model", "text", "top_k", "alphabet", "pattern", "min_confidence", "saw"}
    row = described["components"]["schemas"]["Row"]["properties"]
    assert set(service.predict(png(), "?saw=true")[1][0]) == set(row)
    answers = {int(status) for status in described["paths"]["/predict"]["post"]["responses"]}
    assert answers == {200, 400, 401, 403, 408, 413, 422, 431, 503}


def test_metrics_count_what_was_answered(service: Running) -> None:
    def value(name: str) -> float:
        text = service.ask("GET", "/metrics")[1].decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0

    counted = 'glyphs_pictures_total{status="ok"}', 'glyphs_requests_total{path="/predict",status="200"}'
    before = [value(name) for name in counted]
    body, kind = form(("a.png", png()), ("b.png", png(1)))
    service.predict(body, kind=kind)
    assert [value(name) for name in counted] == [before[0] + 2, before[1] + 1]
    service.ask("GET", "/no/such/path")
    assert value('glyphs_requests_total{path="other",status="404"}') > 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "["])
def test_other_hosts_are_refused(service: Running, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/model"), ("POST", "/predict")):
        status, _, _ = service.ask(method, path, png() if method == "POST" else None, {"host": host})
        assert status in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "[::1]:8000", "LOCALHOST:1"])
def test_names_of_this_machine_are_hosts(service: Running, host: str) -> None:
    assert service.ask("GET", "/health", headers={"host": host})[0] == 200


def test_foreign_pages_are_refused(service: Running) -> None:
    own = f"127.0.0.1:{service.port}"
    for origin, status in (
        (f"http://{own}", 200),
        ("http://evil.example", 403),
        ("null", 403),
        (f"http://{own}1", 403),
    ):
        for kind in (PNG, "application/x-www-form-urlencoded"):  # a page may send the latter without asking first
            headers = {"content-type": kind, "origin": origin}
            assert service.ask("POST", "/predict", png(), headers)[0] == status, origin
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert service.ask("GET", "/model", headers=foreign)[0] == 403
    assert service.ask("GET", "/", headers=foreign | {"sec-fetch-mode": "navigate"})[0] == 200  # a link


def test_the_page_asks_nothing_of_other_hosts(service: Running) -> None:
    status, page, headers = service.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "access-control-allow-origin" not in headers
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.decode()):
        status, content, _ = service.ask("GET", f"/{name}")
        assert status == 200, name
        assert b"https:" not in content
        assert b"http:" not in content.replace(b"http://www.w3.org/2000/svg", b"")


def test_corrected_pictures_are_kept_in_folders_of_classes(service: Running, kept: Path) -> None:
    headers = {"content-type": PNG}
    status, answer, _ = service.ask("POST", "/collect?label=7", png(), headers)
    assert status == 201
    [path] = (kept / "7").iterdir()
    assert answer == {"kept": f"7/{path.name}"}
    with Image.open(path) as picture:
        assert picture.convert("L").tobytes() == draw_glyph().tobytes()
    assert service.ask("POST", "/collect?label=c", png(1), headers)[0] == 201  # the model's C
    assert sorted(each.name for each in kept.iterdir()) == ["7", "C"]
    for label in ("", "..", "%2e%2e%2f7", "/", "AB", "7%00"):
        assert service.ask("POST", f"/collect?label={label}", png(), headers)[0] == 400, label
    assert service.ask("POST", "/collect?label=7", b"no picture", headers)[0] == 422
    assert sorted(each.name for each in kept.rglob("*.*")) == sorted(each.name for each in kept.rglob("*.png"))
    assert len(list(kept.rglob("*.png"))) == 2


def odd_pictures() -> dict[str, Image.Image]:
    """A glyph in forms that a careless copy loses: of 16 bits, and transparent in each of the ways there are."""
    grey = draw_glyph()
    ink = ImageOps.invert(grey)
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 200 + 3000)
    clear = Image.new("RGBA", grey.size, (0, 0, 0, 0))  # black ink on nothing
    clear.putalpha(ink)
    light = Image.new("LA", grey.size, (255, 0))  # white ink on nothing
    light.putalpha(ink)
    palette = Image.fromarray((np.asarray(ink) > 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0] * 256)
    palette.info["transparency"] = 0
    colour = Image.merge("RGB", [grey, grey, Image.new("L", grey.size, 255)])
    return {"deep": deep, "clear": clear, "light": light, "palette": palette, "colour": colour}


@pytest.mark.parametrize("kind", odd_pictures())
def test_what_is_kept_is_what_was_read(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    odd_pictures()[kind].save(file, "PNG")
    read = to_grey(open_picture(file.getvalue()))
    assert read.std() > 0.1  # neither all white nor all black
    kept = tmp_path / service_module.Collection(tmp_path, Limits()).keep(file.getvalue(), "7")
    assert np.abs(to_grey(open_picture(kept)) - read).max() <= 2 / 255
    with Image.open(kept) as plain:
        assert plain.mode in ("L", "RGB", "RGBA")
        assert not plain.info


def test_what_would_be_kept_otherwise_than_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "plain_copy", lambda picture: Image.new("L", picture.size, 255))
    with pytest.raises(PictureError, match="not kept"):
        service_module.Collection(tmp_path, Limits()).keep(png(), "7")
    assert not list(tmp_path.rglob("*.png"))


def test_the_last_correction_of_a_picture_holds(tmp_path: Path) -> None:
    collection = service_module.Collection(tmp_path, Limits(collected_pictures=1))
    first = collection.keep(png(), "1")
    assert collection.keep(png(), "7") == first.replace("1/", "7/", 1)
    [path] = tmp_path.rglob("*.png")
    assert path.parent.name == "7"
    assert (collection.pictures, collection.bytes) == (1, path.stat().st_size)


def test_kept_pictures_are_bounded(model: Path, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "old.png").write_bytes(png())
    headers = {"content-type": PNG}
    with limited(model, tmp_path, collected_pictures=3) as service:
        for number, status in ((0, 201), (1, 201), (1, 201), (2, 507)):  # the third is there already
            answered, answer, _ = service.ask("POST", "/collect?label=7", png(number), headers)
            assert answered == status, answer
        assert len(list(tmp_path.rglob("*.*"))) == 3
    with limited(model, tmp_path, collected_bytes=200) as service:
        assert service.ask("POST", "/collect?label=7", png(2), headers)[0] == 507


def test_what_is_not_http_is_answered_and_forgotten(service: Running) -> None:
    huge = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 400_000 + b"\r\n\r\n"
    for sent in (b"\x16\x03\x01" + bytes(range(256)), b"GET / HTTP/9\r\n\r\n", huge):
        try:
            answer = service.raw(sent + b"\r\n\r\n")
            status, fact = (431, b"16 KB") if sent is huge else (400, b"this is no HTTP")
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert fact + b'"}' in answer
        except ConnectionResetError:  # it closed while we still sent
            assert sent is huge
    for length in (b"-1", b"x", b"5, 6", b"99999999999999999999999"):
        head = POST + b"Content-Length: "
        assert service.raw(head + length + b"\r\n\r\n", half_close=True)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")
    chunks = POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nno length\r\n"
    assert service.raw(chunks).startswith(b"HTTP/1.1 400 ")
    cut = POST + b"Content-Length: 1000\r\n\r\n" + png()
    assert service.raw(cut[:300], half_close=True).startswith(b"HTTP/1.1 400 ")
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(png()) + png()
    assert service.raw(whole, half_close=True).startswith(b"HTTP/1.1 200 ")
    assert service.raw(whole[:40], half_close=True) == b""
    assert service.ask("GET", "/health")[0] == 200


def test_large_bodies_are_a_413(model: Path) -> None:
    with limited(model, body_bytes=5000, pictures=2) as service:
        assert service.predict(png())[0] == 200
        assert service.predict(bytes(5001))[0] == 413
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        sent = chunked + b"".join(b"800\r\n" + bytes(0x800) + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
        assert service.raw(sent).startswith(b"HTTP/1.1 413 ")
        waits = POST + b"Expect: 100-continue\r\nContent-Length: 9999\r\n\r\n"
        assert service.raw(waits).startswith(b"HTTP/1.1 413 ")  # and no `100 Continue` before


def test_slow_clients_get_a_408(model: Path) -> None:
    with limited(model, head_seconds=0.3, body_seconds=0.3) as service:
        head = POST + b"Content-Length: 100\r\n\r\n"
        assert service.raw(head).startswith(b"HTTP/1.1 408 ")
        assert service.raw(b"GET /health HT").startswith(b"HTTP/1.1 408 ")
        assert service.raw(b"").startswith(b"HTTP/1.1 408 ")
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        with contextlib.closing(connection):
            for _ in range(3):  # who comes back in time keeps the connection
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b'{"status":"ok"}'
                time.sleep(0.4)
            assert connection.sock is not None


def test_too_many_at_once_are_a_503(model: Path) -> None:
    head = POST + b"Content-Length: %d\r\n\r\n"
    with limited(model, requests=2, bytes_at_once=10_000) as service, contextlib.ExitStack() as stack:
        status, answer, headers = service.predict(bytes(10_001))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "try again" in answer["error"]
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(2)]
        for each in waiting:
            each.sendall(head % len(png()))
        deadline = time.monotonic() + 10
        while service.predict(png())[0] != 503:
            assert time.monotonic() < deadline
        assert service.ask("GET", "/health")[0] == 200
        for each in waiting:
            each.sendall(png())
            assert each.recv(12) == b"HTTP/1.1 200"
        while service.predict(png())[0] != 200:
            assert time.monotonic() < deadline


def test_too_many_connections_are_a_503(model: Path) -> None:
    with limited(model, connections=3) as service, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        status, answer, headers = service.predict(png())
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert "connections" in answer["error"]
        stack.close()
        deadline = time.monotonic() + 10
        while service.predict(png())[0] != 200:
            assert time.monotonic() < deadline


def test_requests_that_come_together_get_their_own_answers(service: Running) -> None:
    queries = ["?alphabet=0123", "?alphabet=ABCD", "?top_k=2", "?min_confidence=1"]
    alone = {(number, query): service.predict(png(number), query)[1] for number in range(10) for query in queries}
    assert len({json.dumps(rows) for rows in alone.values()}) > 20
    wanted = list(alone) * 5
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda each: service.predict(png(each[0]), each[1])[1], wanted))
    for (number, query), rows in zip(wanted, found, strict=True):
        for row, other in zip(rows, alone[number, query], strict=True):
            assert (row["status"], row["prediction"]) == (other["status"], other["prediction"])
            assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-5)
            assert [each["label"] for each in row["top_k"]] == [each["label"] for each in other["top_k"]]


def test_an_alphabet_may_be_named(service: Running) -> None:
    named, spelled = (service.predict(png(3), f"?alphabet={each}&top_k=47")[1] for each in ("digits", "0123456789"))
    assert named == spelled
    assert len(named[0]["top_k"]) == 10


def test_a_bug_shows_nothing_to_the_client(model: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from glyphs.core.process import run
        from glyphs.reading.predictor import GlyphPredictor
        from glyphs.serving.service import serve
        model = Path({str(model)!r})
        predictor = GlyphPredictor(model)
        def network(images):
            raise RuntimeError("a secret")
        predictor.network = network
        sys.exit(run(lambda: serve([predictor], port=0)))
    """
    with running("-c", textwrap.dedent(code)) as service:
        status, answer, _ = service.predict(png())
        assert (status, answer) == (500, {"error": "the service failed; its own output says why"})
        assert service.predict(b"no picture")[0] == 422  # it goes on
        service.process.send_signal(signal.SIGTERM)
        _, said = service.process.communicate(timeout=30)
    assert "a secret" in said


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_finish_what_is_under_way(model: Path, signum: signal.Signals, status: int) -> None:
    with running("inference.py", "--serve", "--port", 0, "--model", model) as service:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(png()))
            while b"glyphs_requests_under_way 1.0" not in service.ask("GET", "/metrics")[1]:
                pass
            service.process.send_signal(signum)
            deadline = time.monotonic() + 10
            with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
                while time.monotonic() < deadline:
                    socket.create_connection(("127.0.0.1", service.port)).close()
            connection.sendall(png())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        _, said = service.process.communicate(timeout=30)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"status": "ok"' in answer
    assert (service.process.returncode, said.splitlines()[-1]) == (status, f"stopped by {signum.name}")
    assert "answered" in said


def test_a_stop_under_load_loses_no_request_that_was_taken(model: Path) -> None:
    answered = []

    def client(service: Running) -> None:
        while True:
            try:
                status, rows, _ = service.predict(png())
            except (ConnectionError, http.client.HTTPException):
                return
            assert status == 200
            answered.append(rows[0]["prediction"])

    with running("inference.py", "--serve", "--port", 0, "--model", model) as service:
        threads = [threading.Thread(target=client, args=(service,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while len(answered) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=30)
        _, said = service.process.communicate(timeout=30)
    assert service.process.returncode == 143
    assert len(answered) >= 50
    assert f"answered {len(answered):,} requests" in said


@pytest.mark.slow
def test_torture(model: Path) -> None:
    result = run_python(
        "benchmarks/service_torture.py", str(model), "--requests", "200", "--clients", "24", "--images", "50",
        "--patience", "3", timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    counts = {name: int(count) for name, count in re.findall(r"^(\S.*?) +(\d+)$", result.stdout, re.MULTILINE)}
    assert counts["good: the same as inference.py"] == counts["good: status"] == 180
    assert set(BROKEN) <= set(counts)
    assert counts["not as it must be"] == 0


def test_a_text_that_takes_too_long_costs_its_own_row_and_holds_up_nobody(model: Path) -> None:
    predictor = GlyphPredictor(model)
    slow = copy.copy(predictor)

    def network(images: Bytes) -> Probabilities:
        time.sleep(0.3)
        return predictor.network(images)

    slow.network = network
    long = Image.new("L", (2000, 800), 255)
    for place in range(100):
        long.paste(draw_glyph(place % 10).resize((50, 50)), (20 + place % 25 * 75, 40 + place // 25 * 160))
    file = io.BytesIO()
    long.save(file, "PNG")

    async def both(engine: Engine) -> tuple[list[Reading], list[Any]]:
        reading = asyncio.create_task(engine.read(slow, 5, [("long.png", file.getvalue())]))
        answers = await asyncio.wait_for(engine.predict(predictor, 5, [(None, png())]), 30)
        return await reading, answers

    with contextlib.closing(Engine(Metrics().batches, networks=1, text_seconds=0.2)) as engine:
        [reading], [(answer, _)] = asyncio.run(both(engine))
    assert reading.status == "failed"
    assert "long.png: its text was not read within 0.2 seconds" in str(reading.error)
    assert answer.status == "ok"


def test_work_of_a_client_that_left_is_dropped(model: Path) -> None:
    slow = copy.copy(GlyphPredictor(model))
    seen = []
    begun, left = threading.Event(), threading.Event()

    def network(images: Bytes) -> Probabilities:
        seen.append(len(images))
        begun.set()
        left.wait(timeout=30)
        return np.full((len(images), len(NAMES)), 1 / len(NAMES), np.float32)

    slow.network = network
    engine = Engine(Metrics().batches, networks=1, text_seconds=20)
    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not begun.is_set():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def ask() -> None:
        request = Request({"type": "http", "headers": []}, receive)
        await request.body()
        pictures = [(None, png(number % 10)) for number in range(2000)]
        with pytest.raises(HTTPException, match="the client has left"):
            await service_module.while_connected(request, engine.predict(slow, 5, pictures))
        left.set()

    with contextlib.closing(engine):
        asyncio.run(ask())
    assert sum(seen) < 1000


def test_networks_run_at_once_on_what_is_ready() -> None:
    """Two threads that both wait for the other's network, and a third's images, which come in parts and in order."""
    engine = Engine(Metrics().batches, networks=2, text_seconds=20)
    together, first = threading.Barrier(2), threading.Event()

    def meet(images: Bytes) -> Probabilities:
        first.set()
        together.wait(timeout=30)
        return images[:, 0, 0, :1] / 255

    sizes = []

    def shade(images: Bytes) -> Probabilities:
        sizes.append(len(images))
        return images[:, 0, 0, :1] / 255

    images = np.arange(100, dtype=np.uint8).repeat(28 * 28).reshape(-1, 1, 28, 28)
    with contextlib.closing(engine), ThreadPoolExecutor(2) as pool:
        one = pool.submit(engine.run, meet, images[:1], threading.Event())
        assert first.wait(30)  # else one thread would take both
        two = pool.submit(engine.run, meet, images[1:2], threading.Event())
        np.testing.assert_array_equal([one.result(), two.result()], [[[0]], [[1 / 255]]])
        np.testing.assert_array_equal(engine.run(shade, images, threading.Event())[:, 0], np.arange(100) / 255)
    assert sum(sizes) == 100
    assert max(sizes) <= 64
    assert not any(thread.is_alive() for thread in engine.networks)


def test_a_service_gives_each_network_one_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, options = [], []
    real = onnxruntime.InferenceSession

    def session(content: bytes, given: onnxruntime.SessionOptions, **more: Any) -> onnxruntime.InferenceSession:
        options.append(given.intra_op_num_threads)
        return real(content, given, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(networks, "usable_cpus", lambda: 3)
    monkeypatch.setattr(service_module, "serve", lambda predictors, **_: served.extend(predictors))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inference.main(["--serve", "--model", str(model), str(ROOT / "pretrained" / "glyphs47.pth")])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert [predictor.on_cpu for predictor in served] == [True, True]
    GlyphPredictor(model)
    assert options == [1, 3]


def test_other_machines_need_a_token(model: Path) -> None:
    with running("inference.py", "--serve", "--port", 0, "--model", model, "--host", "0.0.0.0") as service:
        found = re.search(r"#token=(\S{20,})", service.said)
        assert found, service.said
        given = {"authorization": f"Bearer {found[1]}", "content-type": PNG, "host": "any.example"}
        assert service.ask("GET", "/", headers={"host": "any.example"})[0] == 200
        assert service.ask("GET", "/health", headers={"host": "any.example"})[0] == 200
        for path in ("/model", "/metrics"):
            assert service.ask("GET", path)[0] == 401
            assert service.ask("GET", path, headers=given)[0] == 200
        assert service.ask("POST", "/predict", png(), given)[0] == 200
        for wrong in ("Bearer wrong", "", "Bearer \xe9"):
            assert service.ask("POST", "/predict", png(), given | {"authorization": wrong})[0] == 401
        assert service.ask("POST", "/collect?label=7", png(), given)[0] == 404


def test_the_service_does_not_load_torch(model: Path) -> None:
    code = "import sys, glyphs.serving.service\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_container_has_all_that_reading_needs(model: Path, tmp_path: Path) -> None:
    """What the Dockerfile copies, without the packages that it does not install, reads and serves."""
    docker, marker = (ROOT / "Dockerfile").read_text(encoding="utf-8"), "# To read with an .onnx model"
    assert f"sed '1,/^{marker}/d' requirements.txt" in docker
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    before, found, after = requirements.partition(marker)
    assert found
    assert "onnxruntime" in after
    missing = re.findall(r"^[\w-]+", before, re.MULTILINE)
    assert {"torch", "matplotlib"} <= set(missing)
    copied = re.findall(r"^COPY (\S+)", docker, re.MULTILINE)
    assert copied == ["requirements.txt", "inference.py", "glyphs", "pretrained"]
    for name in copied[1:3]:
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys({[name.replace("scikit-learn", "sklearn") for name in missing]}))
        sys.path.insert(0, {str(tmp_path)!r})
        import inference
        sys.exit(inference.command())
    """
    with running("-c", textwrap.dedent(code), "--serve", "--port", 0, "--model", model) as service:
        assert service.predict(png())[0] == 200
        assert service.predict(png(), "?text=true")[0] == 200
        assert service.ask("GET", "/model")[0] == 200


def test_wrong_flags_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve = ["--serve", "--model", str(model)]
    for arguments, fact in (
        (["--image", "a.png", "--port", "1"], "--port is for --serve"),
        ([*serve, "--output", "x.json"], "leave out --output"),
        (["--image", "a.png", "--model", "a.onnx", "b.onnx"], "several files with --serve only"),
        ([*serve, "--port", "70000"], "--port"),
        ([*serve, "--image", "a.png"], "not allowed with"),
    ):
        with pytest.raises(SystemExit) as caught:
            inference.main(arguments)
        assert caught.value.code == 2
        assert fact in capsys.readouterr().err
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refused(ConfigError, "--port", port, "in use"):
            inference.main([*serve, "--port", str(port)])
    with refused(ConfigError, "--host no.such.host.invalid"):
        inference.main([*serve, "--host", "no.such.host.invalid"])
    with refused(ConfigError, "--collect", tmp_path / "file"):
        inference.main([*serve, "--collect", str(tmp_path / "file")])


def test_the_examples_of_the_document_run(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(["test.png", "a.png", "b.png"]):
        draw_glyph(number).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
    [python] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(python, DOCUMENT.name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.startswith("ok ")
    commands = re.findall(r"^curl .*", text, re.MULTILINE)
    assert len(commands) == 4
    if not shutil.which("curl"):
        pytest.skip("no curl to run the examples with")
    answers = [
        json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout)
        for command in commands
    ]
    assert [row["file"] for row in answers[1]] == ["a.png", "b.png"]
    assert len(answers[0][0]["top_k"]) == 3
    assert "text" in answers[2][0]
    assert answers[3] == {"status": "ok"}


def test_the_document_states_the_limits() -> None:
    limits, text = Limits(), DOCUMENT.read_text(encoding="utf-8")
    for fact in (
        f"{limits.body_bytes >> 20} MiB, or the form more than {limits.pictures} pictures",
        f"within {limits.head_seconds:g} seconds, or the body within {limits.body_seconds:g}",
        f"more than {limits.requests} requests, {limits.bytes_at_once >> 20} MiB of bodies",
        f"or {limits.connections:,} connections at once",
        f"holds {limits.collected_pictures:,} pictures, or {limits.collected_bytes >> 30} GiB, in all",
        f"(for {limits.stop_seconds:g} seconds at most)",
    ):
        assert fact in text
