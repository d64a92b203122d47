"""Weights from where they are: a path, an address with a checksum, a repository of Hugging Face."""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote

from util.download import NoSuchFile, check_url, download, fetch, sha256, user_cache
from util.errors import InputError
from util.files import replacing

from .huggingface import CONFIG, PREPROCESSOR, WEIGHTS, parts_of

HUB = "https://huggingface.co"


def local_path(source):
    """The Path of source, a file or a folder, downloaded into the user's cache if it is an address.

    source: a path; an `https://` address, see `util.download.download`; or
    `hf://OWNER/NAME[@REVISION]`, a repository of Hugging Face, of which its folder is returned.
    Raises InputError.
    """
    if source.startswith("hf://"):
        return download_repository(source, user_cache() / "huggingface")
    return download(source, user_cache()) if "://" in source else Path(source)


def download_repository(source, folder):
    """The Path below folder with the weights of a repository of Hugging Face and their JSON files.

    What is there is not asked for again. HF_ENDPOINT is the address of a mirror, and HF_TOKEN opens
    a private repository, as for the library huggingface_hub. Raises InputError.
    """
    found = re.fullmatch(r"hf://([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", source)
    if found is None:
        raise InputError(f"{source}: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    owner, name, revision = found[1], found[2], found[3] or "main"
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    check_url(endpoint, "HF_ENDPOINT")
    base = f"{endpoint}/{owner}/{name}/resolve/{quote(revision, safe='')}/"
    folder = folder / f"{owner}--{name}@{revision.replace('/', '--')}"
    _fetch(base, folder, CONFIG)
    kept = [weights for weights in WEIGHTS if (folder / weights).is_file()]
    if not kept:  # before the weights, so that it is not missing where a download breaks off
        with contextlib.suppress(NoSuchFile):  # some repositories have none
            _fetch(base, folder, PREPROCESSOR)
    for weights in kept[:1] or WEIGHTS:
        try:
            path = _fetch(base, folder, weights)
            break
        except NoSuchFile:
            continue
    else:
        raise InputError(f"{source}: has no {WEIGHTS[0]} and no {WEIGHTS[2]}; take another one")
    if path.name.endswith(".json"):
        for part in parts_of(path):
            _fetch(base, folder, part)
    return folder


def _fetch(base, folder, name):
    """The Path of a repository's file. Its SHA-256 is kept beside it, as `sha256sum` writes it."""
    target = folder / name
    record = folder / f"{name}.sha256"

    def mismatch(path, headers):
        expected, checksum = _etag(headers, base + name), sha256(path)
        found = checksum if len(expected) == 64 else _git_hash(path.read_bytes())
        if found != expected:
            return expected
        with replacing(record) as file:
            file.write(f"{checksum}  {name}\n".encode())
        return None

    def is_right():
        return record.is_file() and record.read_text().split()[:1] == [sha256(target)]

    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return fetch(base + name, target, mismatch, is_right, headers)


def _etag(headers, url):
    """The checksum that Hugging Face gives of a file: SHA-256, or for a small one Git's SHA-1."""
    for field in ("X-Linked-Etag", "ETag"):
        for reply in headers:
            value = reply.get(field, "").removeprefix("W/").strip('"')
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value):
                return value
    raise InputError(f"{url}: the server gives no checksum of it; download it by hand")


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
