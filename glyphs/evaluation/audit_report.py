"""What an audit leaves: audit.csv, a sheet of pictures for each class, and a page on which a person judges them."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from glyphs.core.files import explain_write_error, replace_file
from glyphs.core.text import csv_cell, one_line
from glyphs.data.demo import font_folder
from glyphs.data.verdicts import VERDICT_COLUMNS
from glyphs.evaluation.auditset import AuditSet, Suspect

TABLE, JUDGING_PAGE, SUMMARY, SHEETS = "audit.csv", "audit.html", "audit.txt", "sheets"
MOST_SHOWN = 5000  # pictures in the page, half a kilobyte to three each
SHEET_TILE, CAPTION, TILES_ACROSS, MOST_TILES = 84, 30, 10, 100  # of a sheet; pixels, pixels, pictures, pictures


def rows_of(images: AuditSet, suspects: Sequence[Suspect]) -> list[dict[str, object]]:
    """The rows of audit.csv, cells as spreadsheets may have them."""
    names = [csv_cell(name) for name in images.class_names]
    return [
        {
            "file": csv_cell(images.files[place]),
            "label": names[int(images.labels[place])],
            "suggested": "" if suggested is None else names[suggested],
            "score": f"{score:.4f}",
            "reason": csv_cell(reason),
            "verdict": "",
            "digest": images.digests[place],
        }
        for place, suggested, score, reason in suspects
    ]


def write_report_of_audit(folder: Path, images: AuditSet, suspects: Sequence[Suspect], summary: str) -> None:
    """Write all of it into an existing folder.  Raises GlyphError where a file cannot be written."""
    rows = rows_of(images, suspects)
    table = io.StringIO()
    writer = csv.DictWriter(table, VERDICT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(folder / TABLE, table.getvalue().encode())
    replace_file(folder / SUMMARY, summary.encode())
    write_sheets(folder / SHEETS, images, suspects)
    replace_file(folder / JUDGING_PAGE, page_of(images, suspects, rows, summary).encode())


def write_sheets(folder: Path, images: AuditSet, suspects: Sequence[Suspect]) -> None:
    """A sheet a class with its most suspicious pictures; those of an earlier audit go."""
    with explain_write_error(folder):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
    of_class: dict[int, list[Suspect]] = {}
    for suspect in suspects:
        of_class.setdefault(int(images.labels[suspect.place]), []).append(suspect)
    for label, listed in sorted(of_class.items()):
        picture = io.BytesIO()
        draw_sheet(images, label, listed).save(picture, "PNG")
        shown = "".join(each if each.isalnum() else "_" for each in images.class_names[label])[:40]
        replace_file(folder / f"{label:03}_{shown}.png", picture.getvalue())


def draw_sheet(images: AuditSet, label: int, suspects: Sequence[Suspect]) -> Image.Image:
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 11)
    shown = suspects[:MOST_TILES]
    lines = -(-len(shown) // TILES_ACROSS)
    sheet = Image.new("L", (TILES_ACROSS * (SHEET_TILE + 6) + 6, lines * (SHEET_TILE + CAPTION) + 26), 255)
    draw = ImageDraw.Draw(sheet)
    title = f"{images.class_names[label]}: {len(shown)} of {len(suspects)} suspicious pictures; likely class, score"
    draw.text((6, 6), one_line(title), fill=0, font=font)
    for number, (place, suggested, score, reason) in enumerate(shown):
        x, y = 6 + number % TILES_ACROSS * (SHEET_TILE + 6), 26 + number // TILES_ACROSS * (SHEET_TILE + CAPTION)
        picture = Image.fromarray(images.pictures[place, 0].numpy())
        sheet.paste(picture.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.NEAREST), (x, y))
        words = reason.split()[0] if suggested is None else images.class_names[suggested]
        draw.text((x, y + SHEET_TILE + 1), one_line(f"{words[:9]} {score:.2f}"), fill=0, font=font)
    return sheet


def page_of(images: AuditSet, suspects: Sequence[Suspect], rows: Sequence[dict[str, object]], summary: str) -> str:
    """The page, which needs no other file."""
    shown = []
    for place, *_ in suspects[:MOST_SHOWN]:
        picture = io.BytesIO()
        Image.fromarray(images.pictures[place, 0].numpy()).save(picture, "PNG", optimize=True)
        shown.append(base64.b64encode(picture.getvalue()).decode())
    content = {
        "columns": VERDICT_COLUMNS,
        "rows": [list(row.values()) for row in rows],
        "pictures": shown,
        "classes": [csv_cell(name) for name in images.class_names],
        "summary": summary,
    }
    # Within a script only </ would end it, and <! could begin a comment.
    text = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    template = Path(__file__).with_name("audit.html").read_text(encoding="utf-8")
    return template.replace("{{content}}", text)
