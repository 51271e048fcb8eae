"""Creates a small Debian for arm64 as file system images, with the kernels to boot it. They are kept in target/qemu/.

Nothing outside target/ is written. No program is emulated to create an image: packages are only unpacked. If the
archive does not answer, `Skip` is raised. Root is needed, because the files in the images have owners.

    packages/, initrd-…   Debian's kernels, and a busybox that mounts the root and starts systemd
    base-…/               the tree of a system without Leveret, with a shell that this machine can use
    NAME.img              such a tree as ext4, with some files added
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "arm"))

import supply  # noqa: E402
from harness import brokers, environment  # noqa: E402
from harness.suite import Skip  # noqa: E402

HOME = brokers.ROOT / "target" / "qemu"
RELEASE = "bookworm"
TOOLS = {"qemu-system-aarch64": "qemu-system-arm", "mmdebstrap": "mmdebstrap", "cpio": "cpio", "mke2fs": "e2fsprogs",
         "mkfs.f2fs": "f2fs-tools", "fdtput": "device-tree-compiler", "blkid": "util-linux",
         "systemd-sysusers": "systemd"}
# The cloud kernel boots a little faster; the general one has f2fs.
KERNELS = {"cloud": "linux-image-cloud-arm64", "general": "linux-image-arm64"}
# The packages of a small system, and those that the scripts of our package need.
PACKAGES = ("systemd,systemd-sysv,udev,iproute2,base-files,base-passwd,bash,coreutils,dash,util-linux,mount,"
            "libc-bin,login,passwd,grep,sed,dpkg,tar,findutils,diffutils,perl-base,init-system-helpers,procps,hostname,"
            "apt,openssl,usr-is-merged")
# The kernel modules in the order of their dependencies. A module that is built into one of the kernels is skipped
# there.
MODULES = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net", "crc16",
           "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4", "crc32_generic", "lz4_compress", "lz4hc_compress",
           "zstd_compress", "f2fs"]
# Creates dpkg's database from the packages that were only unpacked.
DATABASE = """cd "$1/var/lib/dpkg"; for d in "$1"/var/cache/apt/archives/*.deb; do
n=$(dpkg-deb -f "$d" Package); [ "$(dpkg-deb -f "$d" Multi-Arch)" != same ] || n=$n:arm64
dpkg-deb -f "$d"; echo "Status: install ok installed"; echo
dpkg-deb --fsys-tarfile "$d" | tar t | sed "s,^[.],,; s,/$,,; s,^$,/.," >info/$n.list; done >status"""
# Units that slow the boot down and are not needed here.
MASKED = """systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket
systemd-udevd-kernel.socket systemd-sysusers.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
getty-static.service getty@.service serial-getty@.service systemd-logind.service modprobe@.service
systemd-modules-load.service kmod-static-nodes.service systemd-user-sessions.service sys-kernel-debug.mount
sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount
systemd-tmpfiles-clean.timer systemd-initctl.socket apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
e2scrub_all.timer fstrim.timer""".split()
# As on a card: blocks of 4 KiB (the default of small images differs), and all tables written, which the kernel would
# otherwise do in the first minute.
LAID_OUT = ["-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
GENERATORS = ("systemd-debug-generator", "systemd-fstab-generator", "systemd-run-generator")
# Options of the two file systems on the kernel's command line: rig.root=ro, rig.data=OPTIONS, rig.type=TYPE and
# rig.mount=PATH of the second one, rig.day=SECONDS for the clock.
INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs d /dev; $B mount -t proc p /proc; $B mount -t sysfs s /sys
for m in MODULES; do [ ! -f /m/$m.ko ] || $B insmod /m/$m.ko; done
$B ip link set lo up; $B ip addr add 10.0.2.15/24 dev eth0; $B ip link set eth0 up; $B ip route add default via 10.0.2.2
root=rw; data=; type=ext4; mount=/var/lib/leveret
for word in $($B cat /proc/cmdline); do
    case $word in
        rig.root=*) root=${word#*=} ;;
        rig.data=*) data=${word#*=} ;;
        rig.type=*) type=${word#*=} ;;
        rig.mount=*) mount=${word#*=} ;;
        rig.day=*) $B date -s @${word#*=} >/dev/null || { echo CLOCK-FAILED >/dev/console; $B poweroff -f; } ;;
    esac
done
$B mount -t ext4 -o $root /dev/vda /new || { echo MOUNT-FAILED >/dev/console; $B poweroff -f; }
[ -z "$data" ] || $B mount -t $type -o $data /dev/vdb /new$mount || { echo MOUNT-FAILED >/dev/console; $B poweroff -f; }
for d in dev proc sys; do $B mount -o move /$d /new/$d; done
exec $B switch_root /new /sbin/init
""".replace("MODULES", " ".join(MODULES))
# A client sends the length of a script, the script, and its input. It receives the output and the exit status.
# The port is reachable only from this machine.
SHELL_SOCKET = """[Unit]
DefaultDependencies=no
Before=sockets.target
[Socket]
ListenStream=7000
Accept=yes
[Install]
WantedBy=sockets.target
"""
SHELL_SERVICE = """[Unit]
DefaultDependencies=no
[Service]
ExecStart=-/usr/local/lib/test-shell
StandardInput=socket
StandardOutput=socket
StandardError=journal
"""
SHELL = """#!/bin/bash
read -r bytes
script="$(head -c "$bytes")"
bash -c "$script" 2>&1
printf '\\nstatus %s\\n' $?
"""


def have_tools() -> None:
    """Installs the tools that are missing on this machine."""
    if os.geteuid() != 0:
        raise Skip("only root can create a system for QEMU")
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    plugin = list(Path("/usr/lib").glob("**/nbdkit/plugins/nbdkit-python-plugin.so"))
    if missing or not plugin:
        # QEMU's network card requires its boot ROM although it is not used for booting.
        environment.apt_install(*missing, "nbdkit", "nbdkit-plugin-python", "ipxe-qemu")


def run(*command: object, **options: object) -> str:
    """Runs a command that must succeed. Returns its output."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=600, check=False, **options)
    if done.returncode:
        raise AssertionError(f"{command[0]}: status {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


def by_recipe(name: str, make: Callable[[Path], None]) -> Path:
    """Creates a file again if the code of this module has changed."""
    path = HOME / f"{name}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    if not path.exists():
        for outdated in HOME.glob(f"{name}-*"):
            shutil.rmtree(outdated) if outdated.is_dir() else outdated.unlink()
    return once(path, make)


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """Returns `path` and creates it with `make` if it does not exist. An interrupted `make` leaves no partial result
    there."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(path)
    return path


def fetched(make: Callable[[], None], what: str) -> None:
    """Downloads something from Debian's archive. Raises `Skip` if the archive does not answer."""
    try:
        supply.tries(what, make)
    except supply.Missing as missing:
        raise environment.Unreachable(str(missing)) from missing


def unpacked(name: str) -> Path:
    """Returns the unpacked arm64 package; for a kernel's meta package, the kernel that it depends on."""
    def make(part: Path) -> None:
        apt = supply.Apt([RELEASE], "arm64")
        fetched(apt.update, "the package list for arm64")
        real = name
        if name in KERNELS.values():
            needs = apt.run("apt-cache", "depends", name)
            real = next(word for word in needs.split() if word.startswith("linux-image-6"))
        fetched(lambda: apt.unpack(real, part), real)
    return once(HOME / "packages" / name, make)


def kernel(kind: str) -> Path:
    """Returns the kernel image for QEMU."""
    return next((unpacked(KERNELS[kind]) / "boot").glob("vmlinuz-*"))


def initrd(kind: str) -> Path:
    """Creates the initial file system: busybox, modules, and INIT."""
    def make(part: Path) -> None:
        tree = part.with_name("tree-of-initrd")
        shutil.rmtree(tree, ignore_errors=True)
        for folder in ("bin", "m", "dev", "proc", "sys", "new"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(next(unpacked("busybox-static").glob("**/bin/busybox")), tree / "bin" / "busybox")
        for module in MODULES:
            for found in unpacked(KERNELS[kind]).glob(f"**/{module}.ko"):
                shutil.copy(found, tree / "m")
        (tree / "init").write_text(INIT)
        (tree / "init").chmod(0o755)
        run("sh", "-c", f"cd '{tree}' && find . | cpio -o -H newc >'{part}'")
        shutil.rmtree(tree)
    return by_recipe(f"initrd-{kind}", make)


def base() -> Path:
    """Creates the tree of a system without Leveret."""
    def make(part: Path) -> None:
        tar = part.with_name("base.tar")
        option = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        source = f"deb {option}{supply.Apt.archive()} {RELEASE} main"
        command = ["mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract",
                   "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={PACKAGES}",
                   f"--extract-hook={DATABASE}", RELEASE, tar, source]
        fetched(lambda: supply.output_of(*map(str, command), timeout=600), "Debian's packages for arm64")
        part.mkdir()
        run("tar", "-xpf", tar, "-C", part)
        tar.unlink()
        settle(part)
    return by_recipe("base", make)


def settle(tree: Path) -> None:
    """Does what the packages' own scripts would have done, as far as it is needed here."""
    for name in ("passwd", "group"):
        shutil.copy(tree / "usr/share/base-passwd" / f"{name}.master", tree / "etc" / name)
    (tree / "etc/shadow").write_text("")
    (tree / "etc/fstab").write_text("")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "etc/hostname").write_text("board\n")
    run("systemd-sysusers", f"--root={tree}")
    units = tree / "etc/systemd/system"
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in (tree / "usr/lib/systemd/system-generators").iterdir():
        if generator.name not in GENERATORS:
            (generators / generator.name).symlink_to("/dev/null")
    (units / "test-shell.socket").write_text(SHELL_SOCKET)
    (units / "test-shell@.service").write_text(SHELL_SERVICE)
    (tree / "usr/local/lib").mkdir(parents=True, exist_ok=True)
    (tree / "usr/local/lib/test-shell").write_text(SHELL)
    (tree / "usr/local/lib/test-shell").chmod(0o755)
    wants = units / "sockets.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "test-shell.socket").symlink_to("../test-shell.socket")
    for folder in ("doc", "man", "locale", "i18n"):
        shutil.rmtree(tree / "usr/share" / folder, ignore_errors=True)
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
    for stamp in ("etc/.updated", "var/.updated"):
        (tree / stamp).touch()


def tree_with(tree: Path, package: Path) -> Path:
    """Returns the base tree with a package of ours, added as for a board image: unpacked, with its user created and its
    unit enabled. Unchanged files are hard links to the base."""
    shutil.rmtree(tree, ignore_errors=True)
    run("cp", "-al", base(), tree)
    run("dpkg-deb", "-x", package, tree)
    run("systemd-sysusers", f"--root={tree}", "leveret.conf")
    users = dict((line.split(":")[0], line.split(":")[2:4]) for line in (tree / "etc/passwd").read_text().splitlines())
    group = int(users["leveret"][1])
    # The package's configuration is installed by its script, which does not run here.
    (tree / "etc/leveret").mkdir(exist_ok=True)
    shutil.copy(tree / "usr/share/leveret/leveret.toml", tree / "etc/leveret/leveret.toml")
    for place, mode in (("etc/leveret", 0o750), ("etc/leveret/leveret.toml", 0o640)):
        os.chown(tree / place, 0, group)
        os.chmod(tree / place, mode)
    state = tree / "var/lib/leveret"
    state.mkdir(mode=0o750, exist_ok=True)
    os.chown(state, int(users["leveret"][0]), group)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "leveret.service").symlink_to("/lib/systemd/system/leveret.service")
    return tree


def ext4(tree: Path, image: Path, size: str = "400M") -> Path:
    """Creates a file system with the files of a tree."""
    image.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", *LAID_OUT, "-d", tree, image, size)
    return image


def empty(image: Path, size: str, owner_of: Path) -> Path:
    """Makes an empty file system with the owner of the tree's data directory."""
    image.unlink(missing_ok=True)
    owner = (owner_of / "var/lib/leveret").stat()
    run("mke2fs", "-q", "-t", "ext4", *LAID_OUT[:3], f"{LAID_OUT[3]},root_owner={owner.st_uid}:{owner.st_gid}",
        image, size)
    return image


def f2fs(image: Path, size: str) -> Path:
    """Creates an empty f2fs, a file system for flash."""
    image.unlink(missing_ok=True)
    run("truncate", "-s", size, image)
    run("mkfs.f2fs", "-q", image)
    return image


def device_tree(path: Path, memory_mb: int, model: str, compatible: List[str]) -> Path:
    """Returns QEMU's device tree for a memory size, with the names of another machine."""
    run("qemu-system-aarch64", "-M", f"virt,dumpdtb={path}", "-cpu", "cortex-a53", "-m", str(memory_mb), "-display", "none")
    run("fdtput", "-t", "s", path, "/", "model", model)
    run("fdtput", "-t", "s", path, "/", "compatible", *compatible)
    return path


def is_whole(image: Path) -> None:
    """Checks that fsck finds nothing to repair in a file system that was unmounted cleanly."""
    if "f2fs" in run("blkid", "-p", "-o", "value", "-s", "TYPE", image):
        run("fsck.f2fs", "--dry-run", image)
    else:
        run("e2fsck", "-fn", image)


def write_into(tree: Path, files: List[tuple]) -> None:
    """Writes texts into a tree. A file that is linked to the base is replaced by a separate one."""
    for place, text in files:
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        had = path.stat() if path.exists() else None
        path.unlink(missing_ok=True)
        path.write_text(text)
        if had:
            os.chown(path, had.st_uid, had.st_gid)
            path.chmod(had.st_mode & 0o7777)
