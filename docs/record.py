#!/usr/bin/env python3
"""Draws docs/first-screen.svg: runs the first commands of README.md and records what a terminal shows, and when.

    docs/record.py [FILE]        FILE: where the picture goes (default: docs/first-screen.svg)

It needs `job-worker` and Mosquitto with its clients on the PATH. It starts a broker of its own on a free port. The commands are those of the
first block of README.md that is marked `console`; each begins when the screen has been quiet for a moment.
"""

import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from html import escape

HERE = os.path.dirname(os.path.abspath(__file__))
COLUMNS = 108
QUIET = 0.8  # seconds without output before the next command
LIMIT = 20  # seconds that a command may keep the screen busy
FONT, WIDTH, HEIGHT = 12, 7.25, 17  # pixels: size, width and height of a character
COLOURS = {"command": "#f0f6fc", "worker": "#8b949e", "ours": "#79c0ff", "output": "#c9d1d9"}


def commands():
    with open(os.path.join(HERE, "..", "README.md"), encoding="utf-8") as page:
        block = page.read().split("```console\n", 1)[1].split("```", 1)[0]
    found = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return [re.sub(r" {2,}#.*", "", command) for command in found]


def record(where, environment):
    """What the terminal shows: pairs of seconds and a line."""
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(where)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-c", 'while IFS= read -rs command; do eval "$command"; done'], environment)
    shown, rest, begun = [], b"", time.monotonic()

    def read_until_quiet():
        nonlocal rest
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and select.select([terminal], [], [], QUIET)[0]:
            *lines, rest = (rest + os.read(terminal, 65536)).split(b"\n")
            shown.extend((time.monotonic() - begun, line.decode().rstrip("\r")) for line in lines)

    try:
        read_until_quiet()
        begun = time.monotonic()
        for command in commands():
            shown.append((time.monotonic() - begun, "$ " + command))
            os.write(terminal, command.encode() + b"\n")
            read_until_quiet()
        if rest:
            shown.append((time.monotonic() - begun, rest.decode()))
    finally:
        os.close(terminal)  # a hangup for the shell and what it has started
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
    return shown


def kind(line):
    if line.startswith("$ "):
        return "command"
    if " job-worker: " in line:
        return "worker"
    return "ours" if line.startswith("==> ") else "output"


def draw(shown):
    rows = []
    for at, line in shown:
        pieces = [line[i : i + COLUMNS] for i in range(0, len(line), COLUMNS)] or [""]
        rows += [(at, kind(line), piece) for piece in pieces]
    width, height = round(COLUMNS * WIDTH) + 24, len(rows) * HEIGHT + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<style>",
        f"text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre;"
        "animation:appear .01s both}",
        *(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items()),
        ".command{font-weight:bold}",
        "@keyframes appear{from{opacity:0}to{opacity:1}}",
        "@media (prefers-reduced-motion:reduce){text{animation:none}}",
        "</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
    ]
    for row, (at, name, piece) in enumerate(rows):
        y = 12 + FONT + row * HEIGHT
        out.append(f'<text class="{name}" x="12" y="{y}" xml:space="preserve" style="animation-delay:{at:.2f}s">{escape(piece, quote=False)}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    target = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "first-screen.svg")
    for program in ("job-worker", "mosquitto_rr", "mosquitto_sub"):
        if not shutil.which(program):
            sys.exit(f"record.py: {program} is not on the PATH")
    mosquitto = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not mosquitto:
        sys.exit("record.py: mosquitto is not on the PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="job-worker-") as scratch:
        where = os.path.join(scratch, "srv")
        os.mkdir(where)
        configuration = os.path.join(scratch, "mosquitto.conf")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        for client in ("mosquitto_rr", "mosquitto_sub"):
            with open(os.path.join(scratch, client), "w", encoding="utf-8") as file:
                file.write(f"-h 127.0.0.1\n-p {port}\n")
        ours = ("JOB_", "MQTT_", "WORKER_", "RUST_LOG")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {"XDG_CONFIG_HOME": scratch, "MQTT_URL": f"mqtt://127.0.0.1:{port}", "TERM": "dumb"}
        broker = subprocess.Popen([mosquitto, "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + LIMIT
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
                if time.monotonic() > end:
                    sys.exit("record.py: mosquitto does not start")
                time.sleep(0.02)
            shown = record(where, environment)
        finally:
            broker.kill()
            broker.wait()
    if not any("job success" in line for _, line in shown):
        sys.exit("record.py: the job did not succeed:\n" + "\n".join(line for _, line in shown))
    with open(target, "w", encoding="utf-8") as file:
        file.write(draw(shown))


if __name__ == "__main__":
    main()
