#!/usr/bin/env python3
"""Builds the static binaries: one of them runs on any distribution.

    systemd/packages/build.py [TARGET...]

Without a TARGET it builds all of them, each to target/TARGET/release/leveret, and prints these paths; leveret-bench,
which measures brokers, lies beside each. It takes Rust with the source of its standard library, zig and cargo-zigbuild:
guide/install.md says where they come from, and shows the command that this runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[2]
# Pi Zero and Pi 1 (ARMv6), Pi 2 and later with a 32-bit system, 64-bit ARM, and PCs.
TARGETS = ["arm-unknown-linux-musleabihf", "armv7-unknown-linux-musleabihf", "aarch64-unknown-linux-musl",
           "x86_64-unknown-linux-musl"]
# A panic ends the program, so nobody unwinds: the tables for it would only list the frames of a program without names.
# zig has C's start files and library; those of rustup are there only for targets that it was told to add.
RUSTFLAGS = "-Cforce-unwind-tables=no -Clink-self-contained=no"
# The library is built along, made small, and without what reads a program's own debugging information to name the
# lines of a stack: what is shipped has none.
BUILD_STD = ["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]


class Unbuilt(Exception):
    """There is no binary, and why."""


def environment() -> Dict[str, str]:
    """What the command needs beside its words; cargo takes -Zbuild-std from a stable toolchain only when told so."""
    return {"RUSTFLAGS": RUSTFLAGS, "RUSTC_BOOTSTRAP": "1"}


def command(target: str) -> List[str]:
    """What builds the binaries for a target."""
    return ["cargo", "zigbuild", "--release", "--locked", "--bins", "--target", target, *BUILD_STD]


def binary(target: str, folder: Path = ROOT / "target") -> Path:
    """Where cargo puts the broker for a target, below its target folder."""
    return folder / target / "release" / "leveret"


def bench(broker: Path) -> Path:
    """The program that measures brokers, of the same build."""
    return broker.with_name("leveret-bench")


def need_tools() -> None:
    """What is missing is told before an hour of compiling."""
    for program, source in {"cargo": "it comes with Rust: https://rustup.rs",
                            "cargo-zigbuild": "pip install ziglang cargo-zigbuild"}.items():
        if shutil.which(program) is None:
            raise Unbuilt(f"{program} is not installed ({source})")
    sysroot = subprocess.run([os.environ.get("RUSTC", "rustc"), "--print", "sysroot"], check=True, stdout=subprocess.PIPE,
                             text=True).stdout.strip()
    if not (Path(sysroot) / "lib/rustlib/src/rust/library").exists():
        raise Unbuilt("the source of Rust's standard library is not installed (rustup component add rust-src)")


def build(target: str) -> Path:
    """Builds the binaries for a target; where the broker is."""
    told = dict(os.environ, **environment(), CARGO_TARGET_DIR=str(ROOT / "target"))
    if subprocess.run(command(target), cwd=ROOT, env=told, check=False).returncode:
        raise Unbuilt(f"{target}: cargo could not build it, and says why above")
    return binary(target)


def main() -> int:
    """Builds what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    targets = parser.parse_args().targets or TARGETS
    try:
        if unknown := sorted(set(targets) - set(TARGETS)):
            raise Unbuilt(f"{unknown[0]} is none of the targets: {', '.join(TARGETS)}")
        need_tools()
        for target in targets:
            print(build(target))
    except Unbuilt as why:
        print(f"systemd/packages/build.py: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
