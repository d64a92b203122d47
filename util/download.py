"""Downloads files whose checksum is known, in their name, their address or the server's reply.

A download that breaks off goes on where it stopped, at once or in the next run.
"""

import fcntl
import hashlib
import os
import re
import ssl
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from util.errors import InputError

MAX_BYTES = 4 << 30
TIMEOUT = 30  # seconds without any data
ATTEMPTS = 3  # that bring nothing
PAUSE = 1  # seconds between two of them
_CHUNK = 1 << 20
# Whose files DETR_MIRROR has, under the same paths: the original's weights, and torchvision's.
MIRRORED = ("dl.fbaipublicfiles.com", "download.pytorch.org")


class NoSuchFile(InputError):
    """The server is there, but not the file."""


def user_cache():
    """The folder (Path) for downloads: `detr-jittor` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr-jittor"


def download(url, folder):
    """The Path of url's file in folder, downloaded unless it is there with the right checksum.

    url: `https://…/name-<8 or more hex digits of the SHA-256>.ext`, or any with `#sha256=<64 hex
    digits>` at its end. `http://` is accepted for this very machine (127.0.0.1 or localhost) only.
    Where the variable DETR_MIRROR is set, to `https://…`, files of Meta's and PyTorch's servers
    come from there. Of several processes one downloads and the others wait for it.
    Raises InputError for any other address, without a network, and for a file that does not match
    its checksum.
    """
    check_address(url)
    address, _, fragment = url.partition("#")
    name = Path(urlsplit(address).path).name
    if fragment:
        found = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
        if found:
            name = f"{Path(name).stem}-{found[1][:8]}{Path(name).suffix}"
    else:
        found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if found is None:
        raise InputError(
            f"{url}: the name carries no checksum (as in name-0123abcd.pth), so the file cannot be "
            "verified; add #sha256= and its 64 hex digits, or download it by hand and pass its path"
        )
    mirror = os.environ.get("DETR_MIRROR")
    if mirror and urlsplit(address).hostname in MIRRORED:
        check_address(mirror, "DETR_MIRROR")
        address = mirror.rstrip("/") + urlsplit(address).path

    def mismatch(path, _headers):
        return None if sha256(path).startswith(found[1]) else found[1]

    target = Path(folder) / name
    return fetch(address, target, mismatch, lambda: mismatch(target, None) is None)


def fetch(url, target, mismatch, is_right, headers=None):
    """Downloads url's file to target (Path), which it returns, unless it is there already.

    mismatch: a function of the file's path and the headers of the server's replies, a list of
    `email.message.Message`, that returns None or the checksum that the file does not match;
    is_right: whether the file at target, which exists, is the right one. headers: dictionary of
    what to send to the first server, not to others that it redirects to.
    Raises InputError; NoSuchFile where the server does not have it.
    """
    check_address(url)
    try:
        if target.is_file() and is_right():  # without a lock: the cache may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target.is_file() and is_right()):
                _fetch(url, target, mismatch, headers or {})
    except (OSError, HTTPException) as error:
        kind = NoSuchFile if isinstance(error, HTTPError) and error.code == 404 else InputError
        raise kind(
            f"{url}: cannot be downloaded to {target.parent} ({error}); try again to go on where "
            "it stopped, or download it by hand and put it there"
        ) from error
    return target


def sha256(path):
    """The SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_address(url, variable=None):
    """Raises InputError for an address that is neither https:// nor this machine's.

    variable: name of the environment variable that it comes from.
    """
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if not (local or (parts.scheme == "https" and parts.hostname)):
        if variable:
            raise InputError(f"{variable} is {url}: give an https:// address")
        raise InputError(f"{url}: only https:// addresses are downloaded")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects that stay with https, and keeps the headers of all replies."""

    def __init__(self):
        self.headers = []

    def redirect_request(self, request, file, code, message, headers, url):
        check_address(url)
        self.headers.append(headers)
        redirected = super().redirect_request(request, file, code, message, headers, url)
        if urlsplit(url)[:2] == urlsplit(request.full_url)[:2]:  # the same scheme, host and port
            redirected.unredirected_hdrs.update(request.unredirected_hdrs)
        return redirected


def _fetch(url, target, mismatch, headers):
    partial = target.with_name(f".{target.name}.part")
    is_old = partial.exists()  # the part that an earlier run has left
    fruitless = 0
    while True:
        size = _size(partial)
        try:
            replies = _receive(url, partial, headers)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                if error.code != 416:  # 416: there is nothing after the part that we have
                    raise
                partial.unlink()
            if _size(partial) <= size:
                fruitless += 1
                if fruitless == ATTEMPTS:
                    raise
                time.sleep(PAUSE)
            continue
        wrong = mismatch(partial, replies)
        if wrong is None:
            partial.rename(target)
            return
        received = _size(partial)
        partial.unlink()
        if not is_old:
            raise InputError(
                f"{url}: the {received} bytes that arrived do not match the checksum {wrong}; try "
                f"again, or download it by hand into {target.parent}"
            )
        is_old = False


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _receive(url, partial, headers):
    """Appends to partial (Path) what it lacks of url's file; returns the headers of all replies.

    Raises OSError or HTTPException where the connection breaks off, and InputError for a file that
    is too large.
    """
    # A context of its own, because importing Jittor turns the verification of certificates off for
    # the whole process.
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    redirects = _SafeRedirects()
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    opener = urllib.request.build_opener(secure, redirects)
    with opener.open(request, timeout=TIMEOUT) as reply:
        goes_on = reply.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not (reply.status == 206 and goes_on):  # the server sends all of it
            start = 0
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        name = partial.name.removeprefix(".").removesuffix(".part")
        bar = tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None)
        with bar, open(partial, "ab" if start else "wb") as file:
            while chunk := reply.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > MAX_BYTES:
                    partial.unlink()
                    raise InputError(
                        f"{url}: larger than {MAX_BYTES} bytes, as no weights are; check the "
                        "address"
                    )
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise ConnectionError(f"broke off after {file.tell()} of {total} bytes")
    return [*redirects.headers, reply.headers]
