"""The state of a training beside the model's weights: the optimizer's, and the schedule's."""

import math

import numpy as np

from util import launch
from util.backend import jt
from util.errors import InputError

from .mismatches import compare_shapes


def optimizer_state(optimizer):
    """The state of a `jittor.optim.AdamW` as plain containers and arrays (copies).

    Every group of the optimizer has, beside "params", their "names". Returns {"state": {name:
    {"step": int, "exp_avg", "exp_avg_sq": float32 array}}, "groups": [{"names", "lr",
    "weight_decay", "betas", "eps", …}]}.
    """
    state, groups = {}, []
    for group in optimizer.param_groups:
        for name, average, square in zip(group["names"], group["m"], group["values"]):
            state[name] = {
                "step": optimizer.n_step,
                "exp_avg": average.numpy(),
                "exp_avg_sq": square.numpy(),
            }
        settings = {
            key: group.get(key, getattr(optimizer, key))
            for key in ("lr", "weight_decay", "betas", "eps")
        }
        groups.append({"names": list(group["names"]), **settings})
    return {"state": state, "groups": groups}


def load_optimizer_state(optimizer, state, source):
    """Put back what `optimizer_state` returned, to the last bit.

    Raises InputError, which names source, where the groups hold other parameters or shapes; the
    optimizer is then unchanged.
    """
    if state.keys() != {"state", "groups"}:
        raise InputError(
            f"{source}: its optimizer is not one of this program's; only its weights can be loaded"
        )
    groups, moments = optimizer.param_groups, state["state"]
    problems = compare_shapes(
        {name: var.shape for group in groups for name, var in zip(group["names"], group["params"])},
        {name: moment["exp_avg"].shape for name, moment in moments.items()},
    )
    if not problems and [group["names"] for group in groups] != [
        group["names"] for group in state["groups"]
    ]:
        problems = ["the parameters are grouped in another way"]
    if problems:
        raise InputError(
            f"{source}: its optimizer does not fit: {'; '.join(problems)}; resume with the same "
            "flags"
        )
    for group, saved in zip(groups, state["groups"]):
        group.update({key: value for key, value in saved.items() if key != "names"})
        for name, average, square in zip(group["names"], group["m"], group["values"]):
            average.update(jt.array(moments[name]["exp_avg"]))
            square.update(jt.array(moments[name]["exp_avg_sq"]))
            optimizer.n_step = moments[name]["step"]


def check_training_state(checkpoint, source):
    """Checks that a checkpoint has the state that a resumed training needs.

    Raises InputError, which names source, where something is missing or of another type.
    """
    number = (int, float)
    moments = {"step": int, "exp_avg": np.ndarray, "exp_avg_sq": np.ndarray}
    group = {
        "names": [str],
        "lr": number,
        "weight_decay": number,
        "betas": (tuple, list),
        "eps": number,
    }
    form = {
        "epoch": int,
        "step": int,
        "processes": int,
        "lr_scheduler": {"step_size": int, "gamma": number, "last_epoch": int},
        "optimizer": {"state": {str: moments}, "groups": [group]},
    }
    if checkpoint.get("step"):
        form.update(
            images=int,
            args={"batch_size": int, "accum_steps": int, "seed": int},
            meters={str: {"deque": [number], "total": number, "count": int}},
        )
    elif "train_stats" in checkpoint:
        form["train_stats"] = {str: number}
    if "best" in checkpoint:
        form["best"] = {"figure": str, "waited": int}
    if fault := _misform(checkpoint, form):
        raise InputError(
            f"{source}: its state of the training is damaged or of another version of the program "
            f"({fault}); take another checkpoint, or only its weights, with models.weights"
        )


def steps_done(checkpoint, source, *, images, batch_size, accum_steps, seed):
    """The steps of the epoch that a checkpoint was saved in, counted in steps of this run.

    images, batch_size, accum_steps, seed: this run's; images: how many to train on.
    Raises InputError, which names source, where the epoch would be another one.
    """
    saved_by, processes = checkpoint["processes"], launch.get_world_size()
    if saved_by != processes:
        print(
            f"{source}: was saved by a training of {saved_by} processes and goes on with "
            f"{processes}: a step now takes {processes * accum_steps * batch_size} images"
        )
    if checkpoint["step"] == 0:
        return 0
    saved = checkpoint["args"]
    different = []
    for name, then, now in (
        ("training images", checkpoint["images"], images),
        ("--batch_size", saved["batch_size"], batch_size),
        ("--seed", saved["seed"], seed),
    ):
        if then != now:
            different.append(f"{name} {then} (now {now})")
    if different:
        raise InputError(
            f"{source}: was saved in the middle of an epoch, with {', '.join(different)}: resume "
            "with the same data and flags"
        )
    batches = checkpoint["step"] * saved_by * saved["accum_steps"]
    return math.ceil(batches / (processes * accum_steps))  # nothing is trained twice


def _misform(value, form, place="checkpoint"):
    """Where value differs from form, or None.

    form: a type or types; [form of each item]; {key: form}; {str: form of each value}.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        parts = [(item, form[0], f"{place}[{i}]") for i, item in enumerate(value)]
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{place} is no dictionary"
        forms = {key: form[str] for key in value} if str in form else form
        parts = [(value.get(key), forms[key], f"{place}[{key!r:.80}]") for key in forms]
    elif isinstance(value, form):
        return None
    else:
        return f"{place} is no {form.__name__ if isinstance(form, type) else 'number'}"
    return next(filter(None, (_misform(*part) for part in parts)), None)
