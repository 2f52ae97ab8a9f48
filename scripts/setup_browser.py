"""Find a Chromium for the browser tests, or install Debian's; prints its path.

    python scripts/setup_browser.py

NB_SAE_CHROMIUM names one that is not on PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserError(RuntimeError):
    """There is no usable Chromium; the message says what to install."""


def find_chromium() -> str | None:
    """Path of a Chromium on this machine, or None.

    Raises:
        BrowserError: NB_SAE_CHROMIUM names something that cannot be run.
    """
    named = os.environ.get("NB_SAE_CHROMIUM")
    if named:
        found = shutil.which(named)
        if found is None:
            raise BrowserError(f"NB_SAE_CHROMIUM={named!r} cannot be run. Name an executable, or unset it.")
        return found
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install_chromium() -> None:
    """Install Debian's `chromium`, which needs root and apt-get.

    Raises:
        BrowserError: Not possible here, or apt-get failed.
    """
    apt = shutil.which("apt-get")
    if apt is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise BrowserError(
            "The browser tests need Chromium or Chrome, and none is on PATH. Install one "
            "(Debian: sudo apt-get install chromium; macOS: brew install --cask chromium), "
            "or name it with NB_SAE_CHROMIUM=/path/to/chrome."
        )
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for arguments in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
    ):
        status = subprocess.run([apt, *arguments], env=environment, stdout=sys.stderr, check=False).returncode
        if status:
            raise BrowserError(
                f"`apt-get {' '.join(arguments)}` ended with status {status}. Its own message stands above."
            )


def main() -> int:
    """Print the browser's path; returns the exit status."""
    try:
        found = find_chromium()
        if found is None:
            install_chromium()
            found = find_chromium()
        if found is None:
            raise BrowserError("apt-get installed chromium, but it is still not on PATH. Set NB_SAE_CHROMIUM.")
    except BrowserError as error:
        print(f"setup_browser: {error}", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
