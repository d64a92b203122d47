"""Checkpoints: exact round trips, damaged and hostile files, strict loading, and conversion."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import run_python
from same import assert_same

from models.weights import fetch
from models.weights.checkpoint import load_checkpoint
from models.weights.imagenet import load_backbone
from models.weights.model import load_model_state, model_state
from models.weights.torch_file import read_torch_file, write_torch_file
from models.weights.training import load_optimizer_state, optimizer_state
from util.backend import jt
from util.errors import InputError
from util.jittor_file import write_jittor_file


def tree():
    random = np.random.RandomState(0)
    return {
        "model": {"weight": random.randn(4, 3).astype(np.float32), "bias": np.float32([])},
        "optimizer": {"betas": (0.9, 0.999), "names": ["a", "b"]},
        "epoch": 7,
        "rng": random.get_state(),
        "args": {"lr": 1e-4, "resume": "", "masks": False, "none": None},
        "scalar": np.float64(0.1),
    }


class Net(jt.nn.Module):
    def __init__(self):
        self.first = jt.nn.Linear(3, 4)
        self.second = jt.nn.Linear(4, 2)
        self.first.bias.stop_grad()

    def execute(self, x):
        return self.second(jt.nn.relu(self.first(x)))


def test_round_trip_is_exact_and_jittor_reads_it(tmp_path):
    path = tmp_path / "checkpoint.pkl"
    write_jittor_file(tree(), path)
    assert_same(load_checkpoint(path), tree())
    assert_same(jt.load(str(path)), tree())
    assert os.listdir(tmp_path) == ["checkpoint.pkl"]


def test_files_of_jittor_are_read(tmp_path):
    jt.save(tree(), str(tmp_path / "jittor.pkl"))
    assert_same(load_checkpoint(tmp_path / "jittor.pkl"), tree())


@pytest.mark.parametrize(
    "value", [Path("/"), object(), np.array([{}], object), print, np.ma.zeros(2)]
)
def test_other_objects_are_a_type_error_and_leave_the_old_file(tmp_path, value):
    path = tmp_path / "checkpoint.pkl"
    write_jittor_file(tree(), path)
    with pytest.raises(TypeError, match="a checkpoint cannot hold a"):
        write_jittor_file({"model": {}, "value": value}, path)
    assert_same(load_checkpoint(path), tree())
    assert os.listdir(tmp_path) == ["checkpoint.pkl"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    # A limit on the size of files, in another process, makes writing fail like a full disk.
    path = tmp_path / "checkpoint.pkl"
    write_jittor_file(tree(), path)
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from util.jittor_file import write_jittor_file\n"
        "from util.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_jittor_file({'model': {'a': np.ones(10**6)}}, sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    done = run_python("-c", script, path)
    assert f"{path}: cannot be written (File too large)" in done.stdout, done.stderr
    assert_same(load_checkpoint(path), tree())
    assert os.listdir(tmp_path) == ["checkpoint.pkl"]


@pytest.mark.parametrize("path", ["absent/checkpoint.pkl", "file/checkpoint.pkl", "folder"])
def test_a_path_that_cannot_be_written_is_an_input_error(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"{path}: cannot be written"):
        write_jittor_file(tree(), tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_truncated_or_changed_anywhere_is_an_input_error(tmp_path):
    path = tmp_path / "checkpoint.pkl"
    write_jittor_file({"model": {"a": np.arange(20.0)}}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="checkpoint.pkl: .*copy"):
            load_checkpoint(path)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match="checkpoint.pkl: .*copy"):
            load_checkpoint(path)


class Hostile:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_checkpoint_that_calls_os_system_is_refused_and_not_run(tmp_path):
    path, proof = tmp_path / "evil.pkl", tmp_path / "proof"
    jt.save({"model": Hostile(proof)}, str(path))
    with pytest.raises(InputError, match="evil.pkl: refused, because the file names posix.system"):
        load_checkpoint(path)
    assert not proof.exists()
    jt.load(str(path))
    assert proof.exists(), "the test would have noticed a run"


@pytest.mark.parametrize("content", [None, b"", b"text", pickle.dumps({"model": {}}, 4)])
def test_other_files_are_an_input_error(tmp_path, content):
    path = tmp_path / "other"
    if content is not None:
        path.write_bytes(content)
    message = "cannot be read" if content is None else "neither"
    with pytest.raises(InputError, match=f"other: {message}"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="has no model.safetensors"):
        load_checkpoint(tmp_path)


def test_pytorch_files_are_recognized_with_and_without_a_model_key(tmp_path):
    state = {"a": np.ones((2, 2), np.float32)}
    write_torch_file(state, tmp_path / "bare.pkl")
    write_torch_file({"model": state, "epoch": 3}, tmp_path / "whole.bin")
    assert_same(load_checkpoint(tmp_path / "bare.pkl"), {"model": state})
    assert_same(load_checkpoint(str(tmp_path / "whole.bin")), {"model": state, "epoch": 3})


@pytest.mark.parametrize(
    "content", [[1], {"model": 3}, {"model": {}}, {"epoch": 3}, {"model": {"a": 1.0}}]
)
def test_other_content_than_a_state_dict_is_an_input_error(tmp_path, content):
    write_jittor_file(content, tmp_path / "odd.pkl")
    with pytest.raises(InputError, match="odd.pkl: .*state dict"):
        load_checkpoint(tmp_path / "odd.pkl")


def test_an_address_goes_through_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def download(*arguments):
        calls.append(arguments)
        write_torch_file({"a": np.ones(1)}, tmp_path / "a.pth")
        return tmp_path / "a.pth"

    monkeypatch.setattr(fetch, "download", download)
    assert list(load_checkpoint("https://example.com/a-01234567.pth")["model"]) == ["a"]
    assert calls == [("https://example.com/a-01234567.pth", tmp_path / "detr-jittor")]


def test_a_state_loads_exactly_and_in_place():
    net, other = Net(), Net()
    state = model_state(net)
    assert list(state) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    variables = dict(other.named_parameters())
    load_model_state(other, {**state, "bn.num_batches_tracked": np.array(3)}, "file")
    assert_same(model_state(other), state)
    assert all(var is variables[name] for name, var in other.named_parameters())
    assert [name for name, var in variables.items() if var.is_stop_grad()] == ["first.bias"]
    state["first.weight"][:] = 0
    assert model_state(net)["first.weight"].any(), "a state must be a copy"


def test_half_precision_weights_become_float32():
    net = Net()
    state = {name: value.astype(np.float16) for name, value in model_state(net).items()}
    load_model_state(net, state, "file")
    assert {str(var.dtype) for _, var in net.named_parameters()} == {"float32"}


def test_a_state_that_does_not_fit_is_listed_in_one_line_and_changes_nothing():
    net = Net()
    before = model_state(net)
    state = {name: np.zeros_like(value) for name, value in before.items()}
    del state["second.bias"]
    state["second.weight"] = np.zeros((2, 5), np.float32)
    state["first.bias"] = np.zeros(4, object)
    state.update({f"extra{n}": np.zeros(1, np.float32) for n in range(7)})
    with pytest.raises(InputError) as error:
        load_model_state(net, state, "weights.pth")
    assert str(error.value) == (
        "weights.pth: does not fit the model: 1 missing (second.bias); 7 unexpected (extra0, "
        "extra1, extra2, extra3, extra4, …); 1 of another shape (second.weight [2, 5] instead of "
        "[2, 4]); 1 not floating-point (first.bias)"
    )
    assert_same(model_state(net), before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    net = Net()
    state = model_state(net)
    before = state["second.bias"].copy()
    state["second.bias"] = np.float32([1, value])
    message = (
        r"file.pth: 1 of 4 weights are not finite, such as second.bias; the training .* diverged"
    )
    with pytest.raises(InputError, match=message):
        load_model_state(net, state, "file.pth")
    np.testing.assert_array_equal(model_state(net)["second.bias"], before)


def adamw(net):
    groups = []
    for part, lr in (("first", 0.01), ("second", 0.001)):
        variables = {n: var for n, var in net.named_parameters() if n.startswith(part)}
        groups.append({"params": [*variables.values()], "names": [*variables], "lr": lr})
    return jt.optim.AdamW(groups, lr=0.01, weight_decay=1e-4)


def train(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = jt.array(np.random.RandomState(step).randn(5, 3).astype(np.float32))
        optimizer.step((net(x) ** 2).mean())


def test_an_optimizer_resumes_to_the_last_bit(tmp_path):
    net = Net()
    optimizer = adamw(net)
    train(net, optimizer, 3)
    checkpoint = {"model": model_state(net), "optimizer": optimizer_state(optimizer)}
    write_jittor_file(checkpoint, tmp_path / "half.pkl")
    optimizer.param_groups[0]["lr"] = 0.01
    train(net, optimizer, 3, start=3)

    resumed, checkpoint = Net(), load_checkpoint(tmp_path / "half.pkl")
    again = adamw(resumed)
    again.param_groups[0]["lr"] = 99.0
    load_model_state(resumed, checkpoint["model"], "half.pkl")
    load_optimizer_state(again, checkpoint["optimizer"], "half.pkl")
    assert_same(optimizer_state(again), checkpoint["optimizer"])
    train(resumed, again, 3, start=3)
    assert_same(model_state(resumed), model_state(net))
    assert_same(optimizer_state(again), optimizer_state(optimizer))
    moment = optimizer_state(again)["state"]["second.weight"]
    assert moment["step"] == 6 and moment["exp_avg"].any() and moment["exp_avg_sq"].any()


def test_an_optimizer_state_that_does_not_fit_is_an_input_error():
    state = optimizer_state(adamw(Net()))
    optimizer = adamw(Net())
    renamed = {name.replace("second", "third"): value for name, value in state["state"].items()}
    message = r"file: .*2 missing \(second.weight, second.bias\); 2 unexpected"
    with pytest.raises(InputError, match=message):
        load_optimizer_state(optimizer, {**state, "state": renamed}, "file")
    with pytest.raises(InputError, match="file: .*the parameter groups differ"):
        load_optimizer_state(optimizer, {**state, "groups": state["groups"][::-1]}, "file")
    with pytest.raises(InputError, match="file: its optimizer is not one of this program's"):
        load_optimizer_state(optimizer, {"state": {}, "param_groups": []}, "file")


def test_a_backbone_loads_torchvisions_file_without_its_classifier(tmp_path):
    body, state = Net(), {name: value + 1 for name, value in model_state(Net()).items()}
    path = tmp_path / "backbone.pth"
    ignored = {"fc.weight": np.ones((9, 2), np.float32), "bn.num_batches_tracked": np.array(1)}
    write_torch_file({**state, **ignored}, path)
    load_backbone(body, str(path), "resnet50")
    assert_same(model_state(body), state)
    load_backbone(body, "none", "resnet50")
    assert_same(model_state(body), state)
    write_torch_file({**state, "layer5.weight": np.ones(1, np.float32)}, path)
    with pytest.raises(InputError, match="backbone.pth: .*1 unexpected"):
        load_backbone(body, str(path), "resnet50")


def test_without_a_network_the_imagenet_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError) as error:
        load_backbone(Net(), "imagenet", "resnet50")
    message = str(error.value)
    for part in (
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        str(tmp_path / "detr-jittor"),
        "download it by hand and put it there",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ValueError, match="backbone_name is resnet20"):
        load_backbone(Net(), "imagenet", "resnet20")


def convert(*arguments):
    # The import of Jittor would fail: the conversion must not need it.
    code = (
        "import sys, runpy; sys.modules['jittor'] = None; runpy.run_module('models.weights', "
        "run_name='__main__')"
    )
    return run_python("-c", code, *arguments)


def test_the_command_writes_a_pytorch_file(tmp_path):
    source, target = tmp_path / "checkpoint.pkl", tmp_path / "weights.pth"
    write_jittor_file(tree(), source)
    done = convert(source, target)
    assert done.returncode == 0, done.stderr
    assert_same(read_torch_file(target), {"model": tree()["model"]})


def test_the_command_writes_a_folder(tmp_path):
    state = model_state(tiny.build(tiny.arguments())[0])
    write_jittor_file({"model": state}, tmp_path / "checkpoint.pkl")
    done = convert(tmp_path / "checkpoint.pkl", tmp_path / "folder", "--nheads", "4")
    assert done.returncode == 0, done.stderr
    found = load_checkpoint(tmp_path / "folder")
    assert found["args"]["nheads"] == 4
    assert_same({name: found["model"][name] for name in state}, state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transformer.decoder.norm.bias": None}, "1 missing (transformer.decoder.norm.bias)"),
        ({"dn.weight": np.zeros(3, np.float32)}, "1 unexpected (dn.weight)"),
        (
            {"transformer.decoder.layers.0.ca.weight": np.zeros(3, np.float32)},
            "1 unexpected (transformer.decoder.layers.0.ca.weight)",
        ),
        (
            {"bbox_embed.layers.2.bias": np.zeros(5, np.float32)},
            "1 of another shape (bbox_embed.layers.2.bias [5] instead of [4])",
        ),
        (
            {"query_embed.weight": np.zeros((5, 32), np.int64)},
            "1 not floating-point (query_embed.weight)",
        ),
    ],
)
def test_weights_of_another_model_are_not_converted(tmp_path, change, message):
    source = tmp_path / "checkpoint.pkl"
    state = model_state(tiny.build(tiny.arguments())[0])
    state = {name: value for name, value in {**state, **change}.items() if value is not None}
    write_jittor_file({"model": state}, source)
    for target in ("out", "out.safetensors"):
        done = convert(source, tmp_path / target, "--nheads", "4")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"{source}: not the weights of a DETR: {message}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pkl"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--nheads", "0"], "hidden size 32 is not divisible by 0 heads"),
        (["--nheads", "7"], "hidden size 32 is not divisible by 7 heads"),
        (["--nheads", "4", "--dilation"], "backbone resnet18 cannot be dilated"),
    ],
)
def test_flags_that_do_not_fit_the_weights(tmp_path, flags, message):
    source = tmp_path / "checkpoint.pkl"
    write_jittor_file({"model": model_state(tiny.build(tiny.arguments())[0])}, source)
    done = convert(source, tmp_path / "out", *flags)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_path_that_is_too_long_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\); check the path"):
        load_checkpoint(tmp_path / ("x" * 300))


def test_the_suffix_decides_the_format(tmp_path):
    source = tmp_path / "checkpoint.pkl"
    write_jittor_file(tree(), source)
    done = convert(source, tmp_path / "weights.onnx")
    assert done.returncode == 1
    assert "weights.onnx: unknown suffix; give OUT.pth, OUT.safetensors" in done.stderr
    done = convert(source, tmp_path / "detr-v1.5")
    assert "not the weights of a DETR" in done.stderr, "a folder, for transformers"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pkl"]


def test_the_command_reports_errors_in_one_line(tmp_path):
    source = tmp_path / "checkpoint.pkl"
    done = convert(source, tmp_path / "weights.pth")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {source}: cannot be read")
    assert done.stderr.count("\n") == 1 and os.listdir(tmp_path) == []
    write_jittor_file(tree(), source)
    done = convert(source, tmp_path / "." / "checkpoint.pkl")
    assert done.returncode == 1 and "output is the input file" in done.stderr
    assert_same(load_checkpoint(source), tree())
