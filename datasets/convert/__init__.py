"""Convert YOLO and Pascal VOC datasets to COCO annotation files."""
