"""Download files and verify their checksum (from file name, URL or server response).

Interrupted downloads are resumed, by a retry or by the next run.
"""

import fcntl
import hashlib
import os
import re
import socket
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
TIMEOUT = 30  # seconds without data
ATTEMPTS = 3  # without progress
PAUSE = 1  # seconds between attempts
_CHUNK = 1 << 20
# Servers that DETR_MIRROR replaces: the original's weights, and torchvision's.
MIRRORED = ("dl.fbaipublicfiles.com", "download.pytorch.org")


class NoSuchFile(InputError):
    """The server does not have the file (HTTP 404)."""


def get_user_cache():
    """Return the folder (Path) for downloads, `detr-jittor` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr-jittor"


def is_reachable(address):
    """Return True if a server (host, port) accepts a connection within two seconds."""
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True


def download(url, folder):
    """Download url's file to folder unless it is there with a valid checksum; return its Path.

    url: `https://…/name-<8 or more hex digits of the SHA-256>.ext`, or any that ends with
    `#sha256=<64 hex digits>`; `http://` only for localhost. The environment variable DETR_MIRROR
    (`https://…`) replaces Meta's and PyTorch's servers. If several processes request a file, one
    downloads it and the others wait. Raises InputError for any other URL, if the download fails,
    and if the checksum does not match.
    """
    check_url(url)
    source, _, fragment = url.partition("#")
    name = Path(urlsplit(source).path).name
    if fragment:
        match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
        if match:
            name = f"{Path(name).stem}-{match[1][:8]}{Path(name).suffix}"
    else:
        match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if match is None:
        raise InputError(
            f"{url}: the name has no checksum (as name-0123abcd.pth has), so the file cannot be "
            "verified; add #sha256= and its 64 hex digits, or download it by hand and pass its path"
        )
    mirror = os.environ.get("DETR_MIRROR")
    if mirror and urlsplit(source).hostname in MIRRORED:
        check_url(mirror, "DETR_MIRROR")
        source = mirror.rstrip("/") + urlsplit(source).path

    def find_mismatch(path, _headers=None):
        return None if sha256(path).startswith(match[1]) else match[1]

    target = Path(folder) / name
    return fetch(source, target, find_mismatch, lambda: find_mismatch(target) is None)


def fetch(url, target, find_mismatch, is_valid, headers=None):
    """Download url's file to target (Path) unless it is there; return target.

    Args:
        find_mismatch: function of the file's path and the headers of all responses, a list of
            `email.message.Message`; returns the checksum that the file does not match, or None.
        is_valid: function that returns True if the existing file at target is valid.
        headers: dictionary of headers for the first server, not for those it redirects to.

    Raises:
        NoSuchFile: the server does not have it.
        InputError: the download fails otherwise.
    """
    check_url(url)
    try:
        if target.is_file() and is_valid():  # before the lock: the cache may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target.is_file() and is_valid()):
                _fetch(url, target, find_mismatch, headers or {})
    except (OSError, HTTPException) as error:
        kind = NoSuchFile if isinstance(error, HTTPError) and error.code == 404 else InputError
        raise kind(
            f"{url}: cannot be downloaded to {target.parent} ({error}); try again to continue "
            "where it stopped, or download it by hand and put it there"
        ) from error
    return target


def sha256(path):
    """Return a file's SHA-256, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_url(url, variable=None):
    """Raise InputError for a URL that is neither https:// nor on localhost.

    variable: environment variable that it comes from.
    """
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if not (local or (parts.scheme == "https" and parts.hostname)):
        if variable:
            raise InputError(f"{variable} is {url}: give an https:// URL")
        raise InputError(f"{url}: only https:// URLs are downloaded")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only, and collect the headers of their responses."""

    def __init__(self):
        self.headers = []

    def redirect_request(self, request, file, code, message, headers, url):
        check_url(url)
        self.headers.append(headers)
        redirected = super().redirect_request(request, file, code, message, headers, url)
        if urlsplit(url)[:2] == urlsplit(request.full_url)[:2]:  # the same scheme, host and port
            redirected.unredirected_hdrs.update(request.unredirected_hdrs)
        return redirected


def _fetch(url, target, find_mismatch, headers):
    partial = target.with_name(f".{target.name}.part")
    is_old = partial.exists()  # left by an earlier run
    failures = 0
    while True:
        size = _size(partial)
        try:
            responses = _receive(url, partial, headers)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                if error.code != 416:  # the range starts after the file's end
                    raise
                partial.unlink()
            if _size(partial) <= size:
                failures += 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(PAUSE)
            continue
        expected = find_mismatch(partial, responses)
        if expected is None:
            partial.rename(target)
            return
        received = _size(partial)
        partial.unlink()
        if not is_old:
            raise InputError(
                f"{url}: the {received} bytes received do not match the checksum {expected}; try "
                f"again, or download it by hand into {target.parent}"
            )
        is_old = False


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _receive(url, partial, headers):
    """Download the rest of url's file to partial (Path); return the headers of all responses.

    Raises OSError or HTTPException if the connection fails, and InputError if the file is too
    large.
    """
    # Importing Jittor disables the verification of certificates in the default context.
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    redirects = _SafeRedirects()
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    opener = urllib.request.build_opener(secure, redirects)
    with opener.open(request, timeout=TIMEOUT) as response:
        is_rest = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if not (response.status == 206 and is_rest):  # the server sends the whole file
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        name = partial.name.removeprefix(".").removesuffix(".part")
        bar = tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None)
        with bar, open(partial, "ab" if start else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > MAX_BYTES:
                    partial.unlink()
                    raise InputError(f"{url}: larger than {MAX_BYTES} bytes; check the URL")
            file.flush()
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise ConnectionError(f"connection closed after {file.tell()} of {total} bytes")
    return [*redirects.headers, response.headers]
