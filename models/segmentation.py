"""The mask head on top of DETR, its losses, and the way to masks and panoptic images.

Paper, section 4.4. Source: `models/segmentation.py` of the original.
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

# masks that are computed or enlarged at a time; all of them at once are what fills the memory
QUERY_BLOCK = 10


class DETRsegm(nn.Module):
    """A DETR with a mask for each query.

    detr: the DETR, whose backbone returns all its stages.
    freeze_detr: only the mask head trains.
    """

    def __init__(self, detr, freeze_detr=False):
        super().__init__()
        self.detr = detr
        if freeze_detr:
            for parameter in detr.parameters():
                parameter.stop_grad()
        hidden_dim, nheads = detr.transformer.d_model, detr.transformer.nhead
        self.bbox_attention = MHAttentionMap(hidden_dim, hidden_dim, nheads)
        self.mask_head = MaskHeadSmallConv(
            hidden_dim + nheads, detr.backbone.stage_channels[2::-1], hidden_dim
        )

    def train(self):
        """Training mode; a frozen backbone keeps its statistics too."""
        super().train()
        self.detr.keep_frozen_backbone_in_eval()

    def execute(self, samples):
        """As DETR, and pred_masks: float32 [B, Q, H/4, W/4], logits."""
        out, features, (src, mask, hs, memory) = self.detr.detect(samples)
        attention = self.bbox_attention(hs, memory, mask)
        out["pred_masks"] = self.mask_head(
            src, attention, [feature.tensors for feature in features[2::-1]]
        )
        return out


class MHAttentionMap(nn.Module):
    """The attention of each query over the image, per head, without values."""

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

        As in the original, the softmax of a query goes over all heads at once.
        """
        batch, queries, _ = q.shape
        h, w = k.shape[-2:]
        width = self.hidden_dim // self.num_heads
        q = self.q_linear(q) * width**-0.5
        q = q.reshape(batch, queries, self.num_heads, width).transpose(0, 2, 1, 3)
        k = ops.transpose(self.k_linear(ops.transpose(k.reshape(batch, -1, h * w))))
        scores = ops.bmm(q.reshape(-1, queries, width), k.reshape(-1, width, h * w))
        scores = scores.reshape(batch, self.num_heads, queries, h * w).transpose(0, 2, 1, 3)
        mask = mask.reshape(batch, 1, h * w).broadcast([batch, self.num_heads, h * w])
        weights = ops.softmax(scores.reshape(batch, queries, -1), mask.reshape(batch, -1))
        return weights.reshape(batch, queries, self.num_heads, h, w)


class MaskHeadSmallConv(nn.Module):
    """Enlarges each query's attention map step by step and adds the backbone's stages.

    dim: channels of the input, image and attention together; fpn_dims: channels of the stages,
    smallest map first.
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
        """The mask of each query, logits.

        src [B, C, h, w], attention [B, Q, heads, h, w], fpns: list of [B, c_i, h_i, w_i]
        -> [B, Q, H/4, W/4]

        What comes from the image alone is computed once, not per query. In evaluation on the CPU a
        block of queries is done before the next one starts. With CUDA Jittor would compile the
        slices of blocks again for some sizes of images.
        """
        # lay1 of image and attention side by side is the sum of two convolutions; the image's has
        # 32 times the channels.
        channels = src.shape[1]
        image = ops.conv2d(src, self.lay1.weight[:, :channels], self.lay1.bias, padding=(1, 1))
        stages = [
            ops.conv(fpn, adapter)
            for fpn, adapter in zip(fpns, (self.adapter1, self.adapter2, self.adapter3))
        ]
        if self.is_training() or jt.flags.use_cuda:
            return self._masks(attention, image, stages)
        blocks = []
        for start in range(0, attention.shape[1], QUERY_BLOCK):
            blocks.append(self._masks(attention[:, start : start + QUERY_BLOCK], image, stages))
            blocks[-1].sync()
        return jt.concat(blocks, dim=1)

    def _masks(self, attention, image, stages):
        batch, queries = attention.shape[:2]

        def add(x, features):
            """x [B * Q, C, h, w] resized to features [B, C, H, W], plus those of its image"""
            x = resize_nearest(x, features.shape[-2:])
            return (x.reshape(batch, queries, *x.shape[1:]) + features.unsqueeze(1)).reshape(
                x.shape
            )

        maps = attention.reshape(-1, *attention.shape[2:])
        x = add(ops.conv2d(maps, self.lay1.weight[:, -maps.shape[1] :], padding=(1, 1)), image)
        x = ops.relu(self.gn1(x))
        x = ops.relu(self.gn2(ops.conv(x, self.lay2)))
        x = ops.relu(self.gn3(ops.conv(add(x, stages[0]), self.lay3)))
        x = ops.relu(self.gn4(ops.conv(add(x, stages[1]), self.lay4)))
        x = ops.relu(self.gn5(ops.conv(add(x, stages[2]), self.lay5)))
        return ops.conv(x, self.out_lay).reshape(batch, queries, *x.shape[-2:])


def dice_loss(inputs, targets):
    """1 - Dice coefficient of each mask: logits [M, H, W] and 0 or 1 [M, H, W] -> [M]"""
    inputs = inputs.sigmoid()
    return 1 - (2 * _sum_pixels(inputs * targets) + 1) / (
        _sum_pixels(inputs) + _sum_pixels(targets) + 1
    )


def sigmoid_focal_loss(inputs, targets, alpha=0.25, gamma=2):
    """Focal loss (arXiv 1708.02002) of each mask, averaged over its pixels.

    inputs: logits [M, H, W], targets: 0 or 1 [M, H, W] -> [M]
    """
    prob = inputs.sigmoid()
    cross_entropy = jt.maximum(inputs, 0) - inputs * targets + jt.log(1 + jt.exp(-inputs.abs()))
    wrong = prob * (1 - targets) + (1 - prob) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return _sum_pixels(weight * cross_entropy * wrong**gamma) / (inputs.shape[1] * inputs.shape[2])


def _sum_pixels(x):
    """[M, H, W] -> [M]. Row by row: Jittor's one float32 loop over a whole mask loses digits."""
    return x.sum(2).sum(1)


class PostProcessSegm:
    """Adds masks in the size of the original images to the detections."""

    def __init__(self, threshold=0.5):
        self.threshold = threshold

    def __call__(self, results, outputs, orig_target_sizes, max_target_sizes):
        """Adds masks to the results.

        results: list of B dictionaries; outputs: what DETRsegm returns; sizes: int [B, 2], height
        and width.

        orig_target_sizes are those of the original images, max_target_sizes those of the images in
        the batch. Adds `masks`, a list of Q compressed RLE dictionaries of pycocotools.
        """
        logits = outputs["pred_masks"].numpy()
        padded = np.max(max_target_sizes, axis=0)
        for result, masks, orig_size, size in zip(
            results, logits, orig_target_sizes, max_target_sizes
        ):
            result["masks"] = self.encode(masks, padded, size, orig_size)
        return results

    def encode(self, masks, padded, size, orig_size):
        """Logits float32 [n, h, w] of one image -> a list of n RLE dictionaries.

        padded, size, orig_size: height and width of the batch, the image in it, and the original.
        """
        # The original enlarges to the padded batch, cuts the image out and resizes that by the
        # nearest pixel: only the rows and columns that are left at the end are computed.
        rows, columns = (nearest_index(int(old), int(new)) for old, new in zip(size, orig_size))
        rles = []
        for start in range(0, len(masks), QUERY_BLOCK):
            block = bilinear(masks[start : start + QUERY_BLOCK], padded, rows, columns)
            block = 1 / (1 + np.exp(-block)) > self.threshold
            rles += coco_mask.encode(np.asfortranarray(block.transpose(1, 2, 0).astype(np.uint8)))
        return rles


def bilinear(masks, size, rows=None, columns=None):
    """Masks float32 [n, h, w] enlarged to size bilinearly, as PyTorch does.

    rows, columns: the only ones to compute; all by default.
    """
    rows = np.arange(size[0]) if rows is None else rows
    columns = np.arange(size[1]) if columns is None else columns
    low, high, share = _neighbours(masks.shape[1], size[0], rows)
    masks = masks[:, low] * (1 - share[:, None]) + masks[:, high] * share[:, None]
    low, high, share = _neighbours(masks.shape[2], size[1], columns)
    return masks[:, :, low] * (1 - share) + masks[:, :, high] * share


def _neighbours(old, new, wanted):
    """The two source positions of each wanted one of `new` pixels, and the second one's weight."""
    place = np.maximum(
        (wanted.astype(np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5), 0
    )
    low = np.minimum(place.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), place - low.astype(np.float32)


class PostProcessPanoptic:
    """Turns masks into one panoptic image, in the form of COCO's panoptic API.

    is_thing_map: class id -> whether it is a thing (or stuff); other classes are no segments.
    threshold: least score of a segment.
    """

    def __init__(self, is_thing_map, threshold=0.85):
        self.is_thing_map = is_thing_map
        self.threshold = threshold

    def __call__(self, outputs, processed_sizes, target_sizes=None):
        """The panoptic images.

        outputs: what DETRsegm returns; sizes: int [B, 2], height and width in the batch, and wanted
        (the same if None).

        Returns a list of B dictionaries: png_string, the bytes of a PNG whose colours are segment
        ids; segments_info, a list of dictionaries with id, isthing, category_id and area in pixels.
        """
        prob = nn.softmax(outputs["pred_logits"], dim=-1)
        labels, scores = prob.argmax(-1)
        labels, scores, masks = jt.fetch_sync([labels, scores, outputs["pred_masks"]])
        is_class = (labels != prob.shape[-1] - 1) & np.isin(labels, list(self.is_thing_map))
        keep = is_class & (scores > self.threshold)
        target_sizes = processed_sizes if target_sizes is None else target_sizes
        return [
            self._segment(
                masks[i][keep[i]], labels[i][keep[i]].tolist(), processed_sizes[i], target_sizes[i]
            )
            for i in range(len(labels))
        ]

    def _segment(self, masks, classes, size, target_size):
        masks = bilinear(masks, size)
        segments = merge_stuff(masks, classes, self.is_thing_map)
        ids, areas = count(segments, target_size, len(classes))
        while any(area <= 4 for area in areas):
            kept = [i for i, area in enumerate(areas) if area > 4]
            masks, classes = masks[kept], [classes[i] for i in kept]
            # As in the original, stuff that was merged is not merged again.
            ids, areas = count(assign(masks), target_size, len(classes))
        with io.BytesIO() as file:
            Image.fromarray(id2rgb(ids)).save(file, format="PNG")
            png = file.getvalue()
        return {
            "png_string": png,
            "segments_info": [
                {"id": i, "isthing": self.is_thing_map[c], "category_id": c, "area": area}
                for i, (c, area) in enumerate(zip(classes, areas))
            ],
        }


def assign(masks):
    """The strongest of masks [n, h, w] at each pixel, int32 [h, w]; 0 where there is none."""
    return masks.argmax(0).astype(np.int32) if len(masks) else np.zeros(masks.shape[1:], np.int32)


def merge_stuff(masks, classes, is_thing_map):
    """As assign, with all masks of one stuff class under the first one's number."""
    segments = assign(masks)
    same = defaultdict(list)
    for i, c in enumerate(classes):
        if not is_thing_map[c]:
            same[c].append(i)
    for numbers in same.values():
        segments[np.isin(segments, numbers)] = numbers[0]
    return segments


def count(segments, size, number):
    """Segments resized to size by the nearest pixel, and the area of each of them in pixels."""
    height, width = (int(side) for side in size)
    segments = np.asarray(
        Image.fromarray(segments).resize((width, height), Image.Resampling.NEAREST)
    )
    return segments, [int((segments == i).sum()) for i in range(number)]


def id2rgb(ids):
    """int [h, w] -> uint8 [h, w, 3], the colours of segment ids in COCO's panoptic format."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
