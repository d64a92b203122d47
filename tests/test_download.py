"""Downloads from a server on this machine: reuse, checksums, failures, several processes,
certificates.
"""

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from file_server import Server

from util import download as module
from util.download import download, user_cache
from util.errors import InputError

CONTENT = bytes(range(256)) * 5000
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with Server({"/" + NAME: CONTENT}) as server:
        yield server
        server.shutdown()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert download(server.url(NAME), folder) == folder / NAME
    assert (folder / NAME).read_bytes() == CONTENT
    download(server.url(NAME), folder)
    assert server.asked == ["/" + NAME] and files(folder) == [NAME]


def test_a_file_that_is_there_needs_no_writing(tmp_path, monkeypatch):
    """The cache may be read-only, and there may be no network."""
    (tmp_path / NAME).write_bytes(CONTENT)
    before = sorted(tmp_path.iterdir())
    assert download(f"https://127.0.0.1:1/{NAME}", tmp_path) == tmp_path / NAME
    assert sorted(tmp_path.iterdir()) == before, "not even a lock"


def test_a_wrong_file_is_replaced(server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT


def test_what_does_not_match_its_checksum_is_not_kept(server, tmp_path):
    server.files["/" + NAME] = CONTENT[:-1]
    with pytest.raises(InputError, match="do not match the checksum"):
        download(server.url(NAME), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["weights.pth", "weights-1234567.pth", "weights-abcdefgh.pth", ""])
def test_a_name_without_a_checksum_is_refused_before_asking(server, tmp_path, name):
    with pytest.raises(InputError, match="download it by hand and pass its path"):
        download(server.url(name), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    "url", [f"http://example.com/{NAME}", f"ftp://127.0.0.1/{NAME}", f"file:///{NAME}"]
)
def test_only_https_is_downloaded(tmp_path, url):
    with pytest.raises(InputError, match="only https"):
        download(url, tmp_path)


def test_a_redirect_may_not_leave_https(server, tmp_path):
    server.files["/" + NAME] = f"http://example.com/{NAME}"
    with pytest.raises(InputError, match="http://example.com.*only https"):
        download(server.url(NAME), tmp_path)


def test_failures_name_the_address_and_the_folder(server, tmp_path):
    server.files.clear()
    with pytest.raises(InputError) as error:
        download(server.url(NAME), tmp_path)
    message = str(error.value)
    assert (
        server.url(NAME) in message
        and str(tmp_path) in message
        and "404" in message
        and "\n" not in message
    )
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be downloaded"):
        download(server.url(NAME), tmp_path)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_input_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be downloaded to .*file"):
        download(server.url(NAME), tmp_path / "file")


def test_a_download_that_breaks_off_goes_on_at_once(server, tmp_path):
    server.cut = len(CONTENT) // 3 + 1
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3
    assert [headers.get("Range") for headers in server.headers] == [
        None,
        f"bytes={server.cut}-",
        f"bytes={2 * server.cut}-",
    ]
    assert files(tmp_path) == [NAME]


def test_and_in_the_next_run(server, tmp_path):
    server.cut = 0
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="broke off after 1000 of .*try again to go on"):
        download(server.url(NAME), tmp_path)
    assert len(server.asked) == module.ATTEMPTS
    server.cut = None
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=1000-"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / f".{NAME}.part").write_bytes(CONTENT[:1000])
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize("part", [b"another file", CONTENT + b"more", CONTENT])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, part):
    (tmp_path / f".{NAME}.part").write_bytes(part)
    assert download(server.url(NAME), tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


def test_a_length_that_is_too_large_ends(server, tmp_path):
    server.length_off = 5
    with pytest.raises(InputError, match="cannot be downloaded"):
        download(server.url(NAME), tmp_path)
    assert len(server.asked) <= 2 * module.ATTEMPTS


def test_a_length_that_is_too_small_does_not_match(server, tmp_path):
    server.length_off = -5
    with pytest.raises(InputError, match="do not match the checksum"):
        download(server.url(NAME), tmp_path)
    assert files(tmp_path) == []


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_checksum_in_capital_letters(server, tmp_path):
    server.files["/weights.pth"] = CONTENT
    checksum = hashlib.sha256(CONTENT).hexdigest().upper()
    assert download(f"{server.url('weights.pth')}#sha256={checksum}", tmp_path).is_file()


def test_the_checksum_can_follow_the_address(server, tmp_path):
    server.files["/model.pth"] = CONTENT
    path = download(server.url("model.pth") + f"#sha256={SHA256}", tmp_path)
    assert path.name == f"model-{SHA256[:8]}.pth" and path.read_bytes() == CONTENT
    download(server.url("model.pth") + f"#sha256={SHA256}", tmp_path)
    assert server.asked == ["/model.pth"]
    wrong = "0" * 64
    with pytest.raises(InputError, match=f"do not match the checksum {wrong}"):
        download(server.url("model.pth") + f"#sha256={wrong}", tmp_path)
    for fragment in ("sha256=", "sha256=12345678", "md5=" + SHA256):
        with pytest.raises(InputError, match="add #sha256= and its 64 hex digits"):
            download(server.url("model.pth") + f"#{fragment}", tmp_path)


def test_a_mirror_has_the_files_of_known_servers_under_the_same_paths(
    server, tmp_path, monkeypatch
):
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
    server.files["/" + NAME] = CONTENT  # another server's stay where they are
    assert download(server.url(NAME), tmp_path / "other").read_bytes() == CONTENT


def test_what_is_too_large_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", len(CONTENT) - 1)
    with pytest.raises(InputError, match="larger than"):
        download(server.url(NAME), tmp_path)
    assert files(tmp_path) == []


def test_of_several_processes_one_downloads(server, tmp_path):
    script = "import sys; from util.download import download; print(download(*sys.argv[1:]))"
    command = [sys.executable, "-c", script, server.url(NAME), str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [
        str(tmp_path / NAME)
    ] * 3
    assert server.asked == ["/" + NAME]


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make a certificate"
)
def test_certificates_are_verified_although_jittor_turns_that_off(server, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
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
    assert user_cache() == Path("/somewhere/detr-jittor")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path(os.path.expanduser("~/.cache/detr-jittor"))
