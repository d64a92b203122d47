"""Repositories of Hugging Face, served like theirs by a server on this machine."""

import hashlib
import io
import json

import numpy as np
import pytest
from file_server import Server

from models.weights.checkpoint import load_checkpoint
from models.weights.fetch import download_repository
from models.weights.safetensors_file import write_safetensors
from util import download
from util.errors import InputError

CONFIG = json.dumps({"model_type": "detr", "num_queries": 7}).encode()
REPOSITORY = "hf://facebook/detr-resnet-50"
FILES = "/facebook/detr-resnet-50/resolve/main/"


def weights(**arrays):
    file = io.BytesIO()
    write_safetensors({name: np.float32(value) for name, value in arrays.items()}, file)
    return file.getvalue()


WEIGHTS = weights(**{"class_labels_classifier.bias": [1, 2, 3]})


def git_hash(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Hub(Server):
    """small: a file in Git; large: one that redirects, with its SHA-256 in a header."""

    def small(self, name, content, prefix=FILES):
        self.files[prefix + name] = {"ETag": f'"{git_hash(content)}"'}, content

    def large(self, name, content, prefix=FILES, sha256=None):
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        headers = {"X-Linked-Etag": f'"{sha256}"', "ETag": '"of the redirect"'}
        self.files[prefix + name] = headers, self.url(f"cdn/{name}")
        self.files[f"/cdn/{name}"] = {"ETag": '"of the CDN"'}, content


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with Hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url(""))
        hub.small("config.json", CONFIG)
        hub.large("model.safetensors", WEIGHTS)
        yield hub
        hub.shutdown()


def test_a_repository_is_downloaded_once(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = load_checkpoint(REPOSITORY)
    np.testing.assert_array_equal(checkpoint["model"]["class_embed.bias"], [1, 2, 3])
    assert checkpoint["args"]["num_queries"] == 7
    folder = tmp_path / "detr-jittor/huggingface/facebook--detr-resnet-50@main"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.shutdown()
    hub.server_close()
    load_checkpoint(REPOSITORY)


def test_a_damaged_file_is_downloaded_again(hub, tmp_path):
    path = download_repository(REPOSITORY, tmp_path) / "model.safetensors"
    path.write_bytes(WEIGHTS[:-1] + b"x")
    asked = len(hub.asked)
    download_repository(REPOSITORY, tmp_path)
    assert path.read_bytes() == WEIGHTS and len(hub.asked) == asked + 2, "and its redirect"


def test_a_mirror_without_https_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(InputError, match="HF_ENDPOINT is hf-mirror.com: give an https:// URL"):
        download_repository(REPOSITORY, tmp_path)


def test_an_interrupted_download_leaves_no_file_out(hub, tmp_path):
    """Without the preprocessor's file the image sizes would be transformers' defaults."""
    hub.small("preprocessor_config.json", b'{"size": 640, "max_size": 1000}')
    whole = hub.files.pop(f"{FILES}model.safetensors")
    with pytest.raises(InputError, match="has no model.safetensors"):
        download_repository(REPOSITORY, tmp_path)
    hub.files[f"{FILES}model.safetensors"] = whole
    folder = download_repository(REPOSITORY, tmp_path)
    assert (folder / "preprocessor_config.json").exists()


def test_a_revision_has_another_folder(hub, tmp_path):
    prefix = "/facebook/detr-resnet-50/resolve/refs%2Fpr%2F1/"
    hub.small("config.json", CONFIG, prefix)
    hub.large("model.safetensors", WEIGHTS, prefix)
    folder = download_repository(REPOSITORY + "@refs/pr/1", tmp_path)
    assert folder.name == "facebook--detr-resnet-50@refs--pr--1"
    assert all(path.startswith((prefix, "/cdn/")) for path in hub.asked)


def test_a_model_in_parts_and_the_older_format(hub, tmp_path):
    del hub.files[FILES + "model.safetensors"]
    with pytest.raises(InputError, match="has no model.safetensors and no pytorch_model.bin"):
        download_repository(REPOSITORY, tmp_path)
    hub.small("pytorch_model.bin", b"not read here")
    assert (download_repository(REPOSITORY, tmp_path / "bin") / "pytorch_model.bin").exists()
    parts = {"a.safetensors": weights(a=[1]), "b.safetensors": weights(b=[2])}
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})
    hub.small("model.safetensors.index.json", index.encode())
    for name, content in parts.items():
        hub.large(name, content)
    checkpoint = load_checkpoint(download_repository(REPOSITORY, tmp_path))
    assert checkpoint["model"] == {"a": 1, "b": 2}


def test_the_servers_checksum_is_verified(hub, tmp_path):
    hub.large("model.safetensors", WEIGHTS, sha256="0" * 64)
    with pytest.raises(InputError, match=f"do not match the checksum {'0' * 64}"):
        download_repository(REPOSITORY, tmp_path)
    hub.files[FILES + "config.json"] = {"ETag": f'W/"{git_hash(CONFIG)}"'}, CONFIG[1:]
    with pytest.raises(InputError, match="config.json: .* do not match the checksum"):
        download_repository(REPOSITORY, tmp_path / "other")
    hub.files[FILES + "config.json"] = CONFIG
    with pytest.raises(InputError, match="config.json: the server sends no checksum"):
        download_repository(REPOSITORY, tmp_path / "other")


def test_an_interrupted_connection_is_resumed(hub, tmp_path):
    hub.cut = 100
    folder = download_repository(REPOSITORY, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any("Range" in headers for headers in hub.headers)


def test_a_redirect_may_not_leave_https(hub, tmp_path):
    headers, _ = hub.files[FILES + "model.safetensors"]
    hub.files[FILES + "model.safetensors"] = headers, "http://example.com/model.safetensors"
    with pytest.raises(InputError, match="http://example.com.*only https"):
        download_repository(REPOSITORY, tmp_path)


def test_a_token_goes_to_the_hub_alone(hub, tmp_path, monkeypatch):
    """Also to another path of it after a redirect, but not to another server."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Hub({}) as other:
        headers, _ = hub.files[FILES + "model.safetensors"]
        hub.files[FILES + "model.safetensors"] = headers, hub.url("renamed")
        hub.files["/renamed"] = headers, other.url("cdn/model.safetensors")
        other.large("model.safetensors", WEIGHTS)
        download_repository(REPOSITORY, tmp_path)
        assert other.asked == ["/cdn/model.safetensors"]
        assert [headers.get("Authorization") for headers in other.headers] == [None]
        other.shutdown()
    assert "/renamed" in hub.asked
    assert {headers.get("Authorization") for headers in hub.headers} == {"Bearer secret"}


def test_image_sizes_come_from_a_repository_that_has_them(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hub.small("preprocessor_config.json", b'{"size": 640, "max_size": 1000}')
    flags = load_checkpoint(REPOSITORY)["args"]
    assert (flags["eval_size"], flags["max_size"]) == (640, 1000)


@pytest.mark.parametrize("source", ["hf://", "hf://detr", "hf://a/b/c", "hf://a/b@", "hf://a/../b"])
def test_other_addresses_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="give hf://OWNER/NAME"):
        download_repository(source, tmp_path)


def test_a_part_outside_the_folder_is_refused(hub, tmp_path):
    del hub.files[FILES + "model.safetensors"]
    index = json.dumps({"weight_map": {"a": "../../a.safetensors"}}).encode()
    hub.small("model.safetensors.index.json", index)
    with pytest.raises(InputError, match="not in a file beside it"):
        download_repository(REPOSITORY, tmp_path)
