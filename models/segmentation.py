"""Mask head, mask losses, and postprocessing to instance and panoptic masks (paper, section 4.4).

Source: `models/segmentation.py` of the original.
"""

import io
from collections import defaultdict

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from util import ops
from util.backend import jt, nn
from util.misc import resize_nearest
from util.nearest import nearest_index

QUERY_BLOCK = 10  # queries whose masks are computed at once; bounds the peak memory
MIN_SEGMENT_AREA = 4  # pixels; smaller or equal panoptic segments are dropped, as in the original


class DETRsegm(nn.Module):
    """DETR with a mask head.

    detr: DETR whose backbone returns the feature maps of all stages.
    """

    def __init__(self, detr):
        super().__init__()
        self.detr = detr
        hidden_dim, nheads = detr.transformer.d_model, detr.transformer.nhead
        self.bbox_attention = MHAttentionMap(hidden_dim, hidden_dim, nheads)
        fpn_dims = detr.backbone.stage_channels[2::-1]
        self.mask_head = MaskHeadSmallConv(hidden_dim + nheads, fpn_dims, hidden_dim)

    def train(self):
        """Set training mode. A frozen backbone stays in eval mode and keeps its statistics."""
        super().train()
        self.detr.keep_frozen_backbone_in_eval()

    def execute(self, samples):
        """Return DETR's outputs and pred_masks: mask logits float32 [B, Q, H/4, W/4]."""
        out, features, (src, mask, hs, memory) = self.detr.forward_features(samples)
        attention = self.bbox_attention(hs, memory, mask)
        fpns = [feature.tensors for feature in features[2::-1]]
        out["pred_masks"] = self.mask_head(src, attention, fpns)
        return out


class MHAttentionMap(nn.Module):
    """Multi-head attention weights of each query over the image, without values."""

    def __init__(self, query_dim, hidden_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.q_linear = ops.Linear(query_dim, hidden_dim)
        self.k_linear = ops.Linear(query_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.constant_(linear.bias, 0.0)

    def execute(self, q, k, mask):
        """q [B, Q, C], k [B, C, h, w], mask bool [B, h, w], True on padding -> [B, Q, heads, h, w].

        As in the original, the softmax is taken over all heads of a query jointly.
        """
        batch, queries, _ = q.shape
        h, w = k.shape[-2:]
        head_dim = self.hidden_dim // self.num_heads
        q = self.q_linear(q) * head_dim**-0.5
        q = q.reshape(batch, queries, self.num_heads, head_dim).transpose(0, 2, 1, 3)
        k = ops.transpose(self.k_linear(ops.transpose(k.reshape(batch, -1, h * w))))
        scores = ops.bmm(q.reshape(-1, queries, head_dim), k.reshape(-1, head_dim, h * w))
        scores = scores.reshape(batch, self.num_heads, queries, h * w).transpose(0, 2, 1, 3)
        mask = mask.reshape(batch, 1, h * w).broadcast([batch, self.num_heads, h * w])
        weights = ops.softmax(scores.reshape(batch, queries, -1), mask.reshape(batch, -1))
        return weights.reshape(batch, queries, self.num_heads, h, w)


class MaskHeadSmallConv(nn.Module):
    """FPN-like head: upsample each query's attention maps, adding the backbone's features.

    dim: channels of the input, image features and attention heads together; fpn_dims: channels of
    the backbone's stages, smallest map first.
    """

    def __init__(self, dim, fpn_dims, context_dim):
        super().__init__()
        inter_dims = [dim, context_dim // 2, context_dim // 4, context_dim // 8, context_dim // 16]
        self.lay1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.gn1 = nn.GroupNorm(8, dim)
        self.lay2 = nn.Conv2d(dim, inter_dims[1], 3, padding=1)
        self.gn2 = nn.GroupNorm(8, inter_dims[1])
        self.lay3 = nn.Conv2d(inter_dims[1], inter_dims[2], 3, padding=1)
        self.gn3 = nn.GroupNorm(8, inter_dims[2])
        self.lay4 = nn.Conv2d(inter_dims[2], inter_dims[3], 3, padding=1)
        self.gn4 = nn.GroupNorm(8, inter_dims[3])
        self.lay5 = nn.Conv2d(inter_dims[3], inter_dims[4], 3, padding=1)
        self.gn5 = nn.GroupNorm(8, inter_dims[4])
        self.out_lay = nn.Conv2d(inter_dims[4], 1, 3, padding=1)
        self.adapter1 = nn.Conv2d(fpn_dims[0], inter_dims[1], 1)
        self.adapter2 = nn.Conv2d(fpn_dims[1], inter_dims[2], 1)
        self.adapter3 = nn.Conv2d(fpn_dims[2], inter_dims[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.constant_(module.bias, 0.0)

    def execute(self, src, attention, fpns):
        """Return the mask logits of each query.

        src [B, C, h, w], attention [B, Q, heads, h, w], fpns: list of [B, c_i, h_i, w_i]
        -> [B, Q, H/4, W/4]

        Compute the terms that depend only on the image once, not per query. In evaluation on the
        CPU queries are processed in chunks to bound memory; with CUDA, slicing would make Jittor
        recompile for some image sizes.
        """
        # lay1 of the concatenated input is a sum of two convolutions. The image's, with 32 times
        # the channels, is computed once.
        channels = src.shape[1]
        image = ops.conv2d(src, self.lay1.weight[:, :channels], self.lay1.bias, padding=(1, 1))
        stages = [
            ops.conv(fpn, adapter)
            for fpn, adapter in zip(fpns, (self.adapter1, self.adapter2, self.adapter3))
        ]
        if self.is_training() or jt.flags.use_cuda:
            return self._predict_masks(attention, image, stages)
        blocks = []
        for start in range(0, attention.shape[1], QUERY_BLOCK):
            block = attention[:, start : start + QUERY_BLOCK]
            blocks.append(self._predict_masks(block, image, stages))
            blocks[-1].sync()
        return jt.concat(blocks, dim=1)

    def _predict_masks(self, attention, image, stages):
        batch, queries = attention.shape[:2]

        def resize_and_add(x, features):
            """Resize x [B * Q, C, h, w] to features [B, C, H, W] and add those of its image."""
            x = resize_nearest(x, features.shape[-2:])
            total = x.reshape(batch, queries, *x.shape[1:]) + features.unsqueeze(1)
            return total.reshape(x.shape)

        maps = attention.reshape(-1, *attention.shape[2:])
        x = ops.conv2d(maps, self.lay1.weight[:, -maps.shape[1] :], padding=(1, 1))
        x = resize_and_add(x, image)
        x = ops.relu(self.gn1(x))
        x = ops.relu(self.gn2(ops.conv(x, self.lay2)))
        x = ops.relu(self.gn3(ops.conv(resize_and_add(x, stages[0]), self.lay3)))
        x = ops.relu(self.gn4(ops.conv(resize_and_add(x, stages[1]), self.lay4)))
        x = ops.relu(self.gn5(ops.conv(resize_and_add(x, stages[2]), self.lay5)))
        return ops.conv(x, self.out_lay).reshape(batch, queries, *x.shape[-2:])


def dice_loss(inputs, targets):
    """Return the Dice loss of each mask. inputs: logits, targets: 0 or 1 [M, H, W] -> [M]"""
    inputs = inputs.sigmoid()
    return 1 - (2 * _sum_pixels(inputs * targets) + 1) / (
        _sum_pixels(inputs) + _sum_pixels(targets) + 1
    )


def sigmoid_focal_loss(inputs, targets, alpha=0.25, gamma=2):
    """Return the focal loss (arXiv 1708.02002) of each mask, averaged over its pixels.

    inputs: logits [M, H, W], targets: 0 or 1 [M, H, W] -> [M]
    """
    prob = inputs.sigmoid()
    cross_entropy = jt.maximum(inputs, 0) - inputs * targets + jt.log(1 + jt.exp(-inputs.abs()))
    error = prob * (1 - targets) + (1 - prob) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return _sum_pixels(weight * cross_entropy * error**gamma) / (inputs.shape[1] * inputs.shape[2])


def _sum_pixels(x):
    """[M, H, W] -> [M]. By rows: Jittor's float32 sum over a whole mask loses precision."""
    return x.sum(2).sum(1)


class PostProcessSegm:
    """Add masks to the detections, at the original image size."""

    def __init__(self, threshold=0.5):
        self.threshold = threshold

    def __call__(self, results, outputs, orig_target_sizes, max_target_sizes):
        """Add `masks` to each result, a list of Q compressed RLE dicts of pycocotools.

        results: list of B dicts; outputs: output dict of DETRsegm; orig_target_sizes,
        max_target_sizes: int [B, 2], height and width of the original and of the resized images.
        """
        logits = outputs["pred_masks"].numpy()
        padded_size = np.max(max_target_sizes, axis=0)
        for result, masks, orig_size, size in zip(
            results, logits, orig_target_sizes, max_target_sizes
        ):
            result["masks"] = self.encode_masks(masks, padded_size, size, orig_size)
        return results

    def encode_masks(self, masks, padded_size, size, orig_size):
        """Encode the mask logits float32 [n, h, w] of one image as a list of n RLE dicts.

        padded_size, size, orig_size: height and width of the batch, of the resized and of the
        original image.
        """
        masks = self.compute_masks(masks, padded_size, size, orig_size)
        return [encode_mask(mask) for mask in masks]

    def compute_masks(self, masks, padded_size, size, orig_size):
        """Yield each mask, bool [H, W] in Fortran order. Arguments are those of `encode_masks`."""
        # The original upsamples to the padded size, crops, then resizes with nearest-neighbour
        # interpolation. Only the rows and columns that remain are computed, once each: a photo
        # repeats them.
        (rows, row_order), (columns, column_order) = (
            np.unique(nearest_index(int(old), int(new)), return_inverse=True)
            for old, new in zip(size, orig_size)
        )
        for mask in masks:
            [mask] = resize_bilinear(mask[None], padded_size, rows, columns)
            mask = 1 / (1 + np.exp(-mask)) > self.threshold
            yield mask.T.take(row_order, axis=1).take(column_order, axis=0).T


def encode_mask(mask):
    """Encode a mask bool [H, W] as a compressed RLE dict of pycocotools."""
    return coco_mask.encode(np.asfortranarray(mask).view(np.uint8))


def resize_bilinear(masks, size, rows=None, columns=None):
    """Resize masks float32 [n, h, w] bilinearly, as PyTorch does with align_corners=False.

    rows, columns: indices of the output rows and columns to compute; default all.
    """
    rows = np.arange(size[0]) if rows is None else rows
    columns = np.arange(size[1]) if columns is None else columns
    low, high, weight = _source_pixels(masks.shape[1], size[0], rows)
    masks = masks[:, low] * (1 - weight[:, None]) + masks[:, high] * weight[:, None]
    low, high, weight = _source_pixels(masks.shape[2], size[1], columns)
    return masks[:, :, low] * (1 - weight) + masks[:, :, high] * weight


def _source_pixels(old, new, index):
    """Return the two source indices of each output index and the weight of the second."""
    half = np.float32(0.5)
    position = np.maximum((index.astype(np.float32) + half) * np.float32(old / new) - half, 0)
    low = np.minimum(position.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), position - low.astype(np.float32)


def get_coco_things(num_classes):
    """Return a dict class id -> is_thing; COCO's things have ids up to 90."""
    return {class_id: class_id <= 90 for class_id in range(num_classes)}


class PostProcessPanoptic:
    """Convert mask predictions to COCO's panoptic format.

    is_thing_map: class id -> True for a thing, False for stuff; other classes are ignored.
    threshold: minimum score of a segment.
    """

    def __init__(self, is_thing_map, threshold=0.85):
        self.is_thing_map = is_thing_map
        self.threshold = threshold

    def __call__(self, outputs, processed_sizes, target_sizes=None):
        """Return the panoptic prediction of each image.

        outputs: output dict of DETRsegm; processed_sizes, target_sizes: int [B, 2], height and
        width of the images in the batch and of the results (default: the same).

        Returns a list of B dicts: png_string, the bytes of a PNG whose colours are segment ids;
        segments_info, a list of dicts with id, isthing, category_id and area in pixels.
        """
        prob = nn.softmax(outputs["pred_logits"], dim=-1)
        labels, scores = prob.argmax(-1)
        labels, scores, masks = jt.fetch_sync([labels, scores, outputs["pred_masks"]])
        is_class = (labels != prob.shape[-1] - 1) & np.isin(labels, list(self.is_thing_map))
        keep = is_class & (scores > self.threshold)
        target_sizes = processed_sizes if target_sizes is None else target_sizes
        images = zip(masks, labels, keep, processed_sizes, target_sizes)
        return [self._segment(m[kept], c[kept].tolist(), *sizes) for m, c, kept, *sizes in images]

    def _segment(self, masks, classes, size, target_size):
        masks = resize_bilinear(masks, size)
        segments = merge_stuff(masks, classes, self.is_thing_map)
        ids, areas = resize_and_measure(segments, target_size, len(classes))
        while any(area <= MIN_SEGMENT_AREA for area in areas):
            kept = [i for i, area in enumerate(areas) if area > MIN_SEGMENT_AREA]
            masks, classes = masks[kept], [classes[i] for i in kept]
            # As in the original, masks of the same stuff are not merged again.
            ids, areas = resize_and_measure(assign_pixels(masks), target_size, len(classes))
        png = io.BytesIO()
        Image.fromarray(id2rgb(ids)).save(png, format="PNG")
        return {
            "png_string": png.getvalue(),
            "segments_info": [
                {"id": i, "isthing": self.is_thing_map[c], "category_id": c, "area": area}
                for i, (c, area) in enumerate(zip(classes, areas))
            ],
        }


def assign_pixels(masks):
    """Return the index of the highest mask [n, h, w] at each pixel, int32 [h, w]; 0 if n = 0."""
    return masks.argmax(0).astype(np.int32) if len(masks) else np.zeros(masks.shape[1:], np.int32)


def merge_stuff(masks, classes, is_thing_map):
    """Assign pixels like `assign_pixels`, but merge all masks of a stuff class into the first."""
    segments = assign_pixels(masks)
    masks_by_class = defaultdict(list)
    for i, c in enumerate(classes):
        if not is_thing_map[c]:
            masks_by_class[c].append(i)
    for indices in masks_by_class.values():
        segments[np.isin(segments, indices)] = indices[0]
    return segments


def resize_and_measure(segments, size, num_segments):
    """Resize a segment map by nearest; return it and the area of each segment in pixels."""
    height, width = (int(side) for side in size)
    image = Image.fromarray(segments).resize((width, height), Image.Resampling.NEAREST)
    segments = np.asarray(image)
    return segments, [int((segments == i).sum()) for i in range(num_segments)]


def id2rgb(ids):
    """Encode segment ids int [h, w] as colours uint8 [h, w, 3], COCO's panoptic format."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
