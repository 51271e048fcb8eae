"""Tools for ARM builds that a machine usually lacks, downloaded once to target/arm/.

These are the source of the standard library for the installed rustc (from Debian's archive), zig as the C compiler and
linker (from PyPI), and the user-mode emulators (from Debian's archive). Nothing outside of target/arm/ is written, so
root is not needed. A download that fails raises `Missing`, and the caller reports a SKIP.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
STORE = ROOT / "target" / "arm"
# Debian suites that publish Rust compilers newer than its release, the most likely first.
SUITES_WITH_RUST = ["trixie-backports", "testing", "unstable"]
# Cargo's texts when the crate registry cannot be reached. They say nothing about the program.
NO_INDEX = ("failed to download", "spurious network error", "Could not resolve host", "failed to query replaced source")
TRIES = 3
PAUSE_S = 5
FETCH_TIMEOUT_S = 300


class Missing(Exception):
    """Something that this machine cannot obtain. The text says what, and how to obtain it."""


def output_of(*command, **options):
    """Runs a command that must succeed. Returns its stripped standard output."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    return done.stdout.strip()


def tries(what, action):
    """Runs `action` until it succeeds, at most TRIES times. Raises Missing after that."""
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            text = getattr(error, "stderr", None) or str(error)
            text = text.decode(errors="replace") if isinstance(text, bytes) else text
            reason = text.strip().splitlines()[-1] if text.strip() else str(error)
            print(f"# {what}: attempt {attempt} of {TRIES} failed: {reason}", flush=True)
            if attempt < TRIES:
                time.sleep(PAUSE_S * attempt)
    raise Missing(f"{what} cannot be downloaded ({reason})")


class Apt:
    """An apt with the machine's archive, the chosen suites, and its lists and cache in target/arm/; optionally for
    another architecture than the machine's."""

    def __init__(self, suites, architecture=None):
        for tool in ("apt-get", "dpkg-deb"):
            if not shutil.which(tool):
                raise Missing(f"{tool} is not installed (the emulators and Rust's source come from Debian)")
        self.home = STORE / "-".join(["apt", *suites, *filter(None, [architecture])])
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        keyring = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        option = f"[signed-by={keyring}] " if keyring.exists() else ""
        archive = self.archive()
        lines = [f"deb {option}{archive} {suite} main\n" for suite in suites]
        (self.home / "sources.list").write_text("".join(lines))
        (self.home / "apt.conf").write_text(
            f'Dir::State::Lists "{self.home}/lists";\n'
            f'Dir::Cache "{self.home}/cache";\n'
            'Dir::State::status "/dev/null";\n'
            f'Dir::Etc::sourcelist "{self.home}/sources.list";\n'
            'Dir::Etc::sourceparts "-";\n'
            'APT::Sandbox::User "root";\n'
            + (f'APT::Architecture "{architecture}";\nAPT::Architectures {{"{architecture}";}};\n' if architecture else "")
        )
        self.environment = dict(os.environ, APT_CONFIG=str(self.home / "apt.conf"), LC_ALL="C")

    @staticmethod
    def archive():
        """Returns the archive that the machine's own apt uses for Debian's release."""
        targets = output_of(
            "apt-get", "indextargets", "Created-By: Packages", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)"
        )
        for target in targets.splitlines():
            uri, release, origin = (target.split(" ", 2) + ["", ""])[:3]
            plain = not any(mark in release for mark in "-/")
            if plain and (origin == "Debian" or uri.rstrip("/").endswith("/debian")):
                return uri
        raise Missing("this machine's apt has no Debian archive among its sources")

    @staticmethod
    def own_suite():
        """Returns the code name of the Debian release of this machine."""
        for line in pathlib.Path("/etc/os-release").read_text().splitlines():
            if line.startswith("VERSION_CODENAME="):
                return line.split("=", 1)[1].strip('"')
        raise Missing("/etc/os-release names no Debian release")

    def run(self, *arguments, **options):
        """Runs one apt command with this configuration."""
        return output_of(*arguments, env=self.environment, timeout=FETCH_TIMEOUT_S, **options)

    def update(self):
        """Downloads the package lists. An index that does not answer is an error here, not a warning."""
        self.run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")

    def versions(self, package):
        """Returns the published versions of a package."""
        rows = self.run("apt-cache", "madison", package).splitlines()
        return [row.split("|")[1].strip() for row in rows]

    def unpack(self, package, folder):
        """Downloads a package (name or name=version) and unpacks it without installing it."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.run("apt-get", "-q", "download", package, cwd=part)
        archive = next(part.glob("*.deb"))
        output_of("dpkg-deb", "-x", str(archive), str(part))
        archive.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def emulator(architecture):
    """Returns the static user-mode emulator for `architecture`; the installed one if there is one."""
    names = (f"qemu-{architecture}-static", f"qemu-{architecture}")
    if installed := shutil.which(names[0]):
        return installed
    # Newer releases have the static emulators in qemu-user; the package with the old name is empty there.
    packages = ("qemu-user-static", "qemu-user")
    folders = [STORE / package for package in packages]
    for package, folder in zip(packages, folders):
        if not folder.exists():
            apt = Apt([Apt.own_suite()])
            tries("the package list of the emulators", apt.update)
            tries(package, lambda: apt.unpack(package, folder))
        for name in names:
            if (folder / "usr/bin" / name).exists():
                return str(folder / "usr/bin" / name)
    raise Missing(f"Debian's {' and '.join(packages)} contain no {names[0]}")


def python_environment():
    """Creates a virtual environment with zig and cargo-zigbuild. Returns its bin folder."""
    wanted = (pathlib.Path(__file__).with_name("requirements.txt")).read_text()
    folder = STORE / "venv"
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder / "bin"
    try:
        output_of(sys.executable, "-m", "venv", "--clear", str(folder))
    except subprocess.CalledProcessError as error:
        raise Missing("python3 -m venv does not work here (Debian: apt-get install python3-venv)") from error
    requirements = str(pathlib.Path(__file__).with_name("requirements.txt"))
    install = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", "-r", requirements]
    tries("zig and cargo-zigbuild", lambda: output_of(*install, timeout=FETCH_TIMEOUT_S))
    stamp.write_text(wanted)
    return folder / "bin"


def rustc_version():
    """Returns the version of the installed compiler, such as 1.95.0."""
    return output_of("rustc", "--version").split()[1]


def standard_library_source():
    """Returns the folder with the source of the standard library for exactly the installed rustc."""
    version = rustc_version()
    own = pathlib.Path(output_of("rustc", "--print", "sysroot")) / "lib/rustlib/src/rust"
    if (own / "library/std/Cargo.toml").exists():
        return own
    folder = STORE / f"rust-src-{version}"
    source = folder / "usr/src" / f"rustc-{version}"
    if (source / "library/std/Cargo.toml").exists():
        return source
    for suite in SUITES_WITH_RUST:
        apt = Apt([suite])
        tries(f"the package list of {suite}", apt.update)
        found = [v for v in apt.versions("rust-src") if v.startswith(version + "+")]
        if found:
            tries(f"rust-src {found[0]}", lambda: apt.unpack(f"rust-src={found[0]}", folder))
            if not (source / "library/std/Cargo.toml").exists():
                raise Missing(f"Debian's rust-src {found[0]} does not contain {source.relative_to(folder)}")
            return source
    raise Missing(
        f"there is no source of the standard library, and Debian publishes no rust-src {version} "
        f"(in {', '.join(SUITES_WITH_RUST)}); with rustup: rustup component add rust-src"
    )


def rustc_with_source():
    """Returns a rustc with a sysroot of links that has the library's source. The toolchain's own folder is not changed.
    """
    source = standard_library_source()
    real = pathlib.Path(output_of("rustc", "--print", "sysroot"))
    overlay = STORE / f"sysroot-{rustc_version()}"
    rustlib = overlay / "lib/rustlib"
    (rustlib / "src").mkdir(parents=True, exist_ok=True)
    links = {overlay / "bin": real / "bin", rustlib / "src/rust": source}
    links |= {overlay / "lib" / entry.name: entry for entry in (real / "lib").iterdir() if entry.name != "rustlib"}
    links |= {rustlib / entry.name: entry for entry in (real / "lib/rustlib").iterdir() if entry.name != "src"}
    for link, to in links.items():
        if link.is_symlink() or link.exists():
            if link.is_symlink() and os.readlink(link) == str(to):
                continue
            link.unlink()
        link.symlink_to(to)
    rustc = overlay / "rustc"
    rustc.write_text(f'#!/bin/sh\nexec "{real}/bin/rustc" --sysroot "{overlay}" "$@"\n')
    rustc.chmod(0o755)
    return rustc
