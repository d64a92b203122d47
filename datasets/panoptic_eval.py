"""Compute panoptic quality with COCO's panopticapi.

Source: `datasets/panoptic_eval.py` of the original.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from datasets.coco_panoptic import rgb2id
from datasets.images import read_image
from util import dist, launch
from util.files import atomic_write, convert_write_errors, make_folder


class PanopticEvaluator:
    """Compute and print PQ, SQ and RQ; the main process writes the predicted PNGs.

    Args:
        ground_truth: a function that returns a dictionary as in COCO's panoptic JSON, such as
            `CocoPanoptic.get_ground_truth`; the main process calls it in `summarize`.
        ann_folder: folder with the ground-truth PNGs.
        output_dir: folder for the predictions, created if missing; None: a temporary one.

    Raises:
        InputError: if output_dir cannot be created.
    """

    def __init__(self, ground_truth, ann_folder, output_dir):
        self.ground_truth, self.ann_folder = ground_truth, str(ann_folder)
        if output_dir is None:
            self._temporary = tempfile.TemporaryDirectory()
            output_dir = self._temporary.name
        self.output_dir = Path(output_dir)
        make_folder(self.output_dir)
        self.unwritten = []
        self.predictions = []

    def update(self, predictions):
        """Add predictions, and write their PNGs in the main process.

        predictions: dictionaries with image_id, file_name, png_string (bytes), segments_info.
        Raises InputError if a file cannot be written.
        """
        if not launch.is_main_process():
            self.unwritten += predictions
            return
        for prediction in predictions:
            path = self.output_dir / prediction["file_name"]
            with convert_write_errors(path):
                path.write_bytes(prediction["png_string"])
            entry = {key: value for key, value in prediction.items() if key != "png_string"}
            self.predictions.append(entry)

    def synchronize_between_processes(self):
        """Gather and write the predictions of all processes in the main process."""
        for predictions in dist.gather(self.unwritten) or ():
            self.update(predictions)

    def summarize(self):
        """Print and return the metrics of the predicted images.

        Keys: All, Things and Stuff, each with pq, sq, rq in 0..1 and n; per_class.
        """
        from panopticapi.evaluation import pq_compute  # optional dependency

        path = self.output_dir / "predictions.json"
        with atomic_write(path) as file:
            file.write(json.dumps({"annotations": self.predictions}).encode())
        ground_truth = self.ground_truth()
        predicted = {prediction["image_id"] for prediction in self.predictions}
        annotations = [
            self.with_areas(annotation)
            for annotation in ground_truth["annotations"]
            if annotation["image_id"] in predicted
        ]
        with tempfile.TemporaryDirectory() as folder:
            truth = Path(folder) / "ground_truth.json"
            truth.write_text(json.dumps({**ground_truth, "annotations": annotations}))
            return pq_compute(str(truth), str(path), self.ann_folder, str(self.output_dir))

    def with_areas(self, annotation):
        """Return the annotation with missing areas filled in by counting pixels in its PNG."""
        segments = annotation["segments_info"]
        if all("area" in segment for segment in segments):
            return annotation
        pixels = rgb2id(np.asarray(read_image(Path(self.ann_folder) / annotation["file_name"])))
        ids, counts = np.unique(pixels, return_counts=True)
        areas = dict(zip(ids.tolist(), counts.tolist()))
        segments = [{"area": areas[segment["id"]], **segment} for segment in segments]
        return {**annotation, "segments_info": segments}
