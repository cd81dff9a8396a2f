"""Takes pictures of the sections of a report, as docs/report.md shows them.

``python -m tests.report.screenshots PAGE FOLDER [NAME ...]`` takes those of the named sections, all by default; a name
with a colon, ``spans:400`` or ``interests:dark``, is of a page that wide, or dark.
"""

import base64
import sys
from pathlib import Path

from selenium.webdriver.common.by import By

from tests.report.browser import DRAW_ALL, resize, set_dark, start_browser

WIDTH, TALLEST = 1100, 1500


def take(page: Path, folder: Path, names: list[str]) -> None:
    """Writes a PNG file of each section, cut where it becomes too tall."""
    driver = start_browser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not names:
            driver.get(page.absolute().as_uri())
            names = [section.get_attribute("id") for section in driver.find_elements(By.TAG_NAME, "section")]
        for name in names:
            section, _, look = name.partition(":")
            width = int(look) if look.isdecimal() else WIDTH
            resize(driver, width)
            set_dark(driver, look == "dark")
            driver.get(page.absolute().as_uri())
            failed = driver.execute_async_script(DRAW_ALL)
            assert failed is None, failed
            script = "const box = document.getElementById(arguments[0]).getBoundingClientRect();"
            top, height = driver.execute_script(f"{script} return [box.y + scrollY, box.height];", section)
            clip = {"x": 0, "y": top, "width": width, "height": min(height, TALLEST), "scale": 1}
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            (folder / f"{name.replace(':', '_')}.png").write_bytes(base64.b64decode(shot["data"]))
    finally:
        driver.quit()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
