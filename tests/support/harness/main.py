"""`tests/run`: what of the tests is to be run, and where.

    tests/run                 the gate: what every change has to pass; the same commit has the same verdict every time
    tests/run --full          everything; what judges the clock alone and last; before a release
    tests/run --changed [BASE]
                              what tests/steps.toml names for the files that differ from BASE (else from the last commit
                              that passed the gate in this folder, or from the commit before), all of each, and nothing
                              else but fmt and clippy
    tests/run NAME...         only these: fmt, clippy, doc, oracle, a suite, or a program of cargo's tests, all of it
    tests/run --clone         the gate on HEAD in a clean clone: the last step before a change is merged
    tests/run --soak MINUTES  compiles, then searches with fresh numbers and writes what came of it into tests/soak.tsv;
                              exit 0 if it searched
    tests/run --costs         sizes, memory and instructions beside their budgets, and nothing else
    tests/run --bless [NAME...]
                              writes down anew what is measured or made (tests/support/harness/bless.py); its diff is to
                              be read

Environment: LEVERET_PATIENCE (how many times longer than usual it waits before it calls something a hang; 6),
LEVERET_CHANCE_SEED (of property tests and of suites that take chances; 1, and always 1 in the gate), LEVERET_CACHE
(tests/support/harness/cache.py).
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

from harness import bless, brokers, cache, soak, steps  # noqa: E402
from harness.quarantine import Quarantine  # noqa: E402
from harness.runner import ROOT, TESTS, Runner  # noqa: E402

EXTRAS = ["fmt", "clippy", "doc", "oracle"]
GATE_EXTRAS = ["fmt", "clippy", "doc"]
PASSED = Path("target") / "gate-passed"


def git(*words: str, cwd: Path = ROOT) -> Optional[str]:
    """What git says; `None` when it refuses."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *words], cwd=cwd, env=told, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def committed() -> Optional[str]:
    """The commit that this folder has all of, and nothing else."""
    return git("rev-parse", "HEAD") if git("status", "--porcelain", "--untracked-files=all") == "" else None


def note_passed(folder: Path, commit: str) -> None:
    """The gate was green on this commit."""
    (folder / PASSED).parent.mkdir(exist_ok=True)
    (folder / PASSED).write_text(commit + "\n")


def gate(table: dict) -> int:
    """What every change has to pass."""
    wanted = [step for step in table.values() if step.gate]
    before = committed()
    status = Runner(table, "gate", Quarantine(TESTS / "quarantine.toml")).work(wanted, GATE_EXTRAS)
    if status == 0 and before and before == committed():
        note_passed(ROOT, before)
    return status


def in_a_clone() -> int:
    """The gate in a clone of what is committed."""
    commit = git("rev-parse", "HEAD")
    if not commit:
        print("there is no commit to clone")
        return 2
    if committed() is None:
        print(f"what is not committed is not in the clone:\n{git('status', '--short')}")
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
            # It ends its own brokers, for which it needs some time.
            brokers.end(inner, patience=120.0)
        shutil.rmtree(clone, ignore_errors=True)


def base_of(named: str) -> str:
    """What a change is held against."""
    passed = (ROOT / PASSED).read_text().strip() if (ROOT / PASSED).exists() else ""
    is_before = passed and subprocess.run(["git", "merge-base", "--is-ancestor", passed, "HEAD"], cwd=ROOT).returncode == 0
    return named or (passed if is_before else "HEAD~1")


def changed(table: dict, named: str) -> int:
    """What covers the files that differ, and nothing else."""
    base = base_of(named)
    covering = steps.covering(table.values(), steps.changed_files(ROOT, base))
    for file, names in covering.items():
        print(f"{file}: {', '.join(names) or 'nothing covers it'}")
    names = {name for found in covering.values() for name in found}
    extras = ["fmt", "clippy"] if any(file.endswith((".rs", ".toml")) for file in covering) else []
    if not names and not extras:
        print(f"nothing differs from {base} that a test covers\n\n0 passed, 0 failed, 0 skipped")
        return 0
    return Runner(table, "full", Quarantine(TESTS / "quarantine.toml")).work([table[name] for name in sorted(names)], extras)


def named(table: dict, names: List[str], mode: str) -> int:
    """Only these."""
    unknown = set(names) - set(table) - set(EXTRAS)
    if unknown:
        print(f"there is no step called {', '.join(sorted(unknown))}; there are {', '.join([*EXTRAS, *sorted(table)])}")
        return 2
    wanted = [table[name] for name in dict.fromkeys(names) if name in table]
    runner = Runner(table, mode, Quarantine(TESTS / "quarantine.toml"))
    return runner.work(wanted, [name for name in names if name in EXTRAS])


def main() -> int:
    """Reads the arguments and does as they say."""
    parser = argparse.ArgumentParser(prog="tests/run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--changed", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--clone", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--soak", type=float, metavar="MINUTES", help=argparse.SUPPRESS)
    ways.add_argument("--costs", action="store_true", help=argparse.SUPPRESS)
    ways.add_argument("--bless", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("name", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.name) > (1 if args.changed else 0) and (args.full or args.changed or args.clone or args.costs or
                                                        args.soak is not None):
        parser.error(f"too many words: {' '.join(args.name)}")
    brokers.raise_on_sigterm()
    table = steps.read(TESTS / "steps.toml")
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
    """Whatever happens, the last line is the summary."""
    print(f"FAIL tests/run: {why}\n\n0 passed, 1 failed, 0 skipped", flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(failed("interrupted"))
    except ValueError as wrong:
        sys.exit(failed(str(wrong)))
    except Exception as wrong:  # nobody else tells it
        traceback.print_exc(file=sys.stdout)
        sys.exit(failed(repr(wrong)))
