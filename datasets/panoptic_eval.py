"""Panoptic quality of a model's predictions, by COCO's panoptic API.

Source: `datasets/panoptic_eval.py` of the original.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from util import dist, launch
from util.errors import InputError
from util.files import make_folder, replacing, writing


class PanopticEvaluator:
    """Computes and prints PQ, SQ and RQ; the main process writes the predicted PNGs.

    Args:
        ground_truth: a function that gives a dictionary as in COCO's panoptic JSON, such as
            `CocoPanoptic.ground_truth`; the main process calls it when all is predicted.
        ann_folder: folder of its PNGs.
        output_dir: folder for the predictions, made if missing; None: a temporary one.

    Raises:
        InputError: the module panopticapi is not installed, or output_dir cannot be made.
    """

    def __init__(self, ground_truth, ann_folder, output_dir):
        require_panopticapi()
        self.ground_truth, self.ann_folder = ground_truth, str(ann_folder)
        if output_dir is None:
            self._temporary = tempfile.TemporaryDirectory()
            output_dir = self._temporary.name
        self.output_dir = Path(output_dir)
        make_folder(self.output_dir)
        self.unwritten = []
        self.predictions = []

    def update(self, predictions):
        """Writes predicted PNGs.

        predictions: dictionaries with image_id, file_name, png_string (bytes), segments_info.
        Raises InputError where a file cannot be written.
        """
        if not launch.is_main_process():
            self.unwritten += predictions
            return
        for prediction in predictions:
            path = self.output_dir / prediction["file_name"]
            with writing(path):
                path.write_bytes(prediction["png_string"])
            self.predictions.append(
                {key: value for key, value in prediction.items() if key != "png_string"}
            )

    def synchronize_between_processes(self):
        """The main process takes and writes the predictions of the others."""
        for predictions in dist.gather(self.unwritten) or ():
            self.update(predictions)

    def summarize(self):
        """Prints the figures of the images predicted, and returns them.

        Keys: All, Things and Stuff, with pq, sq, rq in 0..1 and n; per_class.
        """
        from panopticapi.evaluation import pq_compute

        path = self.output_dir / "predictions.json"
        with replacing(path) as file:
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
            return pq_compute(
                str(truth), str(path), gt_folder=self.ann_folder, pred_folder=str(self.output_dir)
            )

    def with_areas(self, annotation):
        """The annotation, with the areas that it lacks counted in its PNG."""
        # Not above: arguments.py imports this file, before Jittor may be imported.
        from datasets.coco import read_image
        from datasets.coco_panoptic import rgb2id

        segments = annotation["segments_info"]
        if all("area" in segment for segment in segments):
            return annotation
        pixels = rgb2id(np.asarray(read_image(Path(self.ann_folder) / annotation["file_name"])))
        ids, counts = np.unique(pixels, return_counts=True)
        areas = dict(zip(ids.tolist(), counts.tolist()))
        segments = [{"area": areas[segment["id"]], **segment} for segment in segments]
        return {**annotation, "segments_info": segments}


def require_panopticapi():
    """Raises InputError where the optional module is missing."""
    try:
        import panopticapi.evaluation  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--dataset_file coco_panoptic needs the module panopticapi, which is not installed: "
            "pip install panopticapi-lite"
        ) from error
