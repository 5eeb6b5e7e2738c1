"""Several processes read one folder into one file: the bytes of one process, however often they are stopped."""

import concurrent.futures
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

import inference
from glyphs.commands.read import SOME_FAILED, read_together
from glyphs.commands.read_arguments import parse
from glyphs.core.errors import ConfigError, DataError, GlyphError
from glyphs.core.process import Interrupted
from glyphs.output.parts import Parts, parts_folder
from tests.conftest import ROOT, finish, refused, torchrun
from tests.small import draw_glyph, save_small_onnx

PICTURES = 23


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """What reads a folder of pictures, one of them damaged, three at a time."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(PICTURES - 2):
        draw_glyph(number % 10).save(folder / ("sub" if number % 3 else "") / f"{number}.png")
    Image.new("L", (50, 50), 255).save(folder / "blank.png")
    (folder / "5.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").touch()
    model = save_small_onnx(tmp_path / "model.onnx")
    return ["--model", str(model), "--batch", str(folder), "--batch-size", "3"]


def together(command: list[str], output: Path, count: int, meet: Callable[[], None] | None = None) -> list[int]:
    """The exit statuses of `count` processes, which are threads here."""
    barrier = threading.Barrier(count, timeout=60)

    def wait() -> None:
        barrier.wait()

    arguments, config = parse([*command, "--output", str(output)], None)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        running = [
            pool.submit(read_together, arguments, config, number, count, meet or wait) for number in range(count)
        ]
        return [each.result() for each in running]


def alone(command: list[str], output: Path) -> bytes:
    assert inference.main([*command, "--output", str(output)]) == SOME_FAILED
    return output.read_bytes()


def stopped(command: list[str], output: Path, count: int) -> Path:
    """The folder of parts that processes leave which are stopped before they join them."""

    class Stopped(Exception):
        pass

    barrier = threading.Barrier(count, timeout=60)
    meetings = threading.local()

    def meet() -> None:
        barrier.wait()
        meetings.number = getattr(meetings, "number", 0) + 1
        if meetings.number == 3:
            raise Stopped

    with pytest.raises(Stopped):
        together(command, output, count, meet)
    return output.with_name(output.name + ".parts")


@pytest.mark.parametrize("options", [[], ["--text"]], ids=["characters", "text"])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_any_number_of_processes_writes_the_bytes_of_one(
    command: list[str], tmp_path: Path, options: list[str], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = alone([*command, *options], tmp_path / "alone.jsonl")
    said = capsys.readouterr().err
    output = tmp_path / "together.jsonl"
    assert together([*command, *options], output, count) == [SOME_FAILED] + [0] * (count - 1)
    assert output.read_bytes() == whole
    assert whole.count(b"\n") == PICTURES
    assert capsys.readouterr().err == said
    assert f"{PICTURES} pictures:" in said
    assert "1 other files skipped" in said
    assert not output.with_name("together.jsonl.parts").exists()


def test_a_name_too_long_to_save_what_the_model_saw_ends_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_glyph().save(tmp_path / "pictures" / f"{'n' * 248}.png")
    said = {}
    for count in (1, 2):
        saving = [*command, "--save-preprocessed", str(tmp_path / f"saw{count}")]
        if count == 1:
            alone(saving, tmp_path / "alone.jsonl")
        else:
            together(saving, tmp_path / "together.jsonl", count)
        said[count] = capsys.readouterr().err.replace(f"saw{count}", "saw")
    assert said[1].count("n.png.png: is not saved, its name is too long") == 1
    assert sorted(said[1].splitlines()) == sorted(said[2].splitlines())
    assert (tmp_path / "together.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    saved = [sorted(path.relative_to(folder) for path in folder.rglob("*.png")) for folder in tmp_path.glob("saw*")]
    assert len(saved[0]) == PICTURES - 2  # all but the damaged one and the blank one
    assert saved[0] == saved[1]


def test_each_picture_is_read_by_one_process(command: list[str], tmp_path: Path) -> None:
    parts = stopped(command, tmp_path / "x.jsonl", 3)
    written = [path.read_bytes().splitlines() for path in sorted(parts.glob("*.part"))]
    rows = [[json.loads(line.split(b"\t")[1])["file"] for line in lines] for lines in written]
    assert sorted(map(len, rows)) == [6, 8, 9]  # of eight blocks, the last of two pictures
    assert len({name for part in rows for name in part}) == PICTURES


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_was_stopped_goes_on_in_another_number(command: list[str], tmp_path: Path, count: int) -> None:
    whole = alone(command, tmp_path / "alone.jsonl")
    output = tmp_path / "x.jsonl"
    first, second, third = sorted(stopped(command, output, 3).glob("*.part"))
    kept = first.read_bytes()
    second.write_bytes(second.read_bytes()[:-100])  # killed while it wrote a row
    third.unlink()
    with patch.object(Parts, "write", autospec=True, side_effect=Parts.write) as write:
        together(command, output, count)
    assert output.read_bytes() == whole
    assert write.call_count == PICTURES - kept.count(b"\n") - 6  # the second's first two blocks were whole


def test_one_process_goes_on_with_what_several_began(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = alone(command, tmp_path / "alone.jsonl")
    output = tmp_path / "x.jsonl"
    stopped(command, output, 2)
    capsys.readouterr()
    assert alone(command, output) == whole
    assert f"holds {PICTURES} rows" in capsys.readouterr().err
    assert alone(command, output) == whole  # and nothing is left to do


def test_a_join_that_was_killed_is_done_again(command: list[str], tmp_path: Path) -> None:
    whole = alone(command, tmp_path / "alone.jsonl")
    output = tmp_path / "x.jsonl"
    stopped(command, output, 2)
    with patch("glyphs.output.parts.os.fsync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        together(command, output, 1)
    assert output.read_bytes() == whole  # but nobody knows
    together(command, output, 2)
    assert output.read_bytes() == whole


def test_earlier_rows_stay_and_new_pictures_follow(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    before = alone(command, output)
    for number in range(4):
        draw_glyph(number).save(tmp_path / "pictures" / f"0{number}.png")
    together(command, output, 2)
    after = output.read_bytes()
    assert after.startswith(before)
    rows = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert [row["file"] for row in rows] == ["00.png", "01.png", "02.png", "03.png"]


def test_parts_of_another_run_are_refused(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    parts = stopped(command, output, 2)
    with refused(ConfigError, parts, "top_k 5, not 3"):
        together([*command, "--top-k", "3"], output, 1)
    assert len(list(parts.glob("*.part"))) == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"bytes": null}'])
def test_a_damaged_folder_of_parts_is_refused(command: list[str], tmp_path: Path, damage: bytes) -> None:
    parts = stopped(command, tmp_path / "x.jsonl", 1)
    (parts / "about.json").write_bytes(damage)
    with refused(DataError, parts, "is damaged", "begin again"):
        together(command, tmp_path / "x.jsonl", 1)


@pytest.mark.parametrize("name", ["about.json", "0001-00000.part"])
def test_a_file_among_the_parts_that_cannot_be_opened_is_named(command: list[str], tmp_path: Path, name: str) -> None:
    path = stopped(command, tmp_path / "x.jsonl", 1) / name
    path.unlink()
    path.mkdir()  # which root cannot open either
    with refused(DataError, path, "cannot be opened (Is a directory)", "begin again"):
        together(command, tmp_path / "x.jsonl", 1)


def test_what_is_no_part_is_left_out(command: list[str], tmp_path: Path) -> None:
    whole = alone(command, tmp_path / "alone.jsonl")
    output = tmp_path / "x.jsonl"
    parts = stopped(command, output, 1)
    (parts / "copy of 0001-00000.part").write_bytes(b"0\t{}\n")
    together(command, output, 1)
    assert output.read_bytes() == whole


def test_a_file_with_the_name_of_the_folder_of_parts_is_named_and_stays(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    (mine := parts_folder(output)).write_text("mine")
    with refused(GlyphError, mine, "Not a directory"):
        together(command, output, 1)
    assert mine.read_text() == "mine"


def test_a_damaged_part_is_refused(command: list[str], tmp_path: Path) -> None:
    [part] = stopped(command, tmp_path / "x.jsonl", 1).glob("*.part")
    part.write_bytes(part.read_bytes().replace(b'{"file": "blank', b'{"file: "blank'))
    with refused(DataError, part.parent, "begin again"):
        together(command, tmp_path / "x.jsonl", 1)


def test_pictures_that_change_meanwhile_are_refused(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    parts = stopped(command, output, 2)
    draw_glyph().save(tmp_path / "pictures" / "0a.png")
    with refused(DataError, parts, "leave the pictures alone", "begin again"):
        together(command, output, 1)


@pytest.mark.slow
def test_torchrun_shares_a_folder(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "pictures" / "5.jpg").unlink()
    output = tmp_path / "x.jsonl"
    status, _, said = finish(torchrun("inference.py", *command, "--output", str(output)))
    assert status == 0, said
    assert said.count(f"{PICTURES - 1} pictures") == 1
    inference.main([*command, "--output", str(tmp_path / "alone.jsonl")])
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.slow
def test_what_torchrun_cannot_share_is_said_once(command: list[str], tmp_path: Path) -> None:
    status, _, said = finish(torchrun("inference.py", *command, "--output", str(tmp_path / "x.csv")))
    assert status == 1  # torchrun's own
    assert said.count("error: torchrun: processes share --batch DIR into one --output FILE.jsonl") == 1


ONE_FAILS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import inference
from glyphs.core.errors import DataError
from glyphs.reading.predictor import GlyphPredictor

def fail(*arguments, **options):
    raise DataError("the disk of the second process is gone")

if os.environ["RANK"] == "1":
    GlyphPredictor.classify = fail
sys.exit(inference.command())
"""


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_its_message_and_the_same_command_goes_on(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "5.jpg").unlink()
    (script := tmp_path / "one_fails.py").write_text(ONE_FAILS)
    output = tmp_path / "x.jsonl"
    status, _, said = finish(torchrun(str(script), *command, "--output", str(output)))
    assert status == 1  # torchrun's own
    assert said.count("error: the disk of the second process is gone\n") == 1
    assert output.read_bytes() == b""  # the rows that the first has are in its part
    status, _, said = finish(torchrun("inference.py", *command, "--output", str(output)))
    assert status == 0, said
    inference.main([*command, "--output", str(tmp_path / "alone.jsonl")])
    assert output.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_whoever_is_stopped_hears_what_is_kept(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = alone(command, tmp_path / "alone.jsonl")
    stopped(command, tmp_path / "rows.jsonl", 2)
    (tmp_path / "rows.jsonl.parts" / "0001-00001.part").unlink()
    with patch.object(Parts, "write", side_effect=Interrupted(signal.SIGINT)), pytest.raises(Interrupted):
        inference.main([*command, "--output", str(tmp_path / "rows.jsonl")])
    assert "rows.jsonl.parts keeps the rows so far; the same command goes on" in capsys.readouterr().err
    assert alone(command, tmp_path / "rows.jsonl") == whole
