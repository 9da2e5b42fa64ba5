# SPDX-License-Identifier: Apache-2.0
"""Pictures of the real page for docs/: python tests/browser/screenshots.py [--output docs/images]

Needs what `make test-browser` installs. Fonts are those of the machine (Debian: fonts-inter for the looks in docs/).
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.visitor import PHONE, ROOT, Visitor, browsing, serving

LARGEST = 200_000  # bytes of one picture
SEVEN = [(0.26, 0.14), (0.74, 0.14), (0.62, 0.42), (0.5, 0.66), (0.42, 0.9)]


def save(visitor: Visitor, path: Path, *, height: int | None = None) -> None:
    """What the browser shows, with as many colours as fit into the limit; `height` in CSS pixels, else the window."""
    visitor.page.mouse.move(2, 2)
    visitor.page.wait_for_timeout(700)  # bars have grown
    if height:
        width = visitor.page.viewport_size["width"]
        visitor.page.set_viewport_size({"width": width, "height": height})
        visitor.page.wait_for_timeout(300)
    image = Image.open(io.BytesIO(visitor.page.screenshot())).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            break
    sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")


def answered(browser, address, **settings) -> Visitor:
    """A visitor who drew a seven."""
    visitor = Visitor(browser, address, **settings)
    visitor.draw(SEVEN)
    visitor.wait("answered")
    return visitor


def take(browser, address: str, output: Path) -> None:
    """One picture of every state that docs/guides/space.md shows."""
    visitor = answered(browser, address)
    save(visitor, output / "space_desktop.png", height=1240)
    knows = visitor.page.locator(".ed-device", has=visitor.page.locator(".ed-classes li", has_text="7"))
    knows.locator(".ed-plug").click()
    visitor.wait("degraded")
    save(visitor, output / "space_unplugged.png", height=1240)

    visitor = answered(browser, address, color_scheme="dark")
    save(visitor, output / "space_dark.png", height=1240)
    visitor.page.locator("#timeline").scroll_into_view_if_needed()
    visitor.page.evaluate("document.querySelector('#timeline').scrollIntoView()")
    save(visitor, output / "space_timeline_dark.png", height=1050)

    visitor = Visitor(browser, address)
    visitor.page.locator("#file input[type=file]").set_input_files(
        {"name": "holiday.png", "mimeType": "image/png", "buffer": b"\0\0\0\x18ftypmp42" + bytes(500)}
    )
    visitor.wait("refused")
    save(visitor, output / "space_error.png", height=1000)

    visitor = Visitor(browser, address, **PHONE, device_scale_factor=2)
    visitor.choose("spoken_digits")
    visitor.example(1)
    visitor.wait("answered")
    visitor.page.evaluate("document.querySelector('#output').scrollIntoView()")
    save(visitor, output / "space_phone.png")


def main() -> None:
    """Serve, look, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as (address, _),
        sync_playwright() as playwright,
        browsing(playwright) as browser,
    ):
        take(browser, address, output)


if __name__ == "__main__":
    main()
