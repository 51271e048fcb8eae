"""Runs the tests of Leveret.

    tests/run                 the gate, which every change has to pass; the same commit always has the same verdict
    tests/run --full          everything; suites that measure time run alone and last: before a release
    tests/run --changed [BASE]
                              the suites that cover the files that differ from BASE, completely, with fmt and clippy.
                              The default of BASE is the last commit that passed the gate in this folder, or the commit
                              before HEAD
    tests/run NAME...         only these suites or Cargo test programs, completely; also fmt, clippy, doc, oracle
    tests/run --clone         the gate on HEAD in a clean clone: the last step before a change is merged
    tests/run --soak MINUTES  searches with new random numbers and appends the results to tests/soak.tsv; exit code 0
                              if it searched
    tests/run --costs         sizes, memory and instructions beside their budgets
    tests/run --bless [NAME...]
                              writes measured or generated files again (tests/support/harness/bless.py); read the diff

    --no-install              with any of these: apt installs nothing. What lacks a package is reported as SKIP. Without
                              this option each installation is announced in one line before it begins. Python packages
                              and Cargo tools are installed in the cache folder only

Environment: LEVERET_PATIENCE (factor of all timeouts, which only detect hangs; 6), LEVERET_CHANCE_SEED (seed of property
tests and of suites with random choices; 1, and always 1 in the gate), LEVERET_CACHE (the cache folder,
~/.cache/leveret-tests), LEVERET_NO_INSTALL (not empty: as --no-install).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from harness import bless, brokers, cache, environment, soak, steps  # noqa: E402
from harness.quarantine import Quarantine  # noqa: E402
from harness.runner import ROOT, TESTS, Runner  # noqa: E402

EXTRAS = ["fmt", "clippy", "doc", "oracle"]
GATE_EXTRAS = ["fmt", "clippy", "doc"]
PASSED = Path("target") / "gate-passed"


def git(*words: str, cwd: Path = ROOT) -> Optional[str]:
    """Returns the output of git, or `None` if it failed."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *words], cwd=cwd, env=told, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def committed() -> Optional[str]:
    """Returns the commit in this folder, or `None` if a file differs from it."""
    return git("rev-parse", "HEAD") if git("status", "--porcelain", "--untracked-files=all") == "" else None


def note_passed(folder: Path, commit: str) -> None:
    """Records that the gate passed on this commit."""
    (folder / PASSED).parent.mkdir(exist_ok=True)
    (folder / PASSED).write_text(commit + "\n")


def gate(table: dict) -> int:
    """Runs the gate."""
    wanted = [step for step in table.values() if step.gate]
    before = committed()
    status = Runner(table, "gate", Quarantine(TESTS / "quarantine.toml")).work(wanted, GATE_EXTRAS)
    if status == 0 and before and before == committed():
        note_passed(ROOT, before)
    return status


def in_a_clone() -> int:
    """Runs the gate in a clone of HEAD."""
    commit = git("rev-parse", "HEAD")
    if not commit:
        print("there is no commit to clone")
        return 2
    if committed() is None:
        print(f"these changes are not committed, so they are not in the clone:\n{git('status', '--short')}")
    clone = cache.folder("clone") / f"{commit[:12]}-{os.getpid()}"
    told = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CARGO_TARGET_DIR"))}
    inner: Optional["subprocess.Popen[bytes]"] = None
    try:
        subprocess.run(["git", "clone", "--quiet", "--no-local", str(ROOT), str(clone)], env=told, check=True)
        subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=clone, env=told, check=True)
        inner = subprocess.Popen([str(clone / "tests" / "run")], cwd=clone, env=told, stdin=subprocess.DEVNULL,
                                 start_new_session=True)
        status = inner.wait()
        if (clone / PASSED).exists():
            note_passed(ROOT, commit)
        return status
    finally:
        if inner and inner.poll() is None:
            # It needs time to end its own brokers.
            brokers.end(inner, patience=120.0)
        shutil.rmtree(clone, ignore_errors=True)


def base_of(named: str) -> str:
    """Returns the commit that `--changed` compares with."""
    passed = (ROOT / PASSED).read_text().strip() if (ROOT / PASSED).exists() else ""
    is_before = passed and subprocess.run(["git", "merge-base", "--is-ancestor", passed, "HEAD"], cwd=ROOT).returncode == 0
    return named or (passed if is_before else "HEAD~1")


def changed(table: dict, named: str) -> int:
    """Runs the steps that cover the files that differ."""
    base = base_of(named)
    covering = steps.covering(table.values(), steps.changed_files(ROOT, base))
    for file, names in covering.items():
        print(f"{file}: {', '.join(names) or 'not covered'}")
    names = {name for found in covering.values() for name in found}
    extras = ["fmt", "clippy"] if any(file.endswith((".rs", ".toml")) for file in covering) else []
    if not names and not extras:
        print(f"no file that a test covers differs from {base}\n\n0 passed, 0 failed, 0 skipped")
        return 0
    return Runner(table, "full", Quarantine(TESTS / "quarantine.toml")).work([table[name] for name in sorted(names)], extras)


def named(table: dict, names: List[str], mode: str) -> int:
    """Runs the steps and extras with these names."""
    unknown = set(names) - set(table) - set(EXTRAS)
    if unknown:
        print(f"unknown step: {', '.join(sorted(unknown))}; there are {', '.join([*EXTRAS, *sorted(table)])}")
        return 2
    wanted = [table[name] for name in dict.fromkeys(names) if name in table]
    runner = Runner(table, mode, Quarantine(TESTS / "quarantine.toml"))
    return runner.work(wanted, [name for name in names if name in EXTRAS])


def listed(table: dict) -> str:
    """Returns a list of all suites and Cargo test programs for `--help`."""
    def row(step: steps.Step) -> str:
        folder = steps.folder_of(ROOT, step).relative_to(ROOT)
        when = "gate" if step.gate is True and not step.gate_without else "part" if step.gate else "full"
        return f"  {step.name:<19} {str(folder):<34} {when}  {step.about}"

    kinds = [[row(step) for step in table.values() if step.is_cargo is is_cargo] for is_cargo in (False, True)]
    return "\n".join([
        "Each row has a name, a folder, a mark and what is tested. `gate`: all cases are in the gate. `part`: some cases are,",
        "and --full runs all of them. `full`: only --full runs it. A NAME on the command line runs all cases.", "",
        "suites:", *kinds[0], "", "Cargo test programs, and unit tests of packages (leveret-...):", *kinds[1]])


def main() -> int:
    """Runs the command line. Returns the exit code."""
    table = steps.read(TESTS / "steps.toml")
    parser = argparse.ArgumentParser(prog="tests/run", description=__doc__, epilog=listed(table),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--changed", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--clone", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--soak", type=float, metavar="MINUTES", help=argparse.SUPPRESS)
    ways.add_argument("--costs", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--bless", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-install", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("name", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.no_install:
        os.environ[environment.NO_INSTALL] = "1"
    if len(args.name) > (1 if args.changed else 0) and (args.full or args.changed or args.clone or args.costs or
                                                        args.soak is not None):
        parser.error(f"too many arguments: {' '.join(args.name)}")
    brokers.raise_on_sigterm()
    strange = steps.unlisted(table, TESTS)
    if strange:
        return failed(f"tests/steps.toml and the folders of tests/ differ in: {', '.join(strange)}")
    if shutil.which("cargo") is None:
        print("FAIL cargo: Rust is not installed\n\n0 passed, 1 failed, 0 skipped")
        return 1
    if args.clone:
        return in_a_clone()
    if args.soak is not None:
        return soak.search(args.soak)
    if args.bless:
        return bless.write(args.name)
    if args.costs:
        return named(table, ["costs"], "full")
    if args.changed:
        return changed(table, args.name[0] if args.name else "")
    if args.name:
        return named(table, args.name, "full")
    if args.full:
        return named(table, [*table, *EXTRAS], "full")
    return gate(table)


def failed(why: str) -> int:
    """Prints a failure and the summary, which is always the last line. Returns the exit code."""
    print(f"FAIL tests/run: {why}\n\n0 passed, 1 failed, 0 skipped", flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(failed("interrupted"))
    except ValueError as wrong:
        sys.exit(failed(str(wrong)))
    except Exception as wrong:  # the last line has to be the summary
        traceback.print_exc(file=sys.stdout)
        sys.exit(failed(repr(wrong)))
