"""The files that release.py publishes: an apt repository, and container images for four architectures."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Callable, Dict, List

import build
import deb
import manual
import release
import supply
from harness import brokers
from harness.suite import Skip, patience
import readme

RELEASE = brokers.ROOT / "systemd" / "packages" / "release.py"
ADDRESS = "https://example.org/debian"
# The emulator of a target, and the oldest processor that its code supports.
EMULATED = {
    "arm-unknown-linux-musleabihf": ("arm", "arm1176"),
    "armv7-unknown-linux-musleabihf": ("arm", "cortex-a7"),
    "aarch64-unknown-linux-musl": ("aarch64", "cortex-a53"),
}
# The settings that boards/container/Containerfile requires.
IMAGE = {"User": "5672:5672", "ExposedPorts": {"5671/tcp": {}, "5672/tcp": {}}, "Entrypoint": ["/usr/bin/leveret"],
         "Cmd": ["serve", "--config", "/etc/leveret/leveret.toml"], "Volumes": {"/var/lib/leveret": {}},
         "StopSignal": "SIGTERM"}
# Owner and mode of the files in an image.
FILES = {"usr/bin/leveret": (0, 0o755), "usr/bin/leveret-bench": (0, 0o755), "etc/leveret/leveret.toml": (0, 0o644),
         "var/lib/leveret": (5672, 0o755)}


def equal(what: str, got: object, expected: object) -> None:
    """Checks that both values are equal."""
    if got != expected:
        raise AssertionError(f"{what}: {got!r} instead of {expected!r}")


def said_by(*command: object, **options: object) -> subprocess.CompletedProcess:
    """Runs a command. Returns its standard output and errors together."""
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,  # type: ignore[call-overload]
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patience(300), check=False,
                          **options)


def files(folder: Path) -> Dict[str, bytes]:
    """Returns the files of a folder by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive with the owners in it, which needs root."""
    folder.mkdir()
    equal(f"tar of {archive.name}", said_by("tar", "-xf", archive, "-C", folder).stdout, "")


def flip(path: Path) -> None:
    """Changes one byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@functools.lru_cache(maxsize=None)
def version() -> str:
    """Returns the version of the program under test."""
    return manual.version_of(brokers.leveret_binary())


@functools.lru_cache(maxsize=None)
def real(target: str) -> Path:
    """Returns a target's binary if it prints this version, under emulation if necessary; otherwise raises `Skip`."""
    places = [build.binary(target, brokers.ROOT / "target" / "arm" / "build"), build.binary(target)]
    binary = next((place for place in places if place.exists()), None)
    if binary is None:
        raise Skip(f"there is no binary for {target}: "
                   "build it with tests/system/arm/run --build-only or systemd/packages/build.py")
    try:
        deb.dependencies([binary, build.bench(binary)], release.KINDS[target].architecture)
    except deb.Mistake as mistake:
        raise Skip(f"not a valid binary for {target}: {mistake}") from mistake
    emulator: List[str] = []
    if target in EMULATED:
        architecture, cpu = EMULATED[target]
        try:
            emulator = [supply.emulator(architecture), "-cpu", cpu]
        except supply.Missing as missing:
            raise Skip(f"the binary for {target} cannot be run: {missing}") from missing
    done = said_by(*emulator, binary, "--version")
    equal(f"{binary}: status", done.returncode, 0)
    if done.stdout != f"leveret {version()}\n":
        raise Skip(f"the binary for {target} has another version: {done.stdout.strip()}")
    return binary


def all_real() -> Dict[str, Path]:
    """Returns the targets that have such a binary."""
    found = {}
    for target in release.KINDS:
        with contextlib.suppress(Skip):
            found[target] = real(target)
    if not found:
        raise Skip("there is no static binary: "
                   "build some with tests/system/arm/run --build-only or systemd/packages/build.py")
    return found


class Board:
    """A system with the repository among its apt sources, as in the guide, and separate apt folders."""

    def __init__(self, folder: Path, repository: Path, architecture: str) -> None:
        self.folder = folder
        for place in ("etc/apt/sources.list.d", "etc/apt/preferences.d", "var/lib/apt/lists/partial",
                      "var/cache/apt/archives/partial"):
            (folder / place).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "apt.conf").write_text(
            f'Dir "{folder}";\nDir::State::status "{folder}/status";\nAPT::Sandbox::User "root";\n'
            f'APT::Architecture "{architecture}";\nAPT::Architectures {{"{architecture}";}};\n')
        block = next(part for part in readme.section("Debian and Raspberry Pi OS").split("\n\n") if "tee" in part)
        lines, _, rest = "\n".join(line.removeprefix("    ") for line in block.splitlines()).partition("sudo apt update")
        equal("what stands behind the source", rest.strip(), "sudo apt install leveret")
        lines = lines.replace("sudo ", "").replace("/etc/apt/", f"{folder}/etc/apt/")
        lines = lines.replace(ADDRESS, f"file:{repository}")
        done = said_by("sh", "-euc", 'wget() { cp "${3#file:}" "$2"; }\n' + lines)
        equal(f"the guide's lines: {done.stdout}", done.returncode, 0)

    def apt_get(self, *words: str) -> subprocess.CompletedProcess:
        """Runs the real apt-get."""
        return said_by("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", *words, cwd=self.folder,
                       env=dict(os.environ, APT_CONFIG=str(self.folder / "apt.conf"), LC_ALL="C"))

    def update(self) -> None:
        """Updates the package lists, which must succeed."""
        done = self.apt_get("update")
        equal(f"apt-get update: {done.stdout}", done.returncode, 0)

    def refuses(self, sign: str, *words: str) -> None:
        """Checks that the update fails with this message."""
        done = self.apt_get(*words)
        equal(f"apt-get {words[0]} fails with {sign!r}: {done.stdout}", (done.returncode != 0, sign in done.stdout),
              (True, True))


class Published:
    """The published files, created once for all cases."""

    def __init__(self, folder: Path, says: Path) -> None:
        self.folder = folder
        self.says = says

    def make(self, name: str, targets: List[str], *words: str) -> Path:
        """Creates release.py's folder from real binaries."""
        self.folder.mkdir(exist_ok=True)
        binaries = self.folder / f"binaries-{name}"
        for target in targets:
            place = build.binary(target, binaries)
            place.parent.mkdir(parents=True)
            for program in (real(target), build.bench(real(target))):
                shutil.copy(program, place.with_name(program.name))
        out = self.folder / name
        done = said_by(RELEASE, "--binaries", binaries, "--says", self.says, "--out", out, *words, *targets,
                       env=self.environment())
        if "failed to download" in done.stdout:
            raise Skip("the crate registry did not answer, so there are no licences")
        equal(f"release.py: {done.stdout}", done.returncode, 0)
        equal("whether it says that it is not signed", "is not signed" in done.stdout, "--sign" not in words)
        sums = said_by("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=out)
        equal(f"SHA256SUMS: {sums.stdout}", sums.returncode, 0)
        listed = {line.split("  ", 1)[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
        signed = {f"debian/dists/stable/{name}" for name in release.SIGNATURES} | {"SHA256SUMS", "SHA256SUMS.asc"}
        equal("in SHA256SUMS", listed, set(files(out)) - signed)
        return out

    def environment(self) -> Dict[str, str]:
        """Returns an environment in which gpg has no other keys."""
        return dict(os.environ, GNUPGHOME=str(self.folder / "gnupg"))

    def key(self, name: str) -> str:
        """Creates a temporary signing key."""
        (self.folder / "gnupg").mkdir(mode=0o700, parents=True, exist_ok=True)
        address = f"{name}@leveret.invalid"
        done = said_by("gpg", "--batch", "--passphrase", "", "--quick-generate-key", address, "ed25519", "sign", "1d",
                       env=self.environment())
        equal(f"gpg: {done.stdout}", done.returncode, 0)
        return address

    def end(self) -> None:
        """Stops the agent that gpg leaves running."""
        if (self.folder / "gnupg").exists():
            said_by("gpgconf", "--kill", "all", env=self.environment())

    # --- the repository ----------------------------------------------------------------------------------------

    @functools.cached_property
    def signed(self) -> Path:
        """Returns the release with signatures."""
        return self.make("signed", list(all_real()), "--sign", self.key("maintainer"))

    @functools.cached_property
    def unsigned(self) -> Path:
        """Returns the release without signatures, with the images if they can be created."""
        can_build = os.geteuid() == 0 and shutil.which("buildah") is not None
        return self.make("unsigned", list(all_real()), *(["--containers"] if can_build else []))

    def packaged(self) -> List[str]:
        """Returns the architectures for which there are packages."""
        found = [release.KINDS[target].architecture for target in all_real() if release.KINDS[target].has_package]
        if not found:
            raise Skip("there is no static binary to build a package from")
        return found

    def board(self, name: str, repository: Path, architecture: str) -> Board:
        """Returns a system with this repository."""
        return Board(self.folder / name, repository, architecture)

    def takes(self, target: str) -> None:
        """apt finds the package for that architecture, with the bytes that were built."""
        binary, architecture = real(target), release.KINDS[target].architecture
        board = self.board(f"board-{architecture}", self.signed / "debian", architecture)
        board.update()
        done = board.apt_get("download", "leveret")
        equal(f"apt-get download: {done.stdout}", done.returncode, 0)
        name = f"leveret_{version()}_{architecture}.deb"
        equal("downloaded", [path.name for path in board.folder.glob("*.deb")], [name])
        pool = self.signed / "debian" / "pool" / "main" / "l" / "leveret"
        equal("the package", (board.folder / name).read_bytes() == (pool / name).read_bytes(), True)
        said_by("dpkg-deb", "-x", board.folder / name, board.folder / "tree")
        equal("the program", (board.folder / "tree/usr/bin/leveret").read_bytes() == binary.read_bytes(), True)

    def refused(self) -> None:
        """A second release has the same files except signatures. apt refuses altered, unsigned and wrongly signed
        lists.
        """
        architecture = self.packaged()[0]
        first, again = files(self.unsigned / "debian"), files(self.signed / "debian")
        only = {"leveret.asc", "dists/stable/InRelease", "dists/stable/Release.gpg"}
        equal("only where it is signed", set(again) - set(first), only)
        equal("not the same", [name for name, data in first.items() if again[name] != data], [])
        (self.unsigned / "debian" / "leveret.asc").write_bytes(again["leveret.asc"])
        self.board("board-unsigned", self.unsigned / "debian", architecture).refuses("is not signed", "update")

        other = self.altered("other", lambda place: (place / "leveret.asc").write_text(
            said_by("gpg", "--armor", "--export", self.key("somebody"), env=self.environment()).stdout))
        self.board("board-other", other, architecture).refuses("NO_PUBKEY", "update")

        def lists(place: Path) -> None:
            for path in [*place.glob("dists/**/Packages*"), *place.glob("dists/**/by-hash/*/*")]:
                flip(path)

        altered = self.altered("lists", lists)
        self.board("board-lists", altered, architecture).refuses("Hash Sum mismatch", "update")

        def package(place: Path) -> None:
            for path in place.rglob("*.deb"):
                flip(path)

        board = self.board("board-package", self.altered("package", package), architecture)
        board.update()
        board.refuses("Hash Sum mismatch", "download", "leveret")

    def altered(self, name: str, alter: Callable[[Path], object]) -> Path:
        """Returns a copy of the repository with an altered file."""
        copy = self.folder / f"altered-{name}"
        shutil.copytree(self.signed / "debian", copy)
        alter(copy)
        return copy

    # --- containers --------------------------------------------------------------------------------------------

    def same_images(self) -> None:
        """An archive that is created twice is the same."""
        target = next(iter(all_real()))
        again = self.make("images-again", [target], "--containers") / "containers"
        path, = again.iterdir()
        equal(f"{path.name} made twice", path.read_bytes() == (self.unsigned / "containers" / path.name).read_bytes(), True)

    def image(self, target: str) -> Path:
        """Checks that the image has one layer with the program for that architecture. Unpacks the layer and returns its
        folder."""
        binary = real(target)
        system, architecture, *variant = release.KINDS[target].image.split("/")
        name = "-".join(["leveret", version(), system, architecture, *variant])
        layout = self.folder / name
        unpack(self.unsigned / "containers" / f"{name}.tar", layout)

        def blob(about: Dict[str, str]) -> Path:
            return layout / "blobs" / about["digest"].replace(":", "/")

        described, = json.loads((layout / "index.json").read_text())["manifests"]
        manifest = json.loads(blob(described).read_text())
        config = json.loads(blob(manifest["config"]).read_text())
        equal("platform", (config["os"], config["architecture"], config.get("variant")),
              (system, architecture, variant[0] if variant else None))
        equal("config", {key: config["config"].get(key) for key in IMAGE}, IMAGE)
        equal("layers", len(manifest["layers"]), 1)
        with tarfile.open(blob(manifest["layers"][0])) as layer:
            members = {member.name.rstrip("/"): member for member in layer}
            equal("files", {path: (members[path].uid, members[path].mode & 0o777) for path in FILES}, FILES)
        unpack(blob(manifest["layers"][0]), layout / "root")
        program = (layout / "root/usr/bin/leveret").read_bytes()
        machine, = struct.unpack_from("<H", program, 18)
        equal("ELF machine", (machine, program[4]), deb.MACHINES[release.KINDS[target].architecture])
        equal("the program", program == binary.read_bytes(), True)
        return layout / "root"
