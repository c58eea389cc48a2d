#!/usr/bin/env python3
"""Set up libtorch 2.11.0 for the CPU, and point cargo at it. Needs Python 3.8 and nothing else.

What tch needs of libtorch is a quarter of PyPI's wheel of torch: the headers and three libraries,
which lie side by side in it. Only those bytes are fetched (131 of 531 MB), into one file that grows
and from whose end an interrupted download goes on. The wheel's RECORD holds a SHA-256 of every file
in it, and the SHA-256 of the RECORD is pinned below: so no byte is installed unchecked.

The installation appears under its name by one rename, so it is there whole or not at all.

    scripts/libtorch.py            set up what is missing, say where it is
    LIBTORCH=DIR scripts/libtorch.py   use the libtorch of DIR
"""

import base64
import csv
import fcntl
import hashlib
import html
import http.client
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

from pathlib import Path

VERSION = "2.11.0"

# The wheel, and where in it lie the files we need: SPAN is [headers … libtorch_cpu.so], TAIL the
# RECORD, the licences and the directory of the archive.
TORCH = "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl"
TORCH_BYTES = 530_712_279
SPAN = (23_716_490, 155_095_653)
TAIL = 528_977_070
RECORD = "torch-2.11.0.dist-info/RECORD"
RECORD_SHA256 = "64d76220aff1572ba2ee949e3c4e5633a21f7aa626c634ee1730609464777fc5"
LIBRARIES = ("libc10.so", "libtorch_cpu.so", "libgomp.so.1")

# libtorch_cpu.so of this wheel also names two libraries of CUDA, which need no GPU to load.
# (wheel, its SHA-256, member, where it goes)
CUDA = (
    (
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        {
            "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
            "nvidia_cuda_runtime-13.0.96.dist-info/licenses/License.txt": "LICENSE.cudart",
        },
    ),
    (
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        {
            "nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13",
            "nvidia_cuda_cupti-13.0.85.dist-info/licenses/License.txt": "LICENSE.cupti",
        },
    ),
)

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amend"
HEADER = "# Written by scripts/libtorch.py; git ignores it."
ATTEMPTS = 8
TIMEOUT_S = 60


class Failure(Exception):
    """What stops the set-up, said to the user."""


def main():
    home = os.environ.get("LIBTORCH")
    if home:
        home = Path(home).resolve()
        if not (home / "lib/libtorch_cpu.so").exists():
            raise Failure(f"LIBTORCH is {home}, which has no lib/libtorch_cpu.so")
    else:
        home = CACHE / f"libtorch-{VERSION}"
        if not (home / "build-version").exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with open(CACHE / "libtorch.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (home / "build-version").exists():  # Another set-up may have been faster.
                    install(home)
    point_cargo_at(home)


def install(home):
    """Fetch, check and unpack libtorch into `home`."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Failure("there is no libtorch to fetch for this machine: set LIBTORCH to one of your own")
    say(f"libtorch {VERSION} goes to {home}")
    part = CACHE / f"{TORCH}.part"
    for left in CACHE.glob("unpack-*"):  # By a set-up that was killed: we hold the lock.
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as work:
        new = Path(work) / "libtorch"
        new.mkdir()
        download_span(find(TORCH), part)
        try:
            unpack_torch(part, new)
        except (zipfile.BadZipFile, zlib.error) as error:
            part.unlink()
            raise Failure(f"{part.name} is damaged ({error}) and was deleted: run this again")
        for wheel, sha256, members in CUDA:
            unpack_small(wheel, sha256, members, new)
        (new / "lib/libtorch.so").symlink_to("libtorch_cpu.so")
        (new / "lib/libgomp.so").symlink_to("libgomp.so.1")
        (new / "build-version").write_text(VERSION + "\n")
        if home.exists():
            shutil.rmtree(home)
        new.rename(home)
    part.unlink()


def download_span(url, part):
    """Bring `part` to be the wheel with a hole where there is nothing we need.

    Its size says how far it is: it starts as a hole up to SPAN, grows to the end of SPAN, and gets
    its full size with the tail.
    """
    first, last = SPAN
    with open(part, "ab") as file:
        if file.tell() < first:
            file.truncate(first)
    if part.stat().st_size <= last:
        progress = Progress("torch", last - first)
        grow(url, part, last, lambda size: progress(size - first))
        progress.end()
        tail = Path(f"{part}.tail")
        with open(tail, "wb") as file:
            file.truncate(TAIL)
        grow(url, tail, TORCH_BYTES, lambda size: None)
        with open(tail, "rb") as file:
            file.seek(TAIL)
            rest = file.read()
        tail.unlink()
        with open(part, "r+b") as file:
            file.seek(TAIL)
            file.write(rest)


def grow(url, part, end, progress):
    """Append to `part` until it is `end` bytes long, going on where it stops."""
    attempt = 0
    while part.stat().st_size < end:
        start = part.stat().st_size
        try:
            with open(part, "ab") as file, open_url(url, start, end) as answer:
                while file.tell() < end:
                    block = answer.read(min(1 << 20, end - file.tell()))
                    if not block:
                        break
                    file.write(block)
                    progress(file.tell())
        except (OSError, http.client.HTTPException) as error:
            cause = error
        else:
            cause = "the connection was closed"
        attempt = 0 if part.stat().st_size > start else attempt + 1
        if part.stat().st_size < end:
            if attempt == ATTEMPTS:
                raise Failure(f"cannot fetch {url}: {cause} (what was fetched is kept: run this again)")
            time.sleep(min(2**attempt, 30))


def open_url(url, start=None, end=None, accept="*/*"):
    """Open `url` at byte `start`, whether or not its server knows ranges."""
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "amend-setup"})
    if start is not None:
        request.add_header("Range", f"bytes={start}-{end - 1}")
    answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    if start is not None and answer.status != 206:
        left = start
        while left > 0:
            left -= len(answer.read(min(1 << 20, left)) or b"?" * left)
    return answer


def find(wheel):
    """The address of a wheel in the package index that pip is configured to use."""
    index = os.environ.get("PIP_INDEX_URL") or configured_index() or "https://pypi.org/simple"
    project = wheel.split("-")[0].replace("_", "-")
    page = f"{index.rstrip('/')}/{project}/"
    for attempt in range(ATTEMPTS):
        try:
            with open_url(page, accept="application/vnd.pypi.simple.v1+html, text/html;q=0.9") as answer:
                text = answer.read().decode()
            break
        except (OSError, http.client.HTTPException) as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise Failure(f"cannot read {page}: {error}")
            time.sleep(min(2**attempt, 30))
    for link in re.findall(r'href\s*=\s*["\']([^"\']+)', text):
        link = urllib.parse.urldefrag(urllib.parse.urljoin(page, html.unescape(link)))[0]
        if urllib.parse.unquote(link).endswith("/" + wheel):
            return link
    raise Failure(f"{page} does not list {wheel}")


def configured_index():
    """The index in pip's configuration files, if there is a pip."""
    try:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def unpack_torch(part, new):
    """Write the headers, the libraries and the licences of the wheel into `new`, each checked."""
    with zipfile.ZipFile(part) as wheel:
        record = wheel.read(RECORD)
        if hashlib.sha256(record).hexdigest() != RECORD_SHA256:
            raise zipfile.BadZipFile("its RECORD is not the expected one")
        checks = {name: check for name, check, _ in csv.reader(io.StringIO(record.decode()))}
        progress, done = Progress("unpacking", 469_000_000), 0
        for name in wheel.namelist():
            path = place(name)
            if path is None:
                continue
            target = new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            hasher = hashlib.sha256()
            with wheel.open(name) as source, open(target, "wb") as file:
                for block in iter(lambda: source.read(1 << 20), b""):
                    hasher.update(block)
                    file.write(block)
                    done += len(block)
                    progress(done)
            found = "sha256=" + base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()
            if found != checks[name]:
                raise zipfile.BadZipFile(f"{name} has another SHA-256")
        progress.end()


def place(name):
    """Where a member of the torch wheel goes, or None."""
    if name.endswith("/"):
        return None
    if name.startswith("torch/include/"):
        return name[len("torch/") :]
    if name.startswith("torch/lib/") and name[len("torch/lib/") :] in LIBRARIES:
        return name[len("torch/") :]
    if name.startswith("torch-2.11.0.dist-info/licenses/") and name.count("/") == 2:
        return name.split("/")[-1]
    return None


def unpack_small(wheel, sha256, members, new):
    """Fetch a small wheel, check it, and write some of its members into `new`."""
    url, blob = find(wheel), b""
    for attempt in range(ATTEMPTS):
        try:
            with open_url(url) as answer:
                blob = answer.read()
        except (OSError, http.client.HTTPException) as error:
            say(f"{wheel}: {error}")
        if hashlib.sha256(blob).hexdigest() == sha256:
            break
        time.sleep(min(2**attempt, 30))
    else:
        raise Failure(f"{url} did not give a file whose SHA-256 is {sha256}")
    say(f"fetched {wheel}, {len(blob) / 1e6:.0f} MB")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        for member, path in members.items():
            (new / path).write_bytes(archive.read(member))


def point_cargo_at(home):
    """Link `libtorch` to it, and tell cargo in the checkout's own configuration.

    The configuration names the real path, which is the same for every checkout: torch-sys is built
    again when it changes. Built artefacts are kept beside it, so that a fresh clone finds them.
    """
    link = CHECKOUT / "libtorch"
    if not link.is_symlink() or os.readlink(link) != str(home):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(home)
    target = CACHE / "target"
    text = f"""\
{HEADER}
[build]
target-dir = {quote(CACHE / "target")}

[env]
LIBTORCH = {quote(home)}
# Threads of OpenMP that wait by spinning cost more than they bring on shared cores.
GOMP_SPINCOUNT = "0"
# Checkouts share the artefacts: build.rs watches this, so that none takes another's for its own.
AMEND_CHECKOUT = {{ value = {quote(CHECKOUT)}, force = true }}
"""
    config = CHECKOUT / ".cargo/config.toml"
    found = config.read_text() if config.exists() else HEADER
    if not found.startswith(HEADER):
        raise Failure(f"{config} is your own: move it away, or put this into it:\n\n{text}")
    if found != text:
        config.parent.mkdir(exist_ok=True)
        config.write_text(text)
    say(f"libtorch: {home}")


def quote(value):
    """A string of TOML; the escapes of JSON are among its own."""
    return json.dumps(str(value))


class Progress:
    """A line that says how far a thing is: in place on a terminal, else at every tenth."""

    def __init__(self, what, total):
        self.what, self.total, self.shown, self.began, self.first = what, total, -1.0, time.monotonic(), None

    def __call__(self, done):
        if self.first is None:
            self.first = done
        share = min(done / self.total, 1.0)
        if share - self.shown < (0.01 if sys.stderr.isatty() else 0.1):
            return
        self.shown = share
        seconds = max(time.monotonic() - self.began, 1e-3)
        speed = (done - self.first) / 1e6 / seconds
        line = f"{self.what} {share:4.0%} of {self.total / 1e6:.0f} MB, {speed:.0f} MB/s"
        if sys.stderr.isatty():
            print(f"\r{line}  ", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def end(self):
        if sys.stderr.isatty():
            print(file=sys.stderr)


def say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (Failure, OSError) as failure:
        sys.exit(f"libtorch.py: {failure}")
    except KeyboardInterrupt:
        sys.exit("libtorch.py: interrupted; what was fetched is kept")
