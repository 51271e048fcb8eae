"""The commands in the README and the guide: a manual installation, and a sensor on another machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import List

from harness import brokers, environment
from harness.suite import patience
from root import Root

GUIDE = sorted((brokers.ROOT / "systemd" / "guide").glob("*.md"))
README = "\n".join(file.read_text() for file in [brokers.ROOT / "README.md", *GUIDE])


def section(title: str) -> str:
    """Returns the section with this heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^##|\Z)", README, re.MULTILINE | re.DOTALL)
    if found is None:
        raise AssertionError(f"neither the README nor the guide has a section {title!r}")
    return found[1]


def blocks(title: str, language: str) -> List[str]:
    """Returns the code blocks of a section in this language."""
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def by_hand(root: Root, binary: Path) -> None:
    """The guide's lines for a manual installation start a service in a root without Leveret, and its uninstall command
    removes it."""
    lines = section("Debian and Raspberry Pi OS").split("By hand,", 1)[1].split("\n\n")[1]
    target = re.search(r"target/\S+/leveret", lines)
    if target is None:
        raise AssertionError(f"these lines install no binary: {lines}")
    here = root.folder / "here"
    shutil.copytree(brokers.ROOT / "systemd", here / "systemd")
    (here / target[0]).parent.mkdir(parents=True)
    shutil.copy(binary, here / target[0])
    (root.folder / "usr/bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (root.folder / "usr/bin/sudo").chmod(0o755)
    said = root.run(f"cd /here\n{lines}\n" + """
for try in $(seq 200); do leveretctl ping >/dev/null 2>&1 && break; sleep 0.05; done
leveretctl ping
stat -c '%a %U:%G %n' /etc/leveret /etc/leveret/leveret.toml
systemctl disable --now leveret
[ -e /run/leveret.pid ] || echo stopped
""")
    for line in ["750 root:leveret /etc/leveret", "640 root:leveret /etc/leveret/leveret.toml", "stopped"]:
        if line not in said.splitlines():
            raise AssertionError(f"the output has no line {line!r}: {said}")


def sensor(folder: Path) -> None:
    """Runs the sensor section with its certificates, configuration, user and program. Only the host name and ports are
    replaced."""

    def here(text: str, port: int = 0) -> str:
        """Returns the text with this machine's name instead of the guide's."""
        text = text.replace("sudo ", "").replace(" -g leveret", "").replace("/etc/leveret/", f"{folder}/installed/")
        return text.replace("broker.local", "localhost").replace("0.0.0.0:5671", f"127.0.0.1:{port}").replace(
            "5671", str(port)).replace("the password", "secret of its own").replace('"ca.pem"', f'"{folder}/ca.pem"')

    (folder / "installed").mkdir(parents=True)
    certificates, user = blocks("A sensor on another machine", "sh")
    config, = blocks("A sensor on another machine", "toml")
    program, = blocks("A sensor on another machine", "python")
    subprocess.run(["sh", "-euc", here(certificates)], cwd=folder, check=True, capture_output=True)
    python = environment.pika_python(environment.PIKA_NEW)
    with brokers.leveret(config=here(config)) as broker:
        for line in here(user).splitlines():
            words = re.sub(r"\s+#.*", "", line)
            if words.startswith("leveretctl "):
                command = words.replace("leveretctl", f"{broker.binary} ctl --socket {broker.data_dir}/ctl.sock", 1)
                subprocess.run(["sh", "-c", command], input="secret of its own\n", text=True, check=True,
                               capture_output=True)
        port = broker.port_of("listening with TLS")
        subprocess.run([str(python), "-c", here(program, port)], check=True, timeout=patience(60), capture_output=True)
        counts = broker.ctl("-s", "list_queues", "name", "messages").split()
        if counts != ["readings", "1"]:
            raise AssertionError(f"the queues are {counts}")
        may = subprocess.run([str(python), "-c", here(program, port).replace('"readings"', '"others"')], check=False,
                             timeout=patience(60), capture_output=True, text=True)
        if "ACCESS_REFUSED" not in may.stderr:
            raise AssertionError(f"the user may write to other exchanges: {may.stderr}")
