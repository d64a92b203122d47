"""Write a training run's TensorBoard log. Only this file imports the package tensorboard."""

import time

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from util.best import COCO_METRICS
from util.pictures import encode_jpeg


class TensorBoardLog:
    """Write an event file into a folder (Path).

    first_epoch: TensorBoard discards steps from this epoch on in earlier event files of the folder.
    """

    def __init__(self, folder, first_epoch):
        self.writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self.writer.add_event(Event(wall_time=time.time(), step=first_epoch, session_log=start))

    def add_epoch(self, line, predictions=None):
        """Add an epoch. line: its log.txt entry; predictions: path of predictions.png, or None."""
        scalars = get_scalars(line).items()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        if predictions is not None:
            # JPEG, because a PNG of photos takes megabytes per epoch.
            jpeg = encode_jpeg(Image.open(predictions).convert("RGB"))
            image = Summary.Image(encoded_image_string=jpeg, colorspace=3)
            values.append(Summary.Value(tag="predictions", image=image))
        summary = Summary(value=values)
        self.writer.add_event(Event(wall_time=time.time(), step=line["epoch"], summary=summary))
        self.writer.flush()


def get_scalars(line):
    """Return the scalars of a line of log.txt, tag -> float: train/loss, test/AP, test_masks/AP."""
    scalars = {}
    for name, value in line.items():
        part, _, rest = name.partition("_")
        if part not in ("train", "test"):
            continue
        if rest.startswith("coco_eval_"):
            group = "test_masks" if rest.endswith("masks") else "test"
            scalars.update({f"{group}/{key}": number for key, number in zip(COCO_METRICS, value)})
        elif isinstance(value, dict):  # PQ
            scalars.update({f"{part}/{rest}_{key}": number for key, number in value.items()})
        else:
            scalars[f"{part}/{rest}"] = value
    return scalars
