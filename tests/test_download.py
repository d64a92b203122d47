"""Downloads from a local server: caching, checksums, failures, several processes, certificates."""

import hashlib
import os
import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import Server
from processes import run_python

from util import download as module
from util.download import download, get_user_cache
from util.errors import InputError

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"weights-{SHA256[:8]}.pth"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with Server({"/" + NAME: CONTENT}) as server:
        yield server
        server.shutdown()


def list_files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert download(server.url(NAME), folder) == folder / NAME
    assert (folder / NAME).read_bytes() == CONTENT
    download(server.url(NAME), folder)
    assert server.asked == ["/" + NAME] and list_files(folder) == [NAME]


def test_an_existing_file_needs_no_network_and_no_writing(tmp_path):
    """The cache may be read-only."""
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download(f"https://127.0.0.1:1/{NAME}", tmp_path) == tmp_path / NAME
    assert list(tmp_path.iterdir()) == [tmp_path / NAME], "not even a lock"


def test_a_wrong_file_is_replaced(server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT


def test_a_checksum_mismatch_is_an_error_and_leaves_nothing(server, tmp_path):
    server.files["/" + NAME] = CONTENT[:-1]
    with pytest.raises(InputError, match="do not match the checksum"):
        download(server.url(NAME), tmp_path)
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("name", ["weights.pth", "weights-1234567.pth", "weights-abcdefgh.pth", ""])
def test_a_name_without_checksum_is_an_error_before_any_request(server, tmp_path, name):
    with pytest.raises(InputError, match="download it by hand and pass its path"):
        download(server.url(name), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("start", ["http://example.com/", "ftp://127.0.0.1/", "file:///"])
def test_only_https_is_downloaded(tmp_path, start):
    with pytest.raises(InputError, match="only https"):
        download(start + NAME, tmp_path)


def test_a_redirect_must_stay_with_https(server, tmp_path):
    server.files["/" + NAME] = f"http://example.com/{NAME}"
    with pytest.raises(InputError, match="http://example.com.*only https"):
        download(server.url(NAME), tmp_path)


def test_failures_name_url_and_folder(server, tmp_path):
    server.files.clear()
    with pytest.raises(InputError) as error:
        download(server.url(NAME), tmp_path)
    message = str(error.value)
    assert all(part in message for part in (server.url(NAME), str(tmp_path), "404"))
    assert "\n" not in message
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be downloaded"):
        download(server.url(NAME), tmp_path)
    assert list_files(tmp_path) == []


def test_an_unwritable_folder_is_an_input_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be downloaded to .*file"):
        download(server.url(NAME), tmp_path / "file")


def test_an_interrupted_download_continues_at_once(server, tmp_path):
    server.cut = len(CONTENT) // 3 + 1
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    ranges = [headers.get("Range") for headers in server.headers]
    assert ranges == [None, f"bytes={server.cut}-", f"bytes={2 * server.cut}-"]
    assert list_files(tmp_path) == [NAME]


def test_an_interrupted_download_continues_in_the_next_run(server, tmp_path):
    server.cut = 0
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="closed after 1000 of .*try again to continue"):
        download(server.url(NAME), tmp_path)
    assert len(server.asked) == module.ATTEMPTS
    server.cut = None
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=1000-"


def test_without_ranges_the_download_restarts(server, tmp_path):
    server.ranges = False
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT[:1000])
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize("part", [b"another file", CONTENT + b"more", CONTENT])
def test_a_wrong_partial_file_is_discarded(server, tmp_path, part):
    (tmp_path / f".{NAME}.part").write_bytes(part)
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert list_files(tmp_path) == [NAME]


def test_a_content_length_that_is_too_large_is_an_error(server, tmp_path):
    server.length_off = 5
    with pytest.raises(InputError, match="cannot be downloaded"):
        download(server.url(NAME), tmp_path)
    assert len(server.asked) <= 2 * module.ATTEMPTS


def test_a_content_length_that_is_too_small_is_a_checksum_mismatch(server, tmp_path):
    server.length_off = -5
    with pytest.raises(InputError, match="do not match the checksum"):
        download(server.url(NAME), tmp_path)
    assert list_files(tmp_path) == []


def test_the_checksum_may_follow_the_url(server, tmp_path):
    server.files["/model.pth"] = CONTENT
    url = server.url("model.pth")
    for checksum in (SHA256, SHA256.upper()):
        path = download(f"{url}#sha256={checksum}", tmp_path)
        assert path.name == f"model-{SHA256[:8]}.pth" and path.read_bytes() == CONTENT
    assert server.asked == ["/model.pth"]
    wrong = "0" * 64
    with pytest.raises(InputError, match=f"do not match the checksum {wrong}"):
        download(f"{url}#sha256={wrong}", tmp_path)
    for fragment in ("sha256=", "sha256=12345678", "md5=" + SHA256):
        with pytest.raises(InputError, match="add #sha256= and its 64 hex digits"):
            download(f"{url}#{fragment}", tmp_path)


def test_a_mirror_replaces_known_servers(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_MIRROR", server.url("mirror/"))
    server.files[f"/mirror/detr/{NAME}"] = CONTENT
    url = f"https://dl.fbaipublicfiles.com/detr/{NAME}"
    assert download(url, tmp_path).read_bytes() == CONTENT
    server.files[f"/mirror/models/{NAME}"] = CONTENT[1:]
    with pytest.raises(InputError, match="do not match the checksum"):
        download(f"https://download.pytorch.org/models/{NAME}", tmp_path / "other")
    monkeypatch.setenv("DETR_MIRROR", "http://example.com")
    with pytest.raises(InputError, match="DETR_MIRROR is http://example.com: give an https://"):
        download(url, tmp_path / "other")
    server.files["/" + NAME] = CONTENT  # other servers are not replaced
    assert download(server.url(NAME), tmp_path / "other").read_bytes() == CONTENT


def test_a_file_that_is_too_large_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", len(CONTENT) - 1)
    with pytest.raises(InputError, match="larger than"):
        download(server.url(NAME), tmp_path)
    assert list_files(tmp_path) == []


def test_of_several_processes_one_downloads(server, tmp_path):
    code = "import sys; from util.download import download; print(download(*sys.argv[1:]))"
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda _: run_python("-c", code, server.url(NAME), tmp_path), range(3))
        assert [done.stdout for done in runs] == [f"{tmp_path / NAME}\n"] * 3
    assert server.asked == ["/" + NAME]


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make a certificate"
)
def test_certificates_are_verified_although_jittor_disables_that(server, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = """
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2
        -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout
    """.split()
    subprocess.run([*command, key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    # As jittor_utils does.
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with pytest.raises(InputError, match="certificate verify failed"):
        download(server.url(NAME, scheme="https"), tmp_path / "unknown")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert download(server.url(NAME, scheme="https"), tmp_path / "trusted").read_bytes() == CONTENT


def test_the_user_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert get_user_cache() == Path("/somewhere/detr-jittor")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert get_user_cache() == Path(os.path.expanduser("~/.cache/detr-jittor"))
