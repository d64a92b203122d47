"""Training state: save it in checkpoints and resume from it."""

import math

import numpy as np

from util import launch
from util.backend import jt
from util.errors import InputError

from .checkpoint import has_training_state
from .mismatches import compare_shapes
from .model import model_state


class TrainingState:
    """State of a training run: the content of a checkpoint and the current position.

    Args:
        args: the parsed flags. model, optimizer, lr_scheduler, best: objects whose state is saved.
        classes: dictionary category id -> name; num_classes: highest category id + 1.
        num_images: number of training images.

    Attributes:
        epoch: the current epoch.
        step, meters: number of steps taken in this epoch, and the MetricLogger's state.
        train_stats: mean losses of the epoch once it is trained, else None. A checkpoint is saved
            between training and evaluation, so a resumed run may start with the latter.
    """

    def __init__(
        self, args, model, optimizer, lr_scheduler, best, *, classes, num_classes, num_images
    ):
        self.args, self.model, self.optimizer = args, model, optimizer
        self.lr_scheduler, self.best = lr_scheduler, best
        self.classes, self.num_classes, self.num_images = classes, num_classes, num_images
        self.start_epoch(args.start_epoch)

    @property
    def is_trained(self):
        """True if the current epoch is trained but not yet evaluated."""
        return self.train_stats is not None

    def start_epoch(self, epoch):
        self.epoch, self.step, self.meters, self.train_stats = epoch, 0, None, None

    def finish_epoch(self, train_stats):
        """Record that the current epoch is trained."""
        self.step, self.meters, self.train_stats = 0, None, train_stats

    def state_dict(self):
        """Return the content of a checkpoint: plain containers, numbers, strings and arrays.

        `epoch` is the last trained epoch; `step` counts the steps taken in the next one.
        """
        return {
            "model": model_state(self.model),
            "optimizer": optimizer_state(self.optimizer),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "epoch": self.epoch if self.is_trained else self.epoch - 1,
            "step": self.step,
            "processes": launch.get_world_size(),
            "args": {**vars(self.args), "num_classes": self.num_classes},
            "classes": self.classes,
            "best": self.best.state_dict(),
            **(
                {"train_stats": self.train_stats}
                if self.is_trained
                else {"meters": self.meters, "images": self.num_images}
            ),
        }

    def resume(self, checkpoint, changed):
        """Continue where the checkpoint of --resume was saved.

        changed: names of the training flags that are given and differ from the checkpoint's.
        Raises InputError if the checkpoint is damaged or belongs to a different run.
        """
        args, source = self.args, self.args.resume
        if not has_training_state(checkpoint):
            print(f"{source}: only weights; training starts at epoch {args.start_epoch}")
            return
        check_training_state(checkpoint, source)
        if "start_epoch" in args.given:
            print(f"{source} determines where training resumes: --start_epoch has no effect")
        load_optimizer_state(self.optimizer, checkpoint["optimizer"], source)
        self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        if {"lr", "lr_backbone", "lr_drop"} & set(changed):
            self.lr_scheduler.set_rates([args.lr, args.lr_backbone], args.lr_drop)
        if "weight_decay" in changed:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = args.weight_decay
        if "best" in checkpoint:
            self.best.load_state_dict(checkpoint["best"])
        flags = dict(batch_size=args.batch_size, accum_steps=args.accum_steps, seed=args.seed)
        steps = count_steps_done(checkpoint, source, images=self.num_images, **flags)
        if checkpoint.get("train_stats"):
            self.start_epoch(checkpoint["epoch"])
            self.finish_epoch(checkpoint["train_stats"])
        else:
            self.start_epoch(checkpoint["epoch"] + 1)
            self.step, self.meters = steps, checkpoint.get("meters")


def optimizer_state(optimizer):
    """Return the state of AdamW as plain containers and arrays (copies).

    {"state": {name: {"step": int, "exp_avg", "exp_avg_sq": float32 array}}, "groups": [{"names",
    "lr", "weight_decay", "betas", "eps"}]}. Every group of the optimizer has the "names" of its
    "params".
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
    """Restore what `optimizer_state` returned, bit-exactly.

    Raises InputError, which names source, if parameters or shapes differ; the optimizer is
    unchanged then.
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
    names = [[group["names"] for group in each] for each in (groups, state["groups"])]
    if not problems and names[0] != names[1]:
        problems = ["the parameter groups differ"]
    if problems:
        raise InputError(
            f"{source}: its optimizer does not fit: {'; '.join(problems)}; use the same flags"
        )
    for group, saved in zip(groups, state["groups"]):
        group.update({key: value for key, value in saved.items() if key != "names"})
        for name, average, square in zip(group["names"], group["m"], group["values"]):
            average.update(jt.array(moments[name]["exp_avg"]))
            square.update(jt.array(moments[name]["exp_avg_sq"]))
            optimizer.n_step = moments[name]["step"]


def check_training_state(checkpoint, source):
    """Check that a checkpoint has the state that a resumed training needs.

    Raises InputError, which names source, if something is missing or of another type.
    """
    number = (int, float)
    moments = {"step": int, "exp_avg": np.ndarray, "exp_avg_sq": np.ndarray}
    group = dict(names=[str], lr=number, weight_decay=number, betas=(tuple, list), eps=number)
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
    if fault := _find_mismatch(checkpoint, form):
        raise InputError(
            f"{source}: its training state is damaged or of another version of the program "
            f"({fault}); take another checkpoint, or only its weights, with models.weights"
        )


def count_steps_done(checkpoint, source, *, images, batch_size, accum_steps, seed):
    """Convert the number of steps that a checkpoint took in its epoch to steps of this run.

    images (number of training images), batch_size, accum_steps, seed: values of this run.
    Raises InputError, which names source, if this run would iterate over different data.
    """
    saved_by, processes = checkpoint["processes"], launch.get_world_size()
    if saved_by != processes:
        print(
            f"{source}: was saved by a training of {saved_by} processes and continues with "
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
            f"{source}: was saved within an epoch, with {', '.join(different)}: resume "
            "with the same data and flags"
        )
    batches = checkpoint["step"] * saved_by * saved["accum_steps"]
    return math.ceil(batches / (processes * accum_steps))  # nothing is trained twice


def _find_mismatch(value, form, place="checkpoint"):
    """Return a description of the first mismatch between value and form, or None.

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
    return next(filter(None, (_find_mismatch(*part) for part in parts)), None)
