"""A report of one page: slide, model, engine, findings with pictures, who signed, and the hashes that prove it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from review.export import Reviewed
from review.export.texts import TEXTS
from slides.errors import SlideError

FONT = "WenQuanYiMicroHei"
FONT_FILE = Path(__file__).parent / "fonts" / "wqy-microhei.ttf"
MARGIN = 42.0
COLUMNS, PICTURES = 3, 6
PICTURE_HEIGHT = 100.0
# What a finding takes at most: its picture, and ten lines of words.
ROW_HEIGHT = PICTURE_HEIGHT + 1.35 * (2 * 9 + 2 * 7.5 + 7.5 + 3 * 8)
FOOT = MARGIN + 14 * 7  # the signature is below
PICTURE_PX, OVERVIEW_PX = 360, 700
# Told apart by colour-blind eyes, and each has its word beside it (Okabe and Ito's colours).
COLOURS = {
    "accepted": (213, 94, 0),
    "rejected": (0, 114, 178),
    "unsure": (0, 120, 85),
    None: (70, 70, 70),
}
_URGENT = {"accepted": 0, "unsure": 1, None: 2, "rejected": 3}


def make(reviewed: Reviewed, language: str) -> bytes:
    """One page of A4, in English or Chinese ("en", "zh"). Of more than six findings, accepted and unsure ones are shown first.

    Letters that the font does not have are printed as [U+....], never left out.
    """
    if FONT not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(TTFont(FONT, FONT_FILE))
    file = io.BytesIO()
    page = _Page(
        Canvas(file, pagesize=A4, invariant=1, lang="zh-CN" if language == "zh" else "en"), reviewed, TEXTS[language]
    )
    page.canvas.setTitle(printable(f"{page.text['title']}: {reviewed.facts.id}"))
    page.draw()
    page.canvas.save()
    return file.getvalue()


def printable(text: str) -> str:
    """The text in letters that the font has."""
    known = pdfmetrics.getFont(FONT).face.charToGlyph
    return "".join(
        letter if ord(letter) in known else " " if letter.isspace() else f"[U+{ord(letter):04X}]" for letter in text
    )


def wrap(text: str, size: float, width: float, most: int) -> list[str]:
    """Lines of at most `width` points, broken at blanks where that is possible, the last of `most` with an ellipsis."""
    found: list[str] = []
    for paragraph in printable(text.replace("\t", " ")).split("\n") if "\n" in text else [printable(text)]:
        line = ""
        for letter in paragraph:
            if pdfmetrics.stringWidth(line + letter, FONT, size) <= width:
                line += letter
                continue
            head, blank, tail = line.rpartition(" ")
            # Chinese has no blanks; nor has a long name.
            found.append(head if blank and len(tail) < 20 else line)
            line = (tail if blank and len(tail) < 20 else "") + letter
        found.append(line)
    if len(found) <= most:
        return found
    last = found[most - 1]
    while last and pdfmetrics.stringWidth(f"{last}…", FONT, size) > width:
        last = last[:-1]
    return [*found[: most - 1], f"{last}…"]


class _Page:
    def __init__(self, canvas: Canvas, reviewed: Reviewed, text: Mapping[str, str]) -> None:
        self.canvas, self.reviewed, self.text = canvas, reviewed, text
        self.width, self.height = A4
        self.y = self.height - MARGIN

    def draw(self) -> None:
        self._title()
        top = self.y
        self._facts()
        low = self.y
        self.y = min(low, self._overview(top)) - 8
        self._warnings()
        self._findings()
        self._signature()

    def _line(self, x: float, y: float, text: str, size: float, colour: tuple[int, int, int] = (20, 20, 20)) -> None:
        self.canvas.setFillColorRGB(*(value / 255 for value in colour))
        self.canvas.setFont(FONT, size)
        self.canvas.drawString(x, y, text)

    def _lines(
        self, x: float, text: str, size: float, width: float, most: int, colour: tuple[int, int, int] = (20, 20, 20)
    ) -> None:
        for line in wrap(text, size, width, most):
            self.y -= size * 1.35
            self._line(x, self.y, line, size, colour)

    def _title(self) -> None:
        signed = self.reviewed.document["signed"]
        self.y -= 18
        self._line(MARGIN, self.y, self.text["title"], 18)
        label, colour = (self.text["signed"], (0, 95, 70)) if signed else (self.text["unsigned"], (170, 30, 0))
        width = pdfmetrics.stringWidth(label, FONT, 13)
        self._line(self.width - MARGIN - width, self.y, label, 13, colour)
        self.y -= 8
        self.canvas.setStrokeColorRGB(0.4, 0.4, 0.4)
        self.canvas.line(MARGIN, self.y, self.width - MARGIN, self.y)

    def _facts(self) -> None:
        facts, document, text = self.reviewed.facts, self.reviewed.document, self.text
        size = f"{facts.width} x {facts.height} px"
        if facts.mpp_x and facts.mpp_y:
            millimetres = facts.width * facts.mpp_x / 1000, facts.height * facts.mpp_y / 1000
            size += f", {millimetres[0]:.1f} x {millimetres[1]:.1f} mm, {facts.mpp_x:.4g} µm/px"
        rows = [
            (text["slide"], facts.id, 3),
            (text["state"], text.get(f"state_{facts.state}", facts.state), 1),
            (text["size"], size, 2),
            (
                text["patches"],
                text["patch_counts"].format(**{"planned": 0, "inferred": 0, "failed": 0, **facts.patches}),
                2,
            ),
            (text["model"], _model(facts.model, text), 2),
            (text["engine"], ", ".join(_plain(facts.engine)), 3),
        ]
        if document["class"] is not None:
            values = {"name": document["class"], "threshold": document["threshold"], "min_um2": document["min_um2"]}
            rows.append((text["settings"], text["settings_are"].format(**values), 2))
        for label, value, most in rows:
            y = self.y
            self._line(MARGIN, y - 12, label, 8, (100, 100, 100))
            self._lines(MARGIN + 62, value, 9, 238, most)
            self.y = min(self.y, y - 12) - 2

    def _overview(self, top: float) -> float:
        """Draws the overview with all findings; gives where it ends."""
        facts = self.reviewed.facts
        box = self.width - MARGIN - (MARGIN + 310), 185.0
        image = self._picture(0, 0, facts.width, facts.height, OVERVIEW_PX) if facts.width and facts.height else None
        if image is None:
            return top
        pen, scale = ImageDraw.Draw(image), image.width / facts.width
        for finding in self.reviewed.findings:
            ring = [(x * scale, y * scale) for x, y in finding["outline"]]
            _outline(pen, ring, finding)
        return self._place(image, MARGIN + 310, top - 6, *box)

    def _warnings(self) -> None:
        facts = self.reviewed.facts
        found = []
        if facts.state != "complete":
            reason = facts.reason or self.text.get(f"state_{facts.state}", facts.state)
            found.append(self.text["unread"].format(reason=reason))
        if self.reviewed.document["outdated"]:
            found.append(self.text["outdated"])
        for warning in found:
            self._lines(MARGIN, warning, 10, self.width - 2 * MARGIN, 3, (170, 30, 0))
            self.y -= 3

    def _findings(self) -> None:
        text, findings = self.text, self.reviewed.findings
        self.y -= 16
        self._line(MARGIN, self.y, text["findings"], 12)
        if not findings:
            self._lines(MARGIN, text["no_findings"], 9, self.width - 2 * MARGIN, 2)
            return
        verdicts = [finding["verdict"] or "none" for finding in findings]
        counts = {name: verdicts.count(name) for name in ("accepted", "rejected", "unsure", "none")}
        drawn = sum(finding["kind"] == "drawn" for finding in findings)
        self._lines(MARGIN, text["counts"].format(**counts, drawn=drawn), 9, self.width - 2 * MARGIN, 2)
        shown = sorted(findings, key=lambda finding: _URGENT[finding["verdict"]])[:PICTURES]
        width = (self.width - 2 * MARGIN - 12 * (COLUMNS - 1)) / COLUMNS
        start, low, count = self.y - 6, self.y, 0
        for finding in shown:
            if count % COLUMNS == 0:
                start = low - 6
                if start - ROW_HEIGHT < FOOT:
                    break
            self.y = start
            self._finding(finding, MARGIN + (count % COLUMNS) * (width + 12), width)
            low, count = min(low, self.y), count + 1
        self.y = low
        if len(findings) > count:
            self._lines(MARGIN, text["more"].format(count=len(findings) - count), 9, self.width - 2 * MARGIN, 1)

    def _finding(self, finding: Mapping[str, Any], x: float, width: float) -> None:
        text, facts = self.text, self.reviewed.facts
        left, top, wide, high = finding["bbox"]
        # A little of what lies around it, and no less than 100 px, so that one sees where it is.
        side = max(wide, high * 4 / 3, 100) * 1.25
        place = int(left + wide / 2 - side / 2), int(top + high / 2 - side * 0.375), int(side), int(side * 0.75)
        image = self._picture(*place, PICTURE_PX)
        if image is None:
            self._lines(x, text["no_picture"], 8, width, 2, (100, 100, 100))
        else:
            pen, scale = ImageDraw.Draw(image), image.width / place[2]
            ring = [((px - place[0]) * scale, (py - place[1]) * scale) for px, py in finding["outline"]]
            _outline(pen, ring, finding)
            self.y = self._place(image, x, self.y, width, PICTURE_HEIGHT)
        title = [f"{finding['rank']}." if finding["rank"] else "", finding["class"] or text["drawn"]]
        label = f"{' '.join(part for part in title if part)}: {text[finding['verdict'] or 'none']}"
        self._lines(x, label, 9, width, 2, COLOURS[finding["verdict"]])
        known = []
        if finding["max"] is not None:
            known.append(text["probability"].format(max=finding["max"], mean=finding["mean"]))
        if finding["area_um2"] is not None:
            area = finding["area_um2"]
            known.append(f"{area / 1e6:.3g} mm²" if area >= 1e5 else f"{area:.0f} µm²")
        if facts.width:
            known.append(f"({left:.0f}, {top:.0f})")
        self._lines(x, ", ".join(known), 7.5, width, 2)
        if finding["by"]:
            self._lines(x, text["by"].format(by=finding["by"], at=finding["at"][:16]), 7.5, width, 1, (100, 100, 100))
        if finding["comment"]:
            self._lines(x, finding["comment"], 8, width, 3)

    def _signature(self) -> None:
        """At the foot of the page."""
        text, document, signed = self.text, self.reviewed.document, self.reviewed.document["signed"]
        width = self.width - 2 * MARGIN - 80
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        rows = [(text["reviewer"], document["reviewer"] or "-", 1)]
        if signed:
            rows = [
                (text["signature"], text["by"].format(by=signed["by"], at=signed["at"]), 1),
                (text["statement"], signed["statement"], 2),
                (text["hash"], f"{signed['n']}:{signed['hash']}", 1),
            ]
        rows.append((text["head"], self.reviewed.head, 1))
        self.y = FOOT if signed else FOOT - 42
        self.canvas.setStrokeColorRGB(0.4, 0.4, 0.4)
        self.canvas.line(MARGIN, self.y, self.width - MARGIN, self.y)
        for label, value, most in rows:
            self._line(MARGIN, self.y - 12, label, 8, (100, 100, 100))
            self._lines(MARGIN + 80, value, 8.5, width, most)
            self.y -= 2
        told = text["exported"].format(by=self.reviewed.exported_by, at=now, head="N:HASH")
        self.y -= 3
        self._lines(MARGIN, told, 7, self.width - 2 * MARGIN, 1, (100, 100, 100))
        self._lines(MARGIN, text["page"], 7, self.width - 2 * MARGIN, 1, (100, 100, 100))

    def _picture(self, x: int, y: int, w: int, h: int, px: int) -> Image.Image | None:
        if self.reviewed.picture is None:
            return None
        try:
            return Image.open(io.BytesIO(self.reviewed.picture(self.reviewed.facts.key, x, y, w, h, px))).convert("RGB")
        except (SlideError, OSError):
            return None

    def _place(self, image: Image.Image, x: float, top: float, width: float, height: float) -> float:
        """Draws into a box from its top left corner, whole; gives where it ends."""
        scale = min(width / image.width, height / image.height)
        size = image.width * scale, image.height * scale
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)  # as JPEG it is embedded as it is, a tenth of the size of deflated pixels
        self.canvas.drawImage(ImageReader(file), x, top - size[1], *size)
        return top - size[1]


def _outline(pen: ImageDraw.ImageDraw, ring: Sequence[tuple[float, float]], finding: Mapping[str, Any]) -> None:
    # On white, so that it is seen on every stain.
    for colour, width in (((255, 255, 255), 6), (COLOURS[finding["verdict"]], 3)):
        pen.line([*ring, ring[0]], fill=colour, width=width)


def _model(model: Mapping[str, Any], text: Mapping[str, str]) -> str:
    """Name and hash, and both patch sizes where it was used at another than its own."""
    size = f"  {text['other_size'].format(**model)}" if "own_patch_px" in model else ""
    return f"{model.get('name', '')}  SHA-256 {str(model.get('sha256', ''))[:16]}{size}"


def _plain(engine: Mapping[str, Any]) -> Sequence[str]:
    """What a person can read of it: name, version, precision; not the figures of its tuning."""
    return [value for value in engine.values() if isinstance(value, str)]
