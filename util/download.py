"""Downloads files whose names carry their checksum, as PyTorch's and DETR's weights do."""

import fcntl
import hashlib
import os
import re
import ssl
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from util.errors import InputError

MAX_BYTES = 4 << 30
TIMEOUT = 30  # seconds without any data
_CHUNK = 1 << 20


def user_cache():
    """The folder (Path) for downloads: `detr-jittor` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr-jittor"


def download(url, folder):
    """The Path of url's file in folder, downloaded unless it is there with the right checksum.

    url: `https://…/name-<8 or more hex digits of the SHA-256>.ext`. `http://` is accepted for this
    very machine (127.0.0.1 or localhost) only. Of several processes one downloads and the others
    wait for it.
    Raises InputError for any other address, without a network, and for a file that does not match
    its checksum.
    """
    _check_address(url)
    name = Path(urlsplit(url).path).name
    checksum = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if checksum is None:
        raise InputError(
            f"{url}: the name carries no checksum (as in name-0123abcd.pth), so the file cannot be "
            "verified; download it by hand and pass its path"
        )
    target = Path(folder) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target.is_file() and _sha256(target).startswith(checksum[1])):
                _fetch(url, target, checksum[1])
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{url}: cannot be downloaded to {target.parent} ({error}); download it by hand and "
            "put it there"
        ) from error
    return target


def _check_address(url):
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if not (local or (parts.scheme == "https" and parts.hostname)):
        raise InputError(f"{url}: only https:// addresses are downloaded")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        _check_address(url)
        return super().redirect_request(request, file, code, message, headers, url)


def _fetch(url, target, checksum):
    # A context of its own, because importing Jittor turns the verification of certificates off for
    # the whole process.
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    opener = urllib.request.build_opener(secure, _SafeRedirects)
    partial = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    try:
        with opener.open(url, timeout=TIMEOUT) as reply, open(partial, "wb") as file:
            total = int(reply.headers.get("Content-Length") or 0)
            with tqdm(
                total=total or None, desc=target.name, unit="B", unit_scale=True, disable=None
            ) as bar:
                while chunk := reply.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                    if file.tell() > MAX_BYTES:
                        raise InputError(
                            f"{url}: larger than {MAX_BYTES} bytes, as no weights are; check the "
                            "address"
                        )
            if not digest.hexdigest().startswith(checksum):
                raise InputError(
                    f"{url}: the {file.tell()} bytes that arrived do not match the checksum "
                    f"{checksum}; try again, or download it by hand into {target.parent}"
                )
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
