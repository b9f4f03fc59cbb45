"""Build the sdist, a wheel from it, and a wheel from the checkout; the wheels must be the same.

The links of the README in the wheel lead to pages and pictures that the site has.

Run as ``python tests/build_twice.py FOLDER``, which is emptied first.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def build(folder: Path, *args: str) -> Path:
    """Build into *folder*, and return the wheel."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), *args], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_links(wheel: Path) -> None:
    """See that each link of a package's README leads somewhere from anywhere."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        text = files.read(name).decode("utf-8")
    (site,) = re.findall(r"^Project-URL: Documentation, (.+)$", text, re.MULTILINE)
    found = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', text)
    links = [address or source for address, source in found]
    if not links or not all(link.startswith("https://") for link in links):
        raise SystemExit(f"{wheel} has a README with links that are not absolute: {links}")
    for link in links:
        if link.startswith(site):
            page = link.removeprefix(f"{site}/en/latest/").partition("#")[0]
            page = page.replace("_images/", "pictures/").replace(".html", ".md")
            if not Path("docs", page).is_file():
                raise SystemExit(f"the README in {wheel} links {link}, which is not in docs")


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    from_sdist, from_checkout = build(folder / "sdist"), build(folder / "checkout", "--wheel")
    if from_sdist.read_bytes() != from_checkout.read_bytes():
        raise SystemExit(f"{from_sdist} and {from_checkout} differ")
    check_links(from_sdist)
    files = [str(path) for path in (folder / "sdist").iterdir()]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


if __name__ == "__main__":
    main()
