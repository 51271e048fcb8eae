"""A Debian root folder for installing packages, made from the packages installed on this machine.

It contains the essential packages, the dependencies of our package, and dpkg's database about just these. systemd is
replaced by a script that starts and stops the unit's program as its user, and records the calls. The processes of
`Root.run` have a process and a network namespace, so that none of them is left running.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Set

from harness.suite import patience

SEEDS = ["systemd", "init-system-helpers", "dash", "bash"]
LEFT_OUT = re.compile(r"^/usr/share/(doc|man|locale|info|i18n|zoneinfo)/|^/usr/lib/.*/(gconv|perl/.*/unicore)/")

SYSTEMCTL = r"""#!/bin/sh
# Stands for systemd: `start`, `stop` and `restart` of leveret.service run what its unit says.
echo "$*" >>/asked
for word; do
    case $word in --*) shift ;; *) break ;; esac
done
unit=/usr/lib/systemd/system/leveret.service
wanted=/etc/systemd/system/multi-user.target.wants/leveret.service
pid=/run/leveret.pid
stop() {
    [ ! -e $pid ] || {
        kill -TERM "$(cat $pid)"
        while kill -0 "$(cat $pid)" 2>/dev/null; do sleep 0.05; done
        rm $pid
    }
}
start() {
    install -d -o leveret -g leveret -m 0750 /var/lib/leveret
    set -- $(sed -n 's/^ExecStart=//p' $unit)
    STATE_DIRECTORY=/var/lib/leveret setpriv --reuid leveret --regid leveret --clear-groups --no-new-privs \
        "$@" 2>>/log </dev/null &
    echo $! >$pid
}
# The socket unit is not enabled.
[ "${2:-}" != leveret.socket ] || exit 0
case $1 in
    is-enabled)
        [ -e $wanted ] && echo enabled || { echo disabled; exit 1; } ;;
    is-active) [ -e $pid ] ;;
    stop) stop ;;
    start) [ -e $pid ] || start ;;
    restart) stop; start ;;
    daemon-reload) ;;
    enable) [ "$2" = --now ] && start ;;
    disable) [ "$2" = --now ] && stop ;;
    preset)
        mkdir -p "${wanted%/*}"
        ln -s $unit $wanted ;;
    *) echo "systemctl: nobody thought of: $*" >&2; exit 1 ;;
esac
"""

INSIDE = """set -eu
mount -t proc proc "$1/proc"
mount --bind /dev "$1/dev"
ip link set lo up
exec chroot "$1" /bin/sh -eu -c "$2"
"""


def query(form: str, *names: str) -> str:
    """Returns dpkg's data about installed packages."""
    return subprocess.run(["dpkg-query", "-W", "-f", form, *names], check=True, capture_output=True, text=True).stdout


def wanted() -> List[str]:
    """Returns the packages of the root: the essential ones and their dependencies, by dpkg's names."""
    needs: Dict[str, str] = {}
    full: Dict[str, str] = {}
    waiting = list(SEEDS)
    form = "${Package}\t${binary:Package}\t${Essential}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    for line in query(form).splitlines():
        name, whole, essential, depends, provides = line.split("\t")
        needs[name], full[name] = depends, whole
        for other in re.findall(r"[a-z0-9][a-z0-9.+-]*", re.sub(r"\(.*?\)", "", provides)):
            full.setdefault(other, whole)
            needs.setdefault(other, name)
        if essential == "yes":
            waiting.append(name)
    found: Set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or name not in needs:
            continue
        found.add(name)
        for group in re.sub(r"\(.*?\)|:any", "", needs[name]).split(","):
            waiting += [one for one in map(str.strip, group.split("|")) if one in needs][:1]
    return sorted({full[name] for name in found})


class Root:
    """Such a root in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = wanted()
        for place in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "dev", "tmp", "run/systemd/system", "root",
                      "etc/systemd/system", "var/lib/systemd", "var/lib/dpkg/info", "var/lib/dpkg/updates",
                      "var/lib/dpkg/triggers", "var/log"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        for place in ("bin", "sbin", "lib", "lib64"):
            (folder / place).symlink_to(f"usr/{place}")
        self.copy_files(names)
        info = folder / "var/lib/dpkg/info"
        for name in names:
            shutil.copy(Path("/var/lib/dpkg/info") / f"{name}.list", info)
        status = subprocess.run(["dpkg-query", "-s", *names], check=True, capture_output=True, text=True).stdout
        (folder / "var/lib/dpkg/status").write_text(status)
        (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (folder / "etc/group").write_text("root:x:0:\n")
        systemctl = folder / "usr/bin/systemctl"
        systemctl.unlink(missing_ok=True)
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)

    def copy_files(self, names: List[str]) -> None:
        """Copies the packages' files that this machine has; from /etc only those of the linker."""
        listed = subprocess.run(["dpkg-query", "-L", *names], check=True, capture_output=True, text=True).stdout
        places = sorted({line for line in listed.splitlines() if line.startswith("/usr/") or
                         re.match(r"^/(bin|sbin|lib|lib64)/", line)})
        # By their real names, because /bin is a link to /usr/bin. /bin/sh and similar links belong to no package.
        real = {re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", place)
                for place in [*places, "/bin/sh", "/usr/bin/awk"]}
        kept = sorted(place for place in real if not LEFT_OUT.match(place) and
                      (Path(place).is_symlink() or Path(place).exists()))
        kept += ["/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.cache"]
        pack = subprocess.Popen(["tar", "-C", "/", "--no-recursion", "-cf", "-", "-T", "-"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        unpack = subprocess.Popen(["tar", "-C", str(self.folder), "--keep-directory-symlink", "-xpf", "-"],
                                  stdin=pack.stdout)
        assert pack.stdin is not None and pack.stdout is not None
        pack.stdout.close()
        pack.stdin.write("\n".join(place.lstrip("/") for place in kept).encode())
        pack.stdin.close()
        if unpack.wait() or pack.wait():
            raise OSError("the root folder could not be copied")

    def run(self, script: str) -> str:
        """Runs a shell script in the root until the first failing command. Returns its output."""
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--net",
             "sh", "-c", INSIDE, "sh", str(self.folder), script],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=patience(120),
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
        if done.returncode:
            raise AssertionError(f"status {done.returncode}: {done.stdout.strip()}")
        return done.stdout
