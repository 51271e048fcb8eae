#!/usr/bin/env python3
"""Makes all published files of a version in one folder.

    systemd/packages/release.py [--sign KEYID] [--containers] [--binaries FOLDER] [--out FOLDER] [TARGET...]

    binaries/     the static binaries of each target: leveret, and leveret-bench, which measures brokers
    debian/       a repository for apt: the packages, their lists and, when they are signed, the public key
    containers/   with --containers, an image of each target, as an OCI archive
    SHA256SUMS    of all these files except signatures; with --sign, SHA256SUMS.asc signs it

It needs the tools of build.py (unless --binaries names the folder of the binaries), dpkg-deb, apt-ftparchive (Debian:
apt-utils) and cargo; gpg for --sign; buildah and GNU tar for --containers, and uidmap unless root runs it. The same
binaries give the same bytes, except for signatures.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build  # noqa: E402
import deb  # noqa: E402
import licences  # noqa: E402
import manual  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = ROOT / "boards" / "container"
SUMS = "SHA256SUMS"
SIGNATURES = ["InRelease", "Release.gpg"]


class Kind(NamedTuple):
    """The files that are made from a target's binary."""

    # Debian's, whose ELF machine it is.
    architecture: str
    has_package: bool
    # The image's platform, as containers write it.
    image: str


# armhf gets the ARMv6 code, which every Pi runs.
KINDS = {
    "arm-unknown-linux-musleabihf": Kind("armhf", True, "linux/arm/v6"),
    "armv7-unknown-linux-musleabihf": Kind("armhf", False, "linux/arm/v7"),
    "aarch64-unknown-linux-musl": Kind("arm64", True, "linux/arm64"),
    "x86_64-unknown-linux-musl": Kind("amd64", True, "linux/amd64"),
}
# The target whose binary runs on this machine, by the output of `uname -m`.
OWN = {"x86_64": "x86_64-unknown-linux-musl", "aarch64": "aarch64-unknown-linux-musl"}


class Cannot(Exception):
    """Nothing can be published; the message is the reason."""


def run(*command: object, **options: object) -> str:
    """Runs a command that must succeed. Returns its output."""
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,  # type: ignore[call-overload]
                              capture_output=True, text=True, check=False, **options)
    except OSError as why:
        raise Cannot(f"{command[0]} cannot be run: {why.strerror}") from why
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise Cannot(f"{command[0]} failed: {said}")
    return done.stdout


def need(programs: Dict[str, str]) -> None:
    """Checks that all tools are installed, before anything is made."""
    for program, package in programs.items():
        if shutil.which(program) is None:
            raise Cannot(f"{program} is not installed (Debian: apt install {package})")


def binaries(targets: List[str], folder: Optional[Path]) -> Dict[str, Path]:
    """Returns the binary of each target: newly built, or from a folder laid out like Cargo's target folder."""
    if folder is None:
        build.need_tools()
        return {target: build.build(target) for target in targets}
    found = {target: build.binary(target, folder) for target in targets}
    for path in found.values():
        for program in (path, build.bench(path)):
            if not program.exists():
                raise Cannot(f"{program} does not exist")
    return found


def check(target: str, binary: Path) -> None:
    """Checks that the binary and its leveret-bench are static programs for their machine."""
    for program in (binary, build.bench(binary)):
        if any(needed.startswith("libc6") for needed in deb.dependencies([program], KINDS[target].architecture)):
            raise Cannot(f"{program} is not static")


def check_version(version: str, found: Dict[str, Path]) -> None:
    """Checks that the version can be published, and that all binaries have it."""
    if "~dev" not in version and version != manual.release()[0]:
        raise Cannot(f"the binaries are version {version}, and CHANGELOG.md has {manual.release()[0]}")
    if "~dev" in version and build.released_version():
        raise Cannot(f"the binaries are version {version}, and the commit has the tag of a release: build them again")
    for broker in found.values():
        for program in (broker, build.bench(broker)):
            if version.encode() not in program.read_bytes():
                raise Cannot(f"{program} is not version {version}: build it again")


def tag(version: str) -> str:
    """Returns the version as a tag of an image, which must not contain a tilde or a plus sign."""
    return re.sub("[~+]", "-", version)


class Release:
    """The folder of a release while it is filled."""

    def __init__(self, folder: Path, found: Dict[str, Path], version: str, key: Optional[str]) -> None:
        self.folder = folder
        self.found = found
        self.version = version
        # All files have this date, in seconds since 1970.
        self.date = manual.date(version)
        # The fingerprint of the maintainer's key.
        self.key = key

    def copy_binaries(self) -> None:
        """Copies the binaries, for use without a package."""
        (self.folder / "binaries").mkdir()
        for target, binary in self.found.items():
            for program in (binary, build.bench(binary)):
                copy = self.folder / "binaries" / f"{program.name}-{self.version}-{target}"
                shutil.copyfile(program, copy)
                copy.chmod(0o755)

    # --- the repository ----------------------------------------------------------------------------------------

    def make_repository(self, says: Path) -> None:
        """Makes the repository: packages, their lists, and a file with the checksums of the lists."""
        debian = self.folder / "debian"
        stable = debian / "dists" / "stable"
        kinds = {KINDS[target].architecture: binary for target, binary in self.found.items() if KINDS[target].has_package}
        if not kinds:
            return
        for architecture, binary in sorted(kinds.items()):
            deb.build(binary, architecture, says, self.version, debian / "pool" / "main" / "l" / "leveret")
            lists = stable / "main" / f"binary-{architecture}"
            lists.mkdir(parents=True, exist_ok=True)
            packages = run("apt-ftparchive", "--arch", architecture, "packages", "pool", cwd=debian).encode()
            (lists / "Packages").write_bytes(packages)
            (lists / "Packages.gz").write_bytes(gzip.compress(packages, 9, mtime=0))
        fields = {"Origin": "Leveret", "Label": "Leveret", "Suite": "stable", "Codename": "stable", "Components": "main",
                  "Architectures": " ".join(sorted(kinds)), "Description": f"Leveret {self.version}",
                  "Date": time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(self.date))}
        options = [f"APT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
        options += [f"APT::FTPArchive::{weak}=false" for weak in ("MD5", "SHA1", "SHA512")]
        # A client that has read an older Release file still finds its lists by their checksums.
        options.append("APT::FTPArchive::DoByHash=true")
        listed = run("apt-ftparchive", *(word for option in options for word in ("-o", option)), "release", stable)
        (stable / "Release").write_text(listed)
        if self.key:
            self.sign("--clearsign", stable / "Release", stable / "InRelease")
            self.sign("--detach-sign", stable / "Release", stable / "Release.gpg")
            (debian / "leveret.asc").write_text(run("gpg", "--batch", "--armor", "--export", self.key))

    def sign(self, how: str, file: Path, signature: Path) -> None:
        """Signs a file with the maintainer's key. gpg's agent asks for a passphrase if the key has one."""
        run("gpg", "--batch", "--yes", "--armor", "--digest-algo", "SHA512", "--local-user", self.key, "--output", signature,
            how, file)

    # --- containers --------------------------------------------------------------------------------------------

    def make_containers(self) -> None:
        """Makes an image of each target."""
        (self.folder / "containers").mkdir()
        for target in self.found:
            self.make_container(target)

    def make_container(self, target: str) -> None:
        """Makes an image from boards/container with buildah, in a separate store."""
        _, architecture, *variants = KINDS[target].image.split("/")
        with tempfile.TemporaryDirectory(prefix="leveret-image-") as folder:
            work = Path(folder)
            context = work / "context"
            shutil.copytree(CONTAINER, context)
            programs = [self.found[target], build.bench(self.found[target])]
            for program in programs:
                shutil.copyfile(program, context / program.name)
            names = {program.name for program in programs}
            for path in [context, *context.rglob("*")]:
                # The modes in the image do not depend on the umask.
                path.chmod(0o755 if path.is_dir() or path.name in names else 0o644)
            store = ["buildah", "--storage-driver", "vfs", "--root", work / "images", "--runroot", work / "run"]
            dated = ["--timestamp", self.date, "--identity-label=false"]
            run(*store, "bud", "--isolation", "chroot", *dated, "--arch", architecture, "-t", "leveret", context)
            container = run(*store, "from", "--arch", architecture, "localhost/leveret").split()[-1]
            # All 32-bit ARMs are "v7" to `buildah bud`, which a Pi Zero would refuse.
            for variant in variants:
                run(*store, "config", "--variant", variant, container)
            run(*store, "commit", "--squash", "--omit-history", *dated, container, "localhost/ready")
            run(*store, "push", "localhost/ready", f"oci:{work}/layout:leveret:{tag(self.version)}")
            # Without root, the store has files of users whose files only buildah can remove.
            run(*store, "rm", "--all")
            run(*store, "rmi", "--all", "--force")
            name = f"leveret-{self.version}-{KINDS[target].image.replace('/', '-')}.tar"
            run("tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX", f"--mtime=@{self.date}",
                "-C", work / "layout", "-cf", self.folder / "containers" / name, "oci-layout", "index.json", "blobs")

    # --- sums --------------------------------------------------------------------------------------------------

    def make_sums(self) -> None:
        """Writes the checksums in the format of sha256sum."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name not in SIGNATURES)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(self.folder)}\n" for path in files]
        (self.folder / SUMS).write_text("".join(sums))
        if self.key:
            self.sign("--detach-sign", self.folder / SUMS, self.folder / f"{SUMS}.asc")


def earlier(out: Path) -> None:
    """Checks that a folder to be replaced contains only files of an earlier release."""
    if not out.exists():
        return
    sums = out / SUMS
    told = {line.split("  ", 1)[1] for line in sums.read_text().splitlines()} if sums.exists() else set()
    there = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    strange = sorted(path for path in there if str(path) not in {*told, SUMS, f"{SUMS}.asc"} and path.name not in SIGNATURES)
    if strange:
        raise Cannot(f"{out} has files that are not from a release, such as {strange[0]}: use an empty folder")


def fingerprint(key: str) -> str:
    """Returns the fingerprint of a key."""
    said = run("gpg", "--batch", "--with-colons", "--list-secret-keys", key).splitlines()
    # The line behind that of a key has its fingerprint; those of subkeys follow.
    found = [after.split(":")[9] for line, after in zip(said, said[1:]) if line.startswith("sec:")]
    if len(found) != 1:
        raise Cannot(f"{key} names {len(found)} keys: name one by its fingerprint, {' or '.join(found)}")
    return found[0]


def make(out: Path, found: Dict[str, Path], says: Path, key: Optional[str], with_containers: bool) -> None:
    """Makes all files in a new folder, which then replaces the old one."""
    earlier(out)
    for target, binary in found.items():
        check(target, binary)
    version = run(says, "--version").split()[1]
    check_version(version, found)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=out.parent) as folder:
        part = Path(folder) / "files"
        part.mkdir()
        # Older packages are kept for downgrades, and older lists for updates that have already begun.
        debian = out / "debian"
        for path in sorted([*debian.glob("pool/**/*.deb"), *debian.glob("dists/**/by-hash/*/*")]):
            kept = part / path.relative_to(out)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept)
        release = Release(part, found, version, key)
        release.copy_binaries()
        release.make_repository(says)
        if with_containers:
            release.make_containers()
        release.make_sums()
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all if none is named: " + ", ".join(KINDS))
    parser.add_argument("--binaries", type=Path, metavar="FOLDER",
                        help="a folder with TARGET/release/leveret and leveret-bench; nothing is built then")
    parser.add_argument("--says", type=Path, metavar="FILE",
                        help="a binary of the same version that runs on this machine, for the manual pages; "
                             "default: that of this machine's target")
    parser.add_argument("--sign", metavar="KEYID", help="the key to sign with; gpg needs its secret part")
    parser.add_argument("--containers", action="store_true", help="make container images, too")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "release-files", metavar="FOLDER",
                        help="the output folder; default: target/release-files. An earlier release there is replaced, "
                             "except for its packages")
    said = parser.parse_args()
    out = said.out.resolve()
    os.umask(0o022)
    # This also removes incomplete files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("systemd/packages/release.py: ended by a signal"))
    try:
        targets = said.targets or list(KINDS)
        if unknown := sorted(set(targets) - set(KINDS)):
            raise Cannot(f"{unknown[0]} is not a target: {', '.join(KINDS)}")
        own = OWN.get(platform.machine())
        if said.says is None and own not in targets:
            raise Cannot("none of these binaries runs on this machine: name one that does with --says")
        need({"dpkg-deb": "dpkg", "apt-ftparchive": "apt-utils", **({"gpg": "gpg"} if said.sign else {}),
              **({"buildah": "buildah", "tar": "tar"} if said.containers else {})})
        if shutil.which("cargo") is None:
            raise Cannot("cargo is not installed, which lists the licences of the linked crates: https://rustup.rs")
        key = fingerprint(said.sign) if said.sign else None
        found = binaries(targets, said.binaries)
        make(out, found, said.says or found[str(own)], key, said.containers)
    except (Cannot, build.Unbuilt, deb.Mistake, licences.NoText, ValueError) as why:
        print(f"systemd/packages/release.py: {why}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        why = str(failed.stderr or failed).strip().splitlines()[-1]
        print(f"systemd/packages/release.py: {failed.cmd[0]} failed: {why}", file=sys.stderr)
        return 1
    print(out)
    if not said.sign and (out / "debian").exists():
        print("The repository is not signed, so apt accepts nothing from it: sign it with --sign KEYID.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
