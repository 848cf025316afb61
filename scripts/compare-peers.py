#!/usr/bin/env python3
"""Drives nbd-rs and its peers with the same loads, turn about, and prints medians and ratios.

Each server has the same 1 GiB file, in the page cache, and a unix socket (or TCP). The load comes from
fio's nbd engine. A peer that is not installed is left out. Only ratios of one run mean anything: the
servers, fio, and whatever else the machine does share its processors.

    cargo build --release
    scripts/compare-peers.py                                     the rows of docs/performance.md
    scripts/compare-peers.py --sweep --plot docs/performance.svg its picture
    scripts/compare-peers.py other='exec other-server --unix $SOCK $IMG'

A command of one's own is run by sh; it serves the export "disk" and finds $IMG, $SOCK, $PORT and $DIR.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMAGE_BYTES = 1 << 30
START_SECONDS = 10


class Load(NamedTuple):
    """What fio does: kind, block size, requests in flight for each client, clients."""

    kind: str
    block: str
    depth: int
    clients: int = 1

    def __str__(self):
        clients = f", {self.clients} clients" if self.clients > 1 else ""
        return f"{self.block} {self.kind}, depth {self.depth}{clients}"

    def options(self):
        return [
            f"--rw={self.kind}",
            f"--bs={self.block}",
            f"--iodepth={self.depth}",
            f"--numjobs={self.clients}",
            "--group_reporting",
        ]


ROWS = [
    Load("randread", "4k", 1),
    Load("randread", "4k", 16),
    Load("randread", "4k", 64),
    Load("randwrite", "4k", 16),
    Load("randread", "64k", 16),
    Load("read", "1m", 8),
    Load("write", "1m", 8),
    Load("randread", "4k", 16, 4),
]
DEPTHS = [Load("randread", "4k", 1 << power) for power in range(7)]
CLIENTS = [Load("randread", "4k", 16, 1 << power) for power in range(5)]


class Sample(NamedTuple):
    """What one run gave."""

    per_second: float
    server_cpu_us: float
    p99_us: float
    anonymous_mib: float


def server_commands(tcp, binary):
    """Commands by name, for what is installed."""
    nbdkit = "-p $PORT -i 127.0.0.1" if tcp else "-U $SOCK"
    qemu = "-p $PORT -b 127.0.0.1" if tcp else "-k $SOCK"
    ours = "tcp:127.0.0.1:$PORT" if tcp else "unix:$SOCK"
    where = "port = $PORT\\nlistenaddr = 127.0.0.1" if tcp else "unixsock = $SOCK"
    conf = f"[generic]\\nallowlist = true\\n{where}\\n[disk]\\nexportname = $IMG\\nflush = true\\n"
    all_of_them = {
        "nbd-rs": f"exec {binary} serve --listen {ours} --export disk raw file:$IMG",
        "nbdkit": f"exec nbdkit -f -e disk {nbdkit} file $IMG",
        "qemu-nbd": "exec qemu-nbd -t -x disk -e 64 -f raw --cache=writeback --discard=unmap "
        f"{qemu} $IMG",
        "nbd-server": f'printf "{conf}" > $DIR/nbd.conf; nbd-server -C $DIR/nbd.conf -p $DIR/pid; exec sleep 600',
    }
    installed = {name for name in all_of_them if name == "nbd-rs" or shutil.which(name)}
    for name in all_of_them.keys() - installed:
        print(f"{name} is not installed and is left out", file=sys.stderr)
    return {name: command for name, command in all_of_them.items() if name in installed}


class Server:
    """A server that runs, with its image hot."""

    def __init__(self, command, image, tcp, pin):
        self.directory = tempfile.TemporaryDirectory(prefix="nbd-bench")
        self.socket = f"{self.directory.name}/s"
        self.port = free_port()
        self.tcp = tcp
        environment = dict(
            os.environ, IMG=image, SOCK=self.socket, PORT=str(self.port), DIR=self.directory.name
        )
        self.log = open(f"{self.directory.name}/log", "w+")
        self.process = subprocess.Popen(
            [*on_core(1, pin), "sh", "-c", command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            start_new_session=True,
        )

    def __enter__(self):
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.log.seek(0)
                sys.exit(f"a server did not start: {self.log.read().strip()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        for pid in self.daemon():
            os.kill(pid, signal.SIGTERM)
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self.log.close()
        self.directory.cleanup()

    def answers(self):
        family = socket.AF_INET if self.tcp else socket.AF_UNIX
        address = ("127.0.0.1", self.port) if self.tcp else self.socket
        with socket.socket(family) as client:
            try:
                client.connect(address)
            except OSError:
                return False
            return True

    def uri(self):
        if self.tcp:
            return f"nbd://127.0.0.1:{self.port}/disk"
        return f"nbd+unix:///disk?socket={self.socket}"

    def daemon(self):
        """Of nbd-server, which leaves the process group whatever it is told."""
        file = Path(self.directory.name, "pid")
        return [int(file.read_text())] if file.exists() else []

    def pids(self):
        """Of the process and its children: some servers fork for each client."""
        found = [self.process.pid, *self.daemon()]
        for pid in found:
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += [int(child) for child in thread.read_text().split()]
                except FileNotFoundError:
                    # The thread has ended since it was listed.
                    pass
        return found

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            # Its own time, and that of children that have ended.
            ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def anonymous_mib(self):
        kib = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    kib += int(line.split()[1])
        return kib / 1024


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_core(core, pin):
    return ["taskset", "-c", str(core)] if pin else []


def measure(server, load, seconds, pin):
    """One run of fio; nothing if the server does not bear it."""
    before = server.cpu_seconds()
    fio = subprocess.Popen(
        [*on_core(0, pin), "fio", "--name=load", "--ioengine=nbd", f"--uri={server.uri()}"]
        + ["--time_based", f"--runtime={seconds}", f"--size={IMAGE_BYTES}", "--randrepeat=1"]
        + ["--output-format=json", *load.options()],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds * 0.8)
    memory = server.anonymous_mib()
    output, _ = fio.communicate(timeout=seconds + 60)
    if fio.returncode != 0:
        return None
    job = json.loads(output[output.index("{") :])["jobs"][0]
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    cpu = server.cpu_seconds() - before
    return Sample(
        per_second=side["iops"],
        server_cpu_us=1e6 * cpu / side["total_ios"],
        p99_us=side["clat_ns"]["percentile"]["99.000000"] / 1000,
        anonymous_mib=memory,
    )


def compare(servers, loads, arguments, image):
    """Medians by load and name of the server. The servers take turns within each load."""
    samples = {}
    for _ in range(arguments.rounds):
        for load in loads:
            for name, command in servers.items():
                with Server(command, image, arguments.tcp, arguments.pin) as server:
                    sample = measure(server, load, arguments.seconds, arguments.pin)
                if sample is None:
                    print(f"{name} failed: {load}", file=sys.stderr)
                else:
                    samples.setdefault((load, name), []).append(sample)
    return {key: Sample(*map(statistics.median, zip(*some))) for key, some in samples.items()}


def print_table(medians, loads, names):
    """Markdown: throughput of the first, and of the others with the ratio; CPU time in brackets."""
    print("| load | " + " | ".join(names) + " | p99 of " + ", ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for load in loads:
        first = medians[load, names[0]]
        cells = [f"{first.per_second:,.0f} ({first.server_cpu_us:.1f} µs)"]
        for name in names[1:]:
            other = medians.get((load, name))
            if other is None:
                cells.append("failed")
                continue
            ratio = first.per_second / other.per_second
            cells.append(
                f"{other.per_second:,.0f} ({other.server_cpu_us:.1f} µs) **{ratio:.2f}**"
            )
        known = [medians[load, name] for name in names if (load, name) in medians]
        tails = ", ".join(f"{sample.p99_us:,.0f} µs" for sample in known)
        print(f"| {load} | " + " | ".join(cells) + f" | {tails} |")


COLOURS = ["#0b6e4f", "#c1666b", "#4a6fa5", "#b08900", "#7d5ba6", "#444444"]
PANEL_WIDTH, PANEL_HEIGHT, MARGIN = 380, 260, 60


def panel(left, title, series, top_value):
    """Lines over powers of two, as SVG."""
    ticks = sorted({x for points in series.values() for x, _ in points})
    step = PANEL_WIDTH / max(len(ticks) - 1, 1)

    def place(x, y):
        return left + ticks.index(x) * step, MARGIN + PANEL_HEIGHT * (1 - y / top_value)

    parts = [f'<text x="{left}" y="{MARGIN - 20}" font-weight="bold">{title}</text>']
    for tick in ticks:
        x, bottom = place(tick, 0)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{tick}</text>')
    for quarter in range(5):
        value = top_value * quarter / 4
        _, y = place(ticks[0], value)
        parts.append(
            f'<line x1="{left}" x2="{left + PANEL_WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{value / 1000:,.0f}k</text>'
        )
    for colour, points in zip(COLOURS, series.values()):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
    return parts


def draw(medians, names, path):
    """Throughput against depth and against clients."""
    top = max(sample.per_second for sample in medians.values())
    width, height = 2 * (PANEL_WIDTH + 2 * MARGIN), PANEL_HEIGHT + 2 * MARGIN + 30

    def series(loads, position):
        known = [(load, name) for load in loads for name in names if (load, name) in medians]
        lines = {name: [] for name in names}
        for load, name in known:
            lines[name].append((position(load), medians[load, name].per_second))
        return lines

    by_depth = series(DEPTHS, lambda load: load.depth)
    by_clients = series(CLIENTS, lambda load: load.clients)
    parts = panel(MARGIN + 10, "4 KiB random reads a second, by depth", by_depth, top)
    left = PANEL_WIDTH + 3 * MARGIN
    parts += panel(left, "by clients, each at depth 16", by_clients, top)
    for place, (colour, name) in enumerate(zip(COLOURS, names)):
        x, y = MARGIN + 10 + place * 130, height - 20
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{x + 18}" y="{y}">{name}</text>'
        )
    Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def hot_image(directory):
    """The file that is served: no zeros, no holes, all of it in the page cache."""
    path = f"{directory}/image"
    with open("/dev/urandom", "rb") as source, open(path, "wb") as image:
        for _ in range(IMAGE_BYTES >> 20):
            image.write(source.read(1 << 20))
        # What is still to be written to the disk would be written during the first loads.
        image.flush()
        os.fsync(image.fileno())
    return path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load")
    parser.add_argument("--seconds", type=float, default=2, help="of each run")
    parser.add_argument("--tcp", action="store_true", help="over TCP, not a unix socket")
    parser.add_argument("--pin", action="store_true", help="server on core 1, fio on core 0")
    parser.add_argument("--sweep", action="store_true", help="depths and clients, not the rows")
    parser.add_argument("--plot", metavar="FILE.svg", help="draws what --sweep found")
    parser.add_argument("--only", metavar="NAME,...", help="of the servers")
    parser.add_argument("--load", metavar="WORDS", default="", help="only loads that are called so")
    parser.add_argument("--binary", default=str(ROOT / "target/release/nbd-rs"))
    parser.add_argument("others", nargs="*", metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    if not shutil.which("fio"):
        sys.exit("fio is needed (Debian: apt install fio)")
    if arguments.plot and not arguments.sweep:
        parser.error("--plot draws what --sweep finds")

    servers = server_commands(arguments.tcp, arguments.binary)
    servers |= dict(other.split("=", 1) for other in arguments.others)
    if arguments.only:
        servers = {name: servers[name] for name in arguments.only.split(",")}
    names = list(servers)
    loads = DEPTHS + CLIENTS if arguments.sweep else ROWS
    loads = [load for load in loads if arguments.load in str(load)]
    with tempfile.TemporaryDirectory(prefix="nbd-bench") as directory:
        medians = compare(servers, loads, arguments, hot_image(directory))
    print_table(medians, list(dict.fromkeys(loads)), names)
    if arguments.plot:
        draw(medians, names, arguments.plot)


if __name__ == "__main__":
    main()
