"""Beginning a training from the weights of a model with other classes or queries."""
from util.backend import jt
from util.errors import InputError

from .model import model_state, summarize_names


def load_what_fits(model, state, old_classes, classes, source):
    """Copies into the model what fits of another one's weights, and prints what was taken, made anew and left out.

    state: name -> float array; old_classes and classes: dictionaries category id -> name, of the weights and of the data. Of the
    class head the rows of "no object" and of classes with the same name are taken, of the queries as many as there are;
    the rest keeps its initial, random values. Weights of boxes fit a model with masks, and the other way round.
    Raises InputError where the backbone is another one; the model is unchanged then.
    """
    new = model_state(model)
    state = rename(state, new)
    head = next(name for name in new if is_head(name))
    # Classes that are listed but beyond the head, whose last row is "no object", have no row.
    classes, old_classes = ({number: name for number, name in names.items() if 0 <= number < len(rows.get(head, [0])) - 1}
                            for names, rows in ((classes, new), (old_classes, state)))
    kept = list(match_classes(classes, old_classes).items())
    taken, made = [], []
    for name, array in new.items():
        old = state.get(name)
        if old is None or old.dtype.kind != "f" or old.ndim != array.ndim or old.shape[1:] != array.shape[1:]:
            made.append(name)
            continue
        if is_head(name):
            for row, old_row in [*kept, (-1, -1)]:
                array[row] = old[old_row]
        elif name.endswith("query_embed.weight"):
            count = min(len(old), len(array))
            array[:count] = old[:count]
        elif old.shape == array.shape:
            array[...] = old
        else:
            made.append(name)
            continue
        taken.append(name)
    if missing := [name for name in made if "backbone.0." in name]:
        raise InputError(f"{source}: its backbone is another one: {'; '.join(summarize_names('not there', missing))}; give the flags "
                         "that it was trained with")
    for name, var in model.named_parameters():
        var.update(jt.array(new[name]))
    jt.sync_all()
    print_report(source, state, new, taken, made, kept, classes, old_classes)


def rename(state, new):
    """The state with the names of a DETR with masks, `detr.…`, or of one without, as the model has them."""
    if any(name.startswith("detr.") for name in new):
        prefix = "" if any(name.startswith("detr.") for name in state) else "detr."
        return {prefix + name: array for name, array in state.items()}
    return {name.removeprefix("detr."): array for name, array in state.items()}


def is_head(name):
    return name.endswith(("class_embed.weight", "class_embed.bias"))


def match_classes(classes, old_classes):
    """A dictionary id -> id of the class of the same name before, where there is one; of several the one with the same id."""
    matched = {}
    for number, name in classes.items():
        same = [old for old, old_name in old_classes.items() if old_name == name]
        if same:
            matched[number] = number if number in same else same[0]
    return matched


def print_report(source, state, new, taken, made, kept, classes, old_classes):
    print(f"{source}: {len(taken)} of the model's {len(new)} weights are taken from there; training starts at epoch 0")
    names = [classes[number] for number, _ in kept]
    others = [name for number, name in classes.items() if number not in dict(kept)]
    if any(is_head(name) for name in taken):
        print(f"  class head: kept {', '.join([*names, 'no object'])}; made anew: {', '.join(others) or 'none'}; "
              f"left out: {', '.join(name for name in old_classes.values() if name not in names) or 'none'}")
    queries = next(name for name in new if name.endswith("query_embed.weight"))
    if queries in taken and len(state[queries]) != len(new[queries]):
        count = min(len(state[queries]), len(new[queries]))
        print(f"  queries: kept {count} of {len(state[queries])}; made anew: {len(new[queries]) - count}")
    for phrase, listed in (("made anew", made), ("left out", [name for name in state if name not in new])):
        for text in summarize_names(phrase, listed):
            print(f"  {text}")
