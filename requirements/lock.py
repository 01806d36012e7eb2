"""`python requirements/lock.py`: pins build.in into build.txt, each package with the sha256 of the files that will do.

Run it by hand, by a Python with a recent pip, when a pin should move; pip may download some GB for it. Its own report
says which versions it chooses and which hashes the index promises, for each Python and platform below; files beside the
index (PIP_FIND_LINKS) are hashed here. Dependencies are left out: the build imports setuptools only, and of torch it
reads headers and libraries.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urlparse

FOLDER = Path(__file__).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64")
PIP = (sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report",
       "-", "-r", str(FOLDER / "build.in"))


def report(*options: str, **env: str) -> list[tuple[str, str, str]]:
    """Name, version and sha256 of what pip would install."""
    done = subprocess.run([*PIP, *options], capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise SystemExit(f"lock: pip fails with {' '.join(options)}\n{done.stderr}")
    found = []
    for entry in json.loads(done.stdout)["install"]:
        archive = entry["download_info"]["archive_info"]
        digest = archive.get("hashes", {}).get("sha256")
        if digest is None:
            path = unquote(urlparse(entry["download_info"]["url"]).path)
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        # A CPU build is the same version with another label: one pin takes both.
        found.append((entry["metadata"]["name"], entry["metadata"]["version"].partition("+")[0], digest))
    return found


def main() -> None:
    hashes = defaultdict(set)
    for name, version, digest in report():
        hashes[name, version].add(digest)
    with tempfile.TemporaryDirectory() as nowhere:
        for python in PYTHONS:
            for platform in PLATFORMS:
                options = ("--python-version", python, "--platform", platform, "--only-binary", ":all:", "--target",
                           nowhere)
                # Without this machine's own files: what everybody finds.
                for name, version, digest in report(*options, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS=""):
                    hashes[name, version].add(digest)
    lines = ["# Made by `python requirements/lock.py` from build.in. Install with --require-hashes --no-deps."]
    for (name, version), digests in sorted(hashes.items()):
        lines.append(" \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{d}" for d in sorted(digests))]))
    (FOLDER / "build.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
