"""What a detector did wrong in an image, at one threshold."""

from typing import NamedTuple, Optional

import numpy as np

from datasets.matching import IOU

NEAR = 0.1  # least IoU of a box that means an object, but lies in the wrong place
# kind -> what it says about a detection, or about an object
KINDS = {
    "missed": "an object that no detection found or came near",
    "wrong class": f"a detection on an object of another class, IoU {IOU} or more",
    "wrong place": f"a detection near an object of its class, IoU from {NEAR} to {IOU}",
    "twice": f"a detection on an object that another one is counted for, IoU {IOU} or more",
    "nothing there": "any other detection",
}


class Mistake(NamedTuple):
    """kind: one of KINDS. label: category id of the detection, or of the missed object. box: x0,
    y0, x1, y1 in pixels. score: of the detection, None for a missed object. truth: category id of
    the object, for "wrong class".
    """

    kind: str
    label: int
    box: list
    score: Optional[float] = None
    truth: Optional[int] = None


def mistakes_in(pairs):
    """A list of the Mistakes in an image, from its Pairs.

    An object found in the wrong place is one mistake: it does not count as missed, too.
    """
    objects = pairs.objects
    on_objects = np.where(objects.crowds, 0, pairs.overlaps)
    unclaimed = pairs.missed
    mistakes = []
    for index, (label, owner) in enumerate(zip(pairs.labels, pairs.owners)):
        truth = None
        of_class = np.where(objects.labels == label, on_objects[index], 0)
        if owner >= 0 and objects.labels[owner] == label:
            continue
        if owner >= 0:
            kind, truth = "wrong class", int(objects.labels[owner])
        elif (on_objects[index] >= IOU).any():
            kind = "twice"
        elif (of_class >= NEAR).any():
            kind = "wrong place"
            # Each object is in one wrong place; a second box is wrong, and misses nothing.
            best = np.where(unclaimed, of_class, 0).argmax()
            if of_class[best] >= NEAR:
                unclaimed[best] = False
        else:
            kind = "nothing there"
        box, score = pairs.boxes[index].tolist(), float(pairs.scores[index])
        mistakes.append(Mistake(kind, int(label), box, score, truth))
    for index in np.flatnonzero(unclaimed):
        mistakes.append(
            Mistake("missed", int(objects.labels[index]), objects.boxes[index].tolist())
        )
    return mistakes
