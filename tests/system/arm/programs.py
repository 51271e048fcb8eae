"""Cargo's test programs for another processor than this machine's.

Overflow checks and assertions are on, as with `cargo test --profile checked`. `supply.Missing` is raised for downloads
that fail, and RuntimeError for errors of compilation and tests.
"""

import os
import pathlib
import re
import subprocess
import time

import supply

# The packages of the broker that have unit tests of their own.
PACKAGES = ["leveret-core", "leveret-amqp", "leveret-mqtt", "leveret-connection", "leveret-broker", "leveret-storage",
            "leveret-json", "leveret-config", "leveret-tls", "leveret-bridge", "leveret-management", "leveret-server",
            "leveret-daemon"]
BUILD_TIMEOUT_S = 2400
RUN_TIMEOUT_S = 1200
EXECUTABLE = re.compile(r"^ +Executable (unittests )?(\S+) \((\S+)\)$", re.MULTILINE)


def environment():
    """Returns the environment with cargo's tools and its target directory. Raises Missing."""
    told = dict(os.environ)
    told["PATH"] = f"{supply.python_environment()}:{told['PATH']}"
    told["CARGO_TARGET_DIR"] = str(supply.STORE / "programs")
    told["CARGO_ZIGBUILD_CACHE_DIR"] = told["ZIG_GLOBAL_CACHE_DIR"] = str(supply.STORE / "zig")
    # Compiling takes most of the time, so the code is optimized little. Overflow checks and assertions are on.
    told["CARGO_PROFILE_CHECKED_OPT_LEVEL"] = "1"
    return told


def has_target(target):
    """Returns whether the toolchain has a standard library for the target (rustup target add)."""
    command = ["rustc", "--print", "target-libdir", "--target", target]
    libraries = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return any(pathlib.Path(libraries).glob("libstd-*.rlib"))


def build(target, tests):
    """Builds the test programs. Returns them by name. Raises Missing, or RuntimeError if they do not compile."""
    told = environment()
    command = ["cargo-zigbuild", "test", "--workspace", "--profile", "checked", "--locked", "--no-run", "--target", target]
    for package in PACKAGES:
        command += ["--config", f"profile.checked.package.{package}.opt-level=1"]
    # `--lib` builds the unit tests of all packages.
    for program in sorted({"" if test in PACKAGES else test.split("::")[0] for test in tests}):
        command += ["--test", program] if program else ["--lib"]
    if not has_target(target):
        told["RUSTC"], told["RUSTC_BOOTSTRAP"] = str(supply.rustc_with_source()), "1"
        told["RUSTFLAGS"] = "-Clink-self-contained=no"
        command.append("-Zbuild-std=std,panic_unwind,test")
    for attempt in range(1, supply.TRIES + 1):
        done = subprocess.run(command, cwd=supply.ROOT, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=BUILD_TIMEOUT_S)
        if done.returncode == 0:
            found = EXECUTABLE.findall(done.stdout)
            paths = [(unit, pathlib.Path(source), supply.ROOT / path) for unit, source, path in found]
            made = {package_name(path) if unit else program_name(source): path for unit, source, path in paths}
            if missing := sorted({test for test in tests if test.split("::")[0] not in made}):
                raise RuntimeError(f"not built: {', '.join(missing)}")
            return made
        if not any(mark in done.stdout for mark in supply.NO_INDEX):
            print(done.stdout[-4000:])
            errors = [line for line in done.stdout.splitlines() if line.startswith("error")]
            raise RuntimeError("; ".join(errors[:2]) or "the build failed")
        time.sleep(supply.PAUSE_S * attempt)
    raise supply.Missing("the crate registry does not answer")


def package_name(path):
    """Returns the package whose unit tests a program contains: `leveret-storage` for
    `leveret_storage-0123456789abcdef`."""
    return path.name.rsplit("-", 1)[0].replace("_", "-")


def program_name(source):
    """Returns Cargo's name of a test program: its folder, or its only file."""
    return source.parent.name if source.stem == "main" else source.stem


def run(name, program, before, seeds):
    """Runs a test program, or the part of it that `name` selects. `before` is the command prefix, `seeds` are the seeds
    of the simulator. Returns the number of passed tests and the duration. Raises RuntimeError with the names of failed
    tests."""
    began = time.monotonic()
    part = [word + "::" for word in name.split("::")[1:]]
    try:
        done = subprocess.run([*before, program, *part, "--test-threads", "2"], cwd=supply.ROOT,
                              env={"LEVERET_SEED": seeds, **os.environ}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not finished after {RUN_TIMEOUT_S} s") from None
    passed = re.search(r"test result: ok\. (\d+) passed", done.stdout)
    if done.returncode == 0 and passed and int(passed.group(1)):
        return f"{passed.group(1)} tests ({time.monotonic() - began:.1f} s)"
    print(done.stdout[-6000:])
    failed = re.findall(r"^test (\S+) \.\.\. FAILED$", done.stdout, re.MULTILINE)
    raise RuntimeError(", ".join(failed) or f"it ended with {done.returncode}")
