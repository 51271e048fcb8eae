#!/usr/bin/env python3
"""Makes a Debian package of a leveret binary.

    systemd/packages/deb.py --binary FILE --architecture amd64|arm64|armhf [--says FILE] [--version V] [--out FOLDER]

The binary for arm64 and armhf is the static one (see guide/install.md). armhf is ARMv6 code, so that it runs on every
Raspberry Pi. --says names a binary of the same version that runs on this machine: the manual pages and completions are
made from its output. leveret-bench, which is beside each binary, is packaged too. Needs dpkg-deb, and cargo for the
licences of linked crates. The same input gives the same bytes. Prints the package's path.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Dict, List, Optional, Set

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build as static  # noqa: E402
import licences  # noqa: E402
import manual  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# EM_X86_64, EM_AARCH64 and EM_ARM of the ELF header, with the class: 64 or 32 bits.
MACHINES = {"amd64": (62, 2), "arm64": (183, 2), "armhf": (40, 1)}
# A segment that is loaded, and one that is executed, of the ELF program header.
PT_LOAD, PF_X = 1, 1
# The default maintainer. Builders of packages for other people set the variables of Debian's tools.
MAINTAINER = "{} <{}>".format(os.environ.get("DEBFULLNAME", "The Leveret authors"),
                              os.environ.get("DEBEMAIL", "leveret@leveret.invalid"))
# The file from which postinst creates the configuration.
CONFIGURATION = "usr/share/leveret/leveret.toml"
GENERATORS = "usr/lib/systemd/system-generators/"
# Folders of executable files.
PROGRAMS = ("usr/bin/", GENERATORS)
# The target of a link or a picture.
LINK = re.compile(r"\]\(([^)\s]+)\)")
# The files of folders that the guide links to. Others may be in these folders, such as binaries for an image.
LINKED_FOLDERS = {
    "boards/openwrt": ["Makefile", "leveret.init", "leveret.toml"],
    "systemd": ["leveret.generator", "leveret.service", "leveret.socket", "leveret.sysusers", "leveret.tmpfiles",
                "leveret.toml"],
}
OVERRIDES = """# One binary for every distribution, on purpose: it runs where glibc is older, or is not.
leveret: statically-linked-binary [usr/bin/leveret]
leveret: statically-linked-binary [usr/bin/leveret-bench]
"""


class Mistake(Exception):
    """The input cannot become a package."""


def check_whole(binary: Path, image: bytes) -> None:
    """Checks that the program has code and is complete."""
    is_wide = image[4:5] == b"\2"
    try:
        table, = struct.unpack_from("<Q" if is_wide else "<I", image, 32 if is_wide else 28)
        size, count = struct.unpack_from("<HH", image, 54 if is_wide else 42)
        # Kind, flags, offset and length of each segment.
        rows = [struct.unpack_from("<IIQQQQ" if is_wide else "<IIIIIII", image, table + size * row) for row in range(count)]
    except struct.error as short:
        raise Mistake(f"{binary} ends before its program begins") from short
    segments = [(row[0], row[1], row[2], row[5]) if is_wide else (row[0], row[6], row[1], row[4]) for row in rows]
    if not any(kind == PT_LOAD and flags & PF_X for kind, flags, _, _ in segments):
        raise Mistake(f"{binary} has no code")
    if any(offset + length > len(image) for kind, _, offset, length in segments if kind == PT_LOAD):
        raise Mistake(f"{binary} is truncated")


def program(binary: Path, architecture: str) -> bytes:
    """Returns the bytes of a complete program for an architecture."""
    if not binary.exists():
        raise Mistake(f"{binary} does not exist")
    image = binary.read_bytes()
    if image[:4] != b"\x7fELF":
        raise Mistake(f"{binary} is not an ELF program")
    check_whole(binary, image)
    machine, = struct.unpack_from("<H", image, 18)
    if (machine, image[4]) != MACHINES[architecture]:
        raise Mistake(f"{binary} is not for {architecture}: its ELF machine is {machine}, of class {image[4]}")
    return image


def dependencies(binaries: List[Path], architecture: str) -> List[str]:
    """Returns the packages that the binaries need. Static binaries need none."""
    images = [program(binary, architecture) for binary in binaries]
    needs = ["systemd | systemd-standalone-sysusers | systemd-sysusers",
             "systemd | systemd-standalone-tmpfiles | systemd-tmpfiles"]
    if glibc := [found for image in images for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", image)]:
        newest = max((int(major), int(minor)) for major, minor in glibc)
        needs.append(f"libc6 (>= {newest[0]}.{newest[1]})")
    if any(b"libgcc_s.so.1\0" in image for image in images):
        needs.append("libgcc-s1 (>= 4.2)")
    return needs


def changelog(version: str) -> str:
    """Returns the part of the changelog for this version in Debian's form: of a development build what is not released
    yet, otherwise the newest release."""
    newest, day = manual.release()
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(manual.date(version)))
    heading = "## [Unreleased]\n" if "~dev" in version else f"## [{newest}] - {day}\n"
    part = manual.CHANGELOG.read_text().split(heading, 1)[1].split("\n## ", 1)[0]
    # Debian's form has no sections.
    part = re.sub(r"^### .*\n", "", part, flags=re.MULTILINE)
    points = [" ".join(point.split()) for point in re.split(r"^- ", part, flags=re.MULTILINE)[1:]]
    lines = [textwrap.fill(point, 76, initial_indent="  * ", subsequent_indent="    ") for point in points]
    return f"leveret ({version}) stable; urgency=medium\n\n" + "\n".join(lines) + f"\n\n -- {MAINTAINER}  {stamp}\n"


def copyright_file() -> str:
    """Returns the copyright in Debian's form, with the texts of LICENSE."""
    rule = "=" * 80
    mit = (ROOT / "LICENSE").read_text().split(rule)[1].strip().split("\n", 1)[1].strip()
    owner = next(line for line in mit.splitlines() if line.startswith("Copyright"))
    body = "\n".join(f" {line}" if line.strip() else " ." for line in mit.split(owner, 1)[1].strip().splitlines())
    return f"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: leveret
Comment: The licences of the crates that are linked stand in third-party-licences.gz beside this file.

Files: *
Copyright: {owner.removeprefix("Copyright (c) ")}
License: Expat or Apache-2.0

License: Expat
{body}

License: Apache-2.0
 On Debian systems the text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""


def control(version: str, architecture: str, needs: List[str], size_kib: int) -> str:
    """Returns the control file of the package."""
    return f"""Package: leveret
Version: {version}
Architecture: {architecture}
Maintainer: {MAINTAINER}
Installed-Size: {size_kib}
Depends: {', '.join(needs)}
Section: net
Priority: optional
Description: small RabbitMQ-compatible message broker for embedded boards
 Leveret speaks AMQP 0-9-1 to the programs on a device, stays inside a memory
 limit that is really a limit, and keeps what is durable in a log made for SD
 cards and other flash: a power cut loses nothing that was confirmed.
"""


def contents(binary: Path, bench: Path, says: Path, architecture: str, version: str, is_static: bool) -> Dict[str, bytes]:
    """Returns every file except the programs, by its path."""
    systemd = ROOT / "systemd"
    files = {
        CONFIGURATION: (systemd / "leveret.toml").read_bytes(),
        "usr/lib/systemd/system/leveret.service": (systemd / "leveret.service").read_bytes(),
        "usr/lib/systemd/system/leveret.socket": (systemd / "leveret.socket").read_bytes(),
        f"{GENERATORS}leveret": (systemd / "leveret.generator").read_bytes(),
        "usr/lib/sysusers.d/leveret.conf": (systemd / "leveret.sysusers").read_bytes(),
        "usr/lib/tmpfiles.d/leveret.conf": (systemd / "leveret.tmpfiles").read_bytes(),
        "usr/share/doc/leveret/copyright": copyright_file().encode(),
        "usr/share/doc/leveret/changelog.gz": packed(changelog(version)),
        "usr/share/doc/leveret/third-party-licences.gz": packed(licences.all_licences(architecture)),
        "usr/bin/leveret": binary.read_bytes(),
        "usr/bin/leveret-bench": bench.read_bytes(),
    }
    if is_static:
        files["usr/share/lintian/overrides/leveret"] = OVERRIDES.encode()
    files.update({f"usr/share/doc/leveret/{place}": data for place, data in documentation().items()})
    for place, text in manual.make(says).items():
        is_page = place.startswith("man/")
        files[f"usr/share/{place}{'.gz' if is_page else ''}"] = packed(text) if is_page else text.encode()
    return files


def documentation() -> Dict[str, bytes]:
    """Returns the guide and every file that it links to, by the path below /usr/share/doc/leveret. The links fit the paths
    there.
    """
    pages = sorted((ROOT / "systemd" / "guide").glob("*.md"))
    sources = {str(page.relative_to(ROOT)) for page in pages}
    for page in pages:
        for link in LINK.findall(page.read_text()):
            if "://" in link or link.startswith("#"):
                continue
            target = os.path.relpath(os.path.normpath(page.parent / link.split("#")[0]), ROOT)
            sources |= {f"{target}/{name}" for name in LINKED_FOLDERS[target]} if target in LINKED_FOLDERS else {target}
    return {installed(source): packed(linked(source, sources)) if source.endswith(".md") else (ROOT / source).read_bytes()
            for source in sorted(sources)}


def installed(source: str) -> str:
    """Returns the path below /usr/share/doc/leveret of a file of the sources. Pages are compressed there."""
    place = source.removeprefix("systemd/") if source.startswith("systemd/guide/") else source
    return f"{place}.gz" if place.endswith(".md") else place


def linked(source: str, sources: Set[str]) -> str:
    """Returns a page with links for the installed files. Of a link to a file that is not installed the text remains. Pages of
    the guide have no such link.
    """
    def place(target: str) -> Optional[str]:
        """Returns the path of a link's target, as seen from the installed page, or `None` if it is not installed."""
        path = os.path.relpath(os.path.normpath(ROOT / Path(source).parent / target), ROOT)
        if path not in sources and path not in LINKED_FOLDERS:
            return None
        return os.path.relpath(installed(path), Path(installed(source)).parent)

    def kept(found: "re.Match[str]") -> str:
        target = found[2].split("#")[0]
        return found[0] if "://" in target or not target or place(target) else found[1]

    def moved(found: "re.Match[str]") -> str:
        target, hash_sign, anchor = found[1].partition("#")
        return found[0] if "://" in target or not target else f"]({place(target)}{hash_sign}{anchor})"

    text = re.sub(rf"!?\[([^\[\]]*){LINK.pattern}", kept, (ROOT / source).read_text())
    return LINK.sub(moved, text)


def packed(text: str) -> bytes:
    """Compresses a text. The same text always gives the same bytes."""
    return gzip.compress(text.encode(), 9, mtime=0)


def lay_out(tree: Path, files: Dict[str, bytes]) -> None:
    """Writes the package's tree, with the modes of its files."""
    for place, data in files.items():
        target = tree / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if place.startswith(PROGRAMS) else 0o644)
    (tree / "usr/bin/leveretctl").symlink_to("leveret")
    for folder in [tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())]:
        folder.chmod(0o755)


def build(binary: Path, architecture: str, says: Path, version: str, out: Path, compression: str = "xz",
          bench: Optional[Path] = None) -> Path:
    """Builds the package with a compression method of dpkg-deb. Returns its path. The default leveret-bench is the one
    beside the binary.
    """
    bench = bench or static.bench(binary)
    needs = dependencies([binary, bench], architecture)
    is_static = not any(need.startswith("libc6") for need in needs)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        files = contents(binary, bench, says, architecture, version, is_static)
        lay_out(tree, files)
        size_kib = sum(-(-len(data) // 1024) for data in files.values())
        about = tree / "DEBIAN"
        about.mkdir()
        about.chmod(0o755)
        (about / "control").write_text(control(version, architecture, needs, size_kib))
        sums = subprocess.run(["md5sum", *sorted(files)],
                              cwd=tree, check=True, capture_output=True, text=True).stdout
        (about / "md5sums").write_text(sums)
        for name in ("control", "md5sums"):
            (about / name).chmod(0o644)
        for script in (HERE / "debian").iterdir():
            shutil.copy(script, about / script.name)
            (about / script.name).chmod(0o755)
        out.mkdir(parents=True, exist_ok=True)
        package = out / f"leveret_{version}_{architecture}.deb"
        day = manual.date(version)
        for path in [tree, *tree.rglob("*")]:
            os.utime(path, (day, day), follow_symlinks=False)
        subprocess.run(["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(tree), str(package)], check=True,
                       capture_output=True, env=dict(os.environ, SOURCE_DATE_EPOCH=str(day)))
    return package


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--architecture", choices=sorted(MACHINES), required=True)
    parser.add_argument("--says", type=Path)
    parser.add_argument("--version", help="default: the version that the binary prints")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "packages")
    said = parser.parse_args()
    try:
        says = said.says or said.binary
        print(build(said.binary, said.architecture, says, said.version or manual.version_of(says), said.out))
    except (Mistake, licences.NoText, ValueError) as mistake:
        print(f"systemd/packages/deb.py: {mistake}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
