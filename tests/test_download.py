"""Downloads from a server on this machine: reuse, checksums, failures, several processes,
certificates.
"""

import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from util import download as module
from util.download import download, user_cache
from util.errors import InputError

CONTENT = bytes(range(256)) * 5000
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
ROOT = Path(__file__).parent.parent


class Server(http.server.ThreadingHTTPServer):
    """Serves {path: content} and keeps a list of the paths asked for; a str as content redirects
    there.
    """

    def __init__(self):
        self.files, self.asked = {"/" + NAME: CONTENT}, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name=NAME, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if isinstance(content, str):
            self.send_response(302)
            self.send_header("Location", content)
            self.end_headers()
        elif content is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        yield server
        server.shutdown()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert download(server.url(), folder) == folder / NAME
    assert (folder / NAME).read_bytes() == CONTENT
    download(server.url(), folder)
    assert server.asked == ["/" + NAME] and files(folder) == [NAME]


def test_a_wrong_file_is_replaced(server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert download(server.url(), tmp_path).read_bytes() == CONTENT


def test_what_does_not_match_its_checksum_is_not_kept(server, tmp_path):
    server.files["/" + NAME] = CONTENT[:-1]
    with pytest.raises(InputError, match="do not match the checksum"):
        download(server.url(), tmp_path)
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
        download(server.url(), tmp_path)


def test_failures_name_the_address_and_the_folder(server, tmp_path):
    server.files.clear()
    with pytest.raises(InputError) as error:
        download(server.url(), tmp_path)
    message = str(error.value)
    assert (
        server.url() in message
        and str(tmp_path) in message
        and "404" in message
        and "\n" not in message
    )
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be downloaded"):
        download(server.url(), tmp_path)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_input_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be downloaded to .*file"):
        download(server.url(), tmp_path / "file")


def test_what_is_too_large_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", len(CONTENT) - 1)
    with pytest.raises(InputError, match="larger than"):
        download(server.url(), tmp_path)
    assert files(tmp_path) == []


def test_of_several_processes_one_downloads(server, tmp_path):
    script = "import sys; from util.download import download; print(download(*sys.argv[1:]))"
    command = [sys.executable, "-c", script, server.url(), str(tmp_path)]
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
        download(server.url(scheme="https"), tmp_path / "unknown")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert download(server.url(scheme="https"), tmp_path / "trusted").read_bytes() == CONTENT


def test_the_user_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/detr-jittor")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path(os.path.expanduser("~/.cache/detr-jittor"))
