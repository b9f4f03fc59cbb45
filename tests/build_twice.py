"""Build the sdist, a wheel from it, and a wheel from the checkout; the wheels must be the same.

Run as ``python tests/build_twice.py FOLDER``, which is emptied first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def build(folder: Path, *args: str) -> Path:
    """Build into *folder*, and return the wheel."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), *args], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    from_sdist, from_checkout = build(folder / "sdist"), build(folder / "checkout", "--wheel")
    if from_sdist.read_bytes() != from_checkout.read_bytes():
        raise SystemExit(f"{from_sdist} and {from_checkout} differ")
    files = [str(path) for path in (folder / "sdist").iterdir()]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


if __name__ == "__main__":
    main()
