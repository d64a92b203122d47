"""Start a training from the weights of a model with other classes or queries."""

from util.backend import jt
from util.errors import InputError

from .mismatches import summarize_names
from .model import model_state


def load_matching_weights(model, state, old_classes, classes, source):
    """Copy the matching weights into the model, and print which were loaded and which were not.

    state: name -> float array; old_classes, classes: category id -> name, of the weights and of the
    data. In the class head, only the rows of "no object" and of classes with equal names are
    loaded; of the queries, as many as both models have. The rest keeps its random initial values.
    Weights of a box model fit a model with masks and vice versa.
    Raises InputError if the backbone differs; the model is then unchanged.
    """
    new_state = model_state(model)
    state = match_prefix(state, new_state)
    head = next(name for name in new_state if is_class_head(name))
    classes = select_classes(classes, new_state[head])
    old_classes = select_classes(old_classes, state.get(head, [0]))
    old_ids = match_classes(classes, old_classes)
    loaded, initialized = [], []
    for name, array in new_state.items():
        fits = copy_if_fits(name, state.get(name), array, old_ids)
        (loaded if fits else initialized).append(name)
    if missing := [name for name in initialized if "backbone.0." in name]:
        raise InputError(
            f"{source}: has another backbone: {summarize_names('missing', missing)[0]}; give the "
            "flags that it was trained with"
        )
    for name, var in model.named_parameters():
        var.update(jt.array(new_state[name]))
    jt.sync_all()

    # ---- summary
    print(
        f"{source}: loaded {len(loaded)} of the model's {len(new_state)} weights; training starts "
        "at epoch 0"
    )
    if head in loaded:
        kept = [classes[class_id] for class_id in old_ids]
        new = [name for class_id, name in classes.items() if class_id not in old_ids]
        unused = [name for name in old_classes.values() if name not in kept]
        print(
            f"  class head: kept {', '.join([*kept, 'no object'])}; newly initialized: "
            f"{', '.join(new) or 'none'}; not used: {', '.join(unused) or 'none'}"
        )
    queries = next(name for name in new_state if name.endswith("query_embed.weight"))
    before, after = len(state.get(queries, ())), len(new_state[queries])
    if queries in loaded and before != after:
        count = min(before, after)
        print(f"  queries: kept {count} of {before}; newly initialized: {after - count}")
    not_used = [name for name in state if name not in new_state]
    lines = summarize_names("newly initialized", initialized)
    for line in lines + summarize_names("not used", not_used):
        print(f"  {line}")


def copy_if_fits(name, old, array, old_ids):
    """Copy what fits of an old array, or None, to a new one, and return whether anything does.

    old_ids: category id -> old id, the rows of the class head.
    """
    if old is None or old.dtype.kind != "f":
        return False
    if old.ndim != array.ndim or old.shape[1:] != array.shape[1:]:
        return False
    if is_class_head(name):
        for class_id, old_id in old_ids.items():
            array[class_id] = old[old_id]
        array[-1] = old[-1]  # "no object"
    elif name.endswith("query_embed.weight"):
        count = min(len(old), len(array))
        array[:count] = old[:count]
    elif old.shape == array.shape:
        array[...] = old
    else:
        return False
    return True


def match_prefix(state, new_state):
    """Add or remove the prefix `detr.`, so that the names match those of new_state."""
    if any(name.startswith("detr.") for name in new_state):
        prefix = "" if any(name.startswith("detr.") for name in state) else "detr."
        return {prefix + name: array for name, array in state.items()}
    return {name.removeprefix("detr."): array for name, array in state.items()}


def is_class_head(name):
    return name.endswith(("class_embed.weight", "class_embed.bias"))


def select_classes(classes, head):
    """Return the classes (id -> name) with a row in the class head; its last is "no object"."""
    return {class_id: name for class_id, name in classes.items() if 0 <= class_id < len(head) - 1}


def match_classes(classes, old_classes):
    """Return category id -> old id of the class with the same name, the same id if possible."""
    matched = {}
    for class_id, name in classes.items():
        candidates = [old_id for old_id, old_name in old_classes.items() if old_name == name]
        if candidates:
            matched[class_id] = class_id if class_id in candidates else candidates[0]
    return matched
