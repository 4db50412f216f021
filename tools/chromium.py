"""The Chromium of this machine, for the tests in a browser, a benchmark, and the book's PDF."""

import os
import shutil

NAMES = ["chromium", "chromium-browser", "google-chrome"]


def find_chromium() -> str | None:
    """The one that $CHROMIUM names, or the first on the path; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
