"""Resolve weights given as a path, URL or Hugging Face repository."""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote

from util.download import NoSuchFile, check_url, download, fetch, get_user_cache, sha256
from util.errors import InputError
from util.files import atomic_write

from .huggingface import CONFIG, PREPROCESSOR, WEIGHTS, read_index

HF_URL = "https://huggingface.co"


def resolve_source(source):
    """Resolve source to a local file or folder (Path). URLs are downloaded to the user's cache.

    source: a path; an `https://` address, see `util.download.download`; or
    `hf://OWNER/NAME[@REVISION]`, a Hugging Face repository, downloaded into a folder.
    Raises InputError.
    """
    if source.startswith("hf://"):
        return download_repository(source, get_user_cache() / "huggingface")
    return download(source, get_user_cache()) if "://" in source else Path(source)


def download_repository(source, folder):
    """Download weights and JSON files of a repository of Hugging Face; return their folder (Path).

    Intact files in folder are kept. As in huggingface_hub, HF_ENDPOINT selects a mirror and
    HF_TOKEN grants access to private repositories. Raises InputError.
    """
    match = re.fullmatch(r"hf://([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise InputError(f"{source}: not a repository; give hf://OWNER/NAME[@REVISION]")
    owner, name, revision = match[1], match[2], match[3] or "main"
    endpoint = (os.environ.get("HF_ENDPOINT") or HF_URL).rstrip("/")
    check_url(endpoint, "HF_ENDPOINT")
    base = f"{endpoint}/{owner}/{name}/resolve/{quote(revision, safe='')}/"
    folder = folder / f"{owner}--{name}@{revision.replace('/', '--')}"
    _fetch(base, folder, CONFIG)
    cached = [weights for weights in WEIGHTS if (folder / weights).is_file()]
    if not cached:  # before the weights, so that it is not missing if their download fails
        with contextlib.suppress(NoSuchFile):  # some repositories have none
            _fetch(base, folder, PREPROCESSOR)
    for weights in cached[:1] or WEIGHTS:
        try:
            path = _fetch(base, folder, weights)
            break
        except NoSuchFile:
            continue
    else:
        raise InputError(
            f"{source}: has no {WEIGHTS[0]} and no {WEIGHTS[2]}; use another repository"
        )
    if path.name.endswith(".json"):
        for part in read_index(path):
            _fetch(base, folder, part)
    return folder


def _fetch(base, folder, name):
    """Download a file of a repository and store its SHA-256 beside it, like `sha256sum`."""
    target = folder / name
    record = folder / f"{name}.sha256"

    def find_mismatch(path, headers):
        expected, checksum = _get_checksum(headers, base + name), sha256(path)
        actual = checksum if len(expected) == 64 else _git_hash(path.read_bytes())
        if actual != expected:
            return expected
        with atomic_write(record) as file:
            file.write(f"{checksum}  {name}\n".encode())
        return None

    def is_valid():
        return record.is_file() and record.read_text().split()[:1] == [sha256(target)]

    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return fetch(base + name, target, find_mismatch, is_valid, headers)


def _get_checksum(headers, url):
    """Return the checksum in the headers: SHA-256, or for a small file Git's SHA-1."""
    for field in ("X-Linked-Etag", "ETag"):
        for response in headers:
            value = response.get(field, "").removeprefix("W/").strip('"')
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value):
                return value
    raise InputError(f"{url}: the server sends no checksum; download the file by hand")


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
