"""Collects the licences of everything that is linked into a leveret binary.

Cargo's resolution for the target lists the crates. The texts are those in the crates.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "amd64": "x86_64-unknown-linux-gnu",
    "arm64": "aarch64-unknown-linux-musl",
    "armhf": "arm-unknown-linux-musleabihf",
}
RULE = "-" * 80
# Libraries that the compiler links in addition to the crates.
OTHERS = """Besides: the Rust standard library (MIT OR Apache-2.0), copyright (c) The Rust Project Contributors; and, in
static binaries, musl (MIT), copyright (c) 2005-2020 Rich Felker, et al. The text of the MIT licence is that of
Leveret's own."""
BEFORE = """Leveret is linked with the crates below. Those under "MIT OR Apache-2.0" are used under the MIT license;
their texts of the Apache license are /usr/share/common-licenses/Apache-2.0 word by word, so they are left out.
A text that several share stands behind the last of them.
"""


class NoText(Exception):
    """A crate contains no licence text that could be distributed."""


def linked(architecture: str) -> List[Dict[str, object]]:
    """Returns the packages that are linked for an architecture, by name."""
    said = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked",
         "--filter-platform", TARGETS[architecture]],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    metadata = json.loads(said)
    packages = {package["id"]: package for package in metadata["packages"]}
    needs = {node["id"]: node["deps"] for node in metadata["resolve"]["nodes"]}
    found: Dict[str, Dict[str, object]] = {}
    waiting = [metadata["resolve"]["root"]]
    while waiting:
        package = packages[waiting.pop()]
        runs_at_build_time = any("proc-macro" in target["kind"] for target in package["targets"])
        if package["id"] in found or runs_at_build_time:
            continue
        found[package["id"]] = package
        waiting += [need["pkg"] for need in needs[package["id"]]
                    if any(kind["kind"] is None for kind in need["dep_kinds"])]
    return sorted((package for package in found.values() if package["source"]),
                  key=lambda package: (package["name"], package["version"]))


def texts(package: Dict[str, object]) -> Iterator[str]:
    """Returns the licence texts of a crate that have to be distributed."""
    folder = Path(str(package["manifest_path"])).parent
    files = sorted(path for path in folder.rglob("*") if path.is_file()
                   and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE")))
    for path in files:
        text = path.read_text(errors="replace").strip()
        if "Apache License" not in text or "Permission is hereby granted" in text:
            yield text


def all_licences(architecture: str) -> str:
    """Returns all licence texts for the binary of an architecture."""
    behind: Dict[str, List[str]] = {}
    for package in linked(architecture):
        title = f"{package['name']} {package['version']} ({package['license']})"
        found = list(texts(package))
        if not found and "MIT" in str(package["license"]):
            found = [f"It brings no text but the Apache license's. Its authors: {', '.join(package['authors'])}."]
        if not found:
            raise NoText(f"{title} contains no licence text")
        for text in found:
            behind.setdefault("\n".join(line.rstrip() for line in text.splitlines()), []).append(title)
    parts = [BEFORE, OTHERS]
    for text, titles in behind.items():
        parts.append("\n".join([RULE, *titles, RULE, "", text]))
    return "\n".join(parts) + "\n"
