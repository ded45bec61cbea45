"""Take the picture of a report for the README: `python eval/figures/take_screenshot.py exp/demo/report.html`.

Needs Chromium (`apt-get install chromium`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parent / "report.png"
WIDTH, HEIGHT, SCALE = 1280, 1190, 1.25
"""CSS pixels of the page that are shown, from its top, and picture pixels for each."""
RESULTS_ONLY = "<style>section:not(#results) { display: none }</style>"


def take(page: Path, out: Path) -> None:
    """Write head and results of a report as a PNG of 64 colours; the other sections are hidden.

    Raises SystemExit if there is no Chromium, CalledProcessError if it fails.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("Chromium was not found. Install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot, copy = Path(folder, "shot.png"), Path(folder, "report.html")
        copy.write_text(page.read_text(encoding="utf-8") + RESULTS_ONLY, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}", f"--screenshot={shot}"]
        subprocess.run([browser, *options, copy.as_uri()], check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("RGB").quantize(64).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} REPORT.html")
    take(Path(sys.argv[1]), OUT)
