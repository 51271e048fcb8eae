"""Builds an older Leveret from the history, for tests of updates and downgrades.

The tools are the current ones. If the history does not contain it, as in a shallow clone, the case is a `Skip`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "support"), str(Path(__file__).resolve().parents[1] / "arm"),
                str(Path(__file__).resolve().parents[3] / "systemd" / "packages")]

import build as static  # noqa: E402
import image  # noqa: E402
import supply  # noqa: E402
from harness import brokers, environment, suite  # noqa: E402

# The last commit that writes the first store format.
COMMIT = "4dce917a39234c2ac23edecb1a1ee07a77644b73"
TARGET = "aarch64-unknown-linux-musl"
BUILD_TIMEOUT_S = 2400


def binary() -> Path:
    """Returns the static binary for arm64."""
    return image.once(image.HOME / f"older-{COMMIT[:12]}", make) / "leveret"


def make(part: Path) -> None:
    """Exports the sources from the history and builds them."""
    if subprocess.run(["git", "cat-file", "-e", f"{COMMIT}^{{tree}}"], cwd=brokers.ROOT, check=False,
                      stderr=subprocess.DEVNULL).returncode:
        raise suite.Skip(f"the history of this clone has no commit {COMMIT[:12]}")
    source = part / "source"
    source.mkdir(parents=True)
    image.run("sh", "-c", f"git -C '{brokers.ROOT}' archive {COMMIT} | tar -x -C '{source}'")
    # The folder is inside another cargo package now.
    with (source / "Cargo.toml").open("a") as manifest:
        manifest.write("\n[workspace]\n")
    try:
        tools = supply.python_environment()
        compiler = supply.rustc_with_source()
    except supply.Missing as missing:
        raise environment.Unreachable(str(missing)) from missing
    told = dict(os.environ, **static.environment(), PATH=f"{tools}:{os.environ['PATH']}", RUSTC=str(compiler),
                CARGO_TARGET_DIR=str(part / "build"), ZIG_GLOBAL_CACHE_DIR=str(supply.STORE / "zig"),
                CARGO_ZIGBUILD_CACHE_DIR=str(supply.STORE / "zig"))
    done = subprocess.run(static.command(TARGET), cwd=source, env=told, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    if done.returncode and any(mark in done.stdout for mark in supply.NO_INDEX):
        raise environment.Unreachable("the crate registry does not answer, so no older Leveret was built")
    assert done.returncode == 0, f"the older Leveret cannot be built: {done.stdout[-2000:]}"
    static.binary(TARGET, part / "build").rename(part / "leveret")
    image.run("rm", "-r", source, part / "build")
