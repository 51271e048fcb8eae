#!/usr/bin/env python3
"""Builds the static binaries, which run on any distribution.

    systemd/packages/build.py [TARGET...]

Without a TARGET it builds all targets, each to target/TARGET/release/leveret, and prints these paths. leveret-bench,
which measures brokers, is beside each. It needs Rust with the source of its standard library, zig and cargo-zigbuild.
guide/install.md describes how to install them, and shows the command that this program runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
# Pi Zero and Pi 1 (ARMv6), Pi 2 and later with a 32-bit system, 64-bit ARM, and PCs.
TARGETS = ["arm-unknown-linux-musleabihf", "armv7-unknown-linux-musleabihf", "aarch64-unknown-linux-musl",
           "x86_64-unknown-linux-musl"]
# A panic ends the program, so unwinding tables are not needed.
# zig brings the start files and the library of C. rustup has them only for targets that were added.
RUSTFLAGS = "-Cforce-unwind-tables=no -Clink-self-contained=no"
# The standard library is built for size. It needs no code that reads debugging information, because the binaries
# have none.
BUILD_STD = ["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]


class Unbuilt(Exception):
    """A binary was not built; the message is the reason."""


def environment() -> Dict[str, str]:
    """Returns the environment for Cargo. A stable toolchain accepts -Zbuild-std only with `RUSTC_BOOTSTRAP`."""
    return {"RUSTFLAGS": RUSTFLAGS, "RUSTC_BOOTSTRAP": "1"}


def released_version() -> str:
    """Returns the version of Cargo.toml if the commit that is checked out has its tag, otherwise an empty text."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if version is None or not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    tags = subprocess.run(["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"], check=False, stdout=subprocess.PIPE,
                          text=True).stdout.split()
    return version[1] if f"v{version[1]}" in tags else ""


def command(target: str) -> List[str]:
    """Returns the command that builds the binaries for a target."""
    return ["cargo", "zigbuild", "--release", "--locked", "--bins", "--target", target, *BUILD_STD]


def binary(target: str, folder: Path = ROOT / "target") -> Path:
    """Returns the path of the broker's binary for a target, below Cargo's target folder."""
    return folder / target / "release" / "leveret"


def bench(broker: Path) -> Path:
    """Returns the path of leveret-bench from the same build."""
    return broker.with_name("leveret-bench")


def need_tools() -> None:
    """Checks that all tools are installed, before an hour of compiling."""
    for program, source in {"cargo": "it comes with Rust: https://rustup.rs",
                            "cargo-zigbuild": "pip install ziglang cargo-zigbuild"}.items():
        if shutil.which(program) is None:
            raise Unbuilt(f"{program} is not installed ({source})")
    sysroot = subprocess.run([os.environ.get("RUSTC", "rustc"), "--print", "sysroot"], check=True, stdout=subprocess.PIPE,
                             text=True).stdout.strip()
    if not (Path(sysroot) / "lib/rustlib/src/rust/library").exists():
        raise Unbuilt("the source of Rust's standard library is not installed (rustup component add rust-src)")


def build(target: str) -> Path:
    """Builds the binaries for a target. Returns the path of the broker."""
    told = dict(os.environ, **environment(), CARGO_TARGET_DIR=str(ROOT / "target"))
    # Cargo does not notice a new tag by itself, so the binary of the commit would remain a development build.
    if version := released_version():
        told["LEVERET_VERSION"] = version
    if subprocess.run(command(target), cwd=ROOT, env=told, check=False).returncode:
        raise Unbuilt(f"{target}: cargo could not build it; its errors are above")
    return binary(target)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    targets = parser.parse_args().targets or TARGETS
    try:
        if unknown := sorted(set(targets) - set(TARGETS)):
            raise Unbuilt(f"{unknown[0]} is not a target: {', '.join(TARGETS)}")
        need_tools()
        for target in targets:
            print(build(target))
    except Unbuilt as why:
        print(f"systemd/packages/build.py: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
