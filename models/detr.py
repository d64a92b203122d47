"""DETR: model, loss and postprocessing (paper, sections 3.1 and 3.2)."""

from argparse import Namespace

import numpy as np

from util import box_ops, dist, launch, ops
from util.backend import jt, nn
from util.misc import NestedTensor, copy_to_device, nested_tensor_from_arrays

from .architecture import Architecture, get_architecture
from .backbone import Backbone, Joiner
from .matcher import HungarianMatcher
from .position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from .segmentation import (
    DETRsegm,
    PostProcessPanoptic,
    PostProcessSegm,
    dice_loss,
    get_coco_things,
    sigmoid_focal_loss,
)
from .transformer import Transformer


class DETR(nn.Module):
    """Backbone, transformer and prediction heads.

    num_classes: highest class id + 1; an extra logit stands for "no object".
    num_queries: number of object queries, i.e. the most detections per image.
    aux_loss: also return the predictions of the intermediate decoder layers.
    """

    def __init__(self, backbone, transformer, num_classes, num_queries, aux_loss=False):
        super().__init__()
        hidden_dim = transformer.d_model
        self.num_queries = num_queries
        self.transformer = transformer
        self.class_embed = ops.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = nn.Conv2d(backbone.stage_channels[-1], hidden_dim, kernel_size=1)
        self.backbone = backbone
        self.aux_loss = aux_loss

    def train(self):
        """Set training mode. A frozen backbone stays in eval mode and keeps its statistics."""
        super().train()
        self.keep_frozen_backbone_in_eval()

    def keep_frozen_backbone_in_eval(self):
        if all(parameter.is_stop_grad() for parameter in self.backbone.parameters()):
            self.backbone.eval()

    def execute(self, samples):
        """Predict classes and boxes.

        samples: NestedTensor of Vars, tensors [B, 3, H, W] and mask [B, H, W]; or a list of images
        [3, h, w], which is padded to a batch.

        Returns a dict:
            pred_logits: float32 [B, Q, num_classes + 1]
            pred_boxes: float32 [B, Q, 4], cxcywh in 0..1 relative to each image without its padding
            aux_outputs (with aux_loss): a list of the same for each intermediate decoder layer
        """
        return self.forward_features(samples)[0]

    def forward_features(self, samples):
        """Return the outputs of `execute` and what a mask head needs.

        That is the backbone's features (list of NestedTensor) and a tuple: the last feature map
        after input_proj [B, hidden_dim, h, w], its padding mask bool [B, h, w], the output of the
        last decoder layer [B, Q, hidden_dim], the encoder's memory [B, hidden_dim, h, w].
        """
        if not isinstance(samples, NestedTensor):
            samples = nested_tensor_from_arrays(samples).to_jittor()
        features, pos = self.backbone(samples)
        src, mask = features[-1].decompose()
        src = ops.conv(src, self.input_proj)
        hs, memory = self.transformer(src, mask, self.query_embed.weight, pos)
        logits = self.class_embed(hs)
        boxes = self.bbox_embed(hs).sigmoid()
        layers = zip(ops.unbind(logits), ops.unbind(boxes))
        outputs = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
        out = outputs.pop()
        if self.aux_loss:
            out["aux_outputs"] = outputs
        return out, features, (src, mask, hs[-1], memory)


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU."""

    def __init__(self, input_dim, hidden_dim, output_dim, num_layers):
        super().__init__()
        dims = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList([ops.Linear(n, k) for n, k in zip(dims, dims[1:])])

    def execute(self, x):
        """[..., input_dim] -> [..., output_dim]"""
        for layer in self.layers[:-1]:
            x = ops.linear(x, layer.weight, layer.bias, relu=True)
        return self.layers[-1](x)


class SetCriterion(nn.Module):
    """DETR's loss: match predictions to objects, then supervise class and box of each pair.

    weight_dict: weight of each loss in the total; losses without one are only logged.
    eos_coef: weight of the class "no object" in the classification loss.
    """

    def __init__(self, num_classes, matcher, weight_dict, eos_coef):
        super().__init__()
        self.num_classes, self.matcher = num_classes, matcher
        self.weight_dict, self.eos_coef = weight_dict, eos_coef

    def execute(self, outputs, targets, num_boxes=None):
        """Compute the losses.

        outputs: what DETR returns; targets: list of B dictionaries of NumPy arrays, `labels` [n]
        and `boxes` [n, 4].

        num_boxes: normalizer of the box and mask losses, see `average_boxes`; computed from these
        targets by default.
        Returns a dictionary of scalars: loss_ce, loss_bbox, loss_giou as Vars, cardinality_error
        and class_error as floats, and all but class_error again for the i-th auxiliary output with
        the suffix `_i`.
        """
        layers = [outputs] + outputs.get("aux_outputs", [])
        suffixes = [""] + [f"_{i}" for i in range(len(layers) - 1)]
        # Compute the losses of all L layers together. Copying logits and boxes as one array is one
        # transfer, and leaves them on the device.
        logits = ops.stack([layer["pred_logits"] for layer in layers])
        boxes = ops.stack([layer["pred_boxes"] for layer in layers])
        host = jt.concat([logits, boxes], dim=-1).numpy()
        host_logits, host_boxes = host[..., :-4], host[..., -4:]
        indices = self.matcher(host_logits, host_boxes, targets)
        classes, target_boxes = self._dense_targets(indices, targets, host_logits.shape)

        if num_boxes is None:
            num_boxes, _ = average_boxes([targets])
        class_weights = np.where(classes == self.num_classes, self.eos_coef, 1).astype(np.float32)
        class_weights /= class_weights.sum((1, 2), keepdims=True)
        # Divide on the host: Jittor would compile separate kernels for the constants 0, 1 and 2.
        box_weights = (classes != self.num_classes) / np.float32(num_boxes)
        on_device = copy_to_device(classes, class_weights, target_boxes, box_weights)
        per_layer = {
            "loss_ce": self.loss_labels(logits, *on_device[:2]),
            **self.loss_boxes(boxes, *on_device[2:]),
        }
        per_layer = {name: ops.unbind(values) for name, values in per_layer.items()}
        per_layer["cardinality_error"] = self.cardinality_error(host_logits, targets)
        losses = {"class_error": self.class_error(host_logits[0], classes[0])}
        losses.update(
            {
                name + suffix: values[i]
                for i, suffix in enumerate(suffixes)
                for name, values in per_layer.items()
            }
        )
        if "pred_masks" in outputs:
            losses.update(self.loss_masks(outputs["pred_masks"], indices[0], targets, num_boxes))
        return losses

    def _dense_targets(self, indices, targets, shape):
        """Build the target of each query.

        Returns classes int32 [L, B, Q], boxes float32 [L, B, Q, 4].

        The shapes of dense arrays do not depend on the number of objects, so empty batches need no
        special case. Unmatched queries have the class "no object" and a dummy box, which no loss
        uses.
        """
        classes = np.full(shape[:3], self.num_classes, np.int32)
        boxes = np.broadcast_to(np.float32([0.5, 0.5, 1, 1]), shape[:3] + (4,)).copy()
        for layer, pairs in enumerate(indices):
            for i, ((queries, objects), target) in enumerate(zip(pairs, targets)):
                classes[layer, i, queries] = target["labels"][objects]
                boxes[layer, i, queries] = target["boxes"][objects]
        return classes, boxes

    def loss_labels(self, logits, classes, weights):
        """Return the weighted cross entropy of each layer.

        logits [L, B, Q, K + 1], classes and weights [L, B, Q] -> [L]
        """
        log_prob = nn.log_softmax(logits, dim=-1)
        labels = classes.broadcast(log_prob, [3])
        is_target = labels == jt.arange(logits.shape[3]).broadcast(log_prob, [0, 1, 2])
        return -(log_prob * is_target * weights.broadcast(log_prob, [3])).sum((1, 2, 3))

    def loss_boxes(self, boxes, target_boxes, weights):
        """Return the weighted L1 and generalized IoU loss of each layer.

        boxes and target_boxes [L, B, Q, 4], weights [L, B, Q] -> [L] each
        """
        l1 = (boxes - target_boxes).abs().sum(-1)
        giou = box_ops.generalized_box_iou(
            box_ops.box_cxcywh_to_xyxy(boxes), box_ops.box_cxcywh_to_xyxy(target_boxes)
        )
        return {
            "loss_bbox": (l1 * weights).sum((1, 2)),
            "loss_giou": ((1 - giou) * weights).sum((1, 2)),
        }

    def loss_masks(self, pred_masks, pairs, targets, num_boxes):
        """Return the focal and Dice loss of the last layer's masks, normalized by num_boxes.

        pred_masks [B, Q, h, w] are upsampled to the padded batch's size, to which the targets'
        `masks` bool [n, H_i, W_i] are padded. Both losses are 0 if the batch has no objects.
        """
        images = np.concatenate([np.full(len(queries), i) for i, (queries, _) in enumerate(pairs)])
        queries = np.concatenate([queries for queries, _ in pairs])
        masks = [target["masks"][objects] for target, (_, objects) in zip(targets, pairs)]
        if len(queries) == 0:
            zero = pred_masks[0, 0].sum() * 0  # keep all parameters in the graph
            return {"loss_mask": zero, "loss_dice": zero}
        height, width = (max(target["masks"].shape[axis] for target in targets) for axis in (1, 2))
        target_masks = np.zeros((len(queries), height, width), np.float32)
        for i, mask in enumerate(mask for image_masks in masks for mask in image_masks):
            target_masks[i, : mask.shape[0], : mask.shape[1]] = mask
        src_masks = pred_masks[jt.array(images), jt.array(queries)].unsqueeze(1)
        src_masks = nn.interpolate(src_masks, size=(height, width), mode="bilinear").squeeze(1)
        target_masks = jt.array(target_masks)
        focal = sigmoid_focal_loss(src_masks, target_masks).sum()
        sums = jt.concat([focal, dice_loss(src_masks, target_masks).sum()])
        losses = sums / jt.array(np.full(2, num_boxes, np.float32))  # an array: see loss_boxes
        return {"loss_mask": losses[0], "loss_dice": losses[1]}

    def cardinality_error(self, logits, targets):
        """Return the mean absolute error of the number of predicted objects, which is only logged.

        logits NumPy [L, B, Q, K + 1] -> [L]
        """
        predicted = (logits.argmax(-1) != self.num_classes).sum(-1)
        return np.abs(predicted - [len(target["labels"]) for target in targets]).mean(-1)

    def class_error(self, logits, classes):
        """Return the top-1 classification error of a layer's matched queries, in percent.

        logits NumPy [B, Q, K + 1], classes [B, Q]. 100 for a batch without objects, as in the
        original.
        """
        matched = classes != self.num_classes
        correct = logits.argmax(-1)[matched] == classes[matched]
        return 100.0 * (1 - correct.mean()) if correct.size else 100.0


def average_boxes(batches):
    """Return the mean number of objects per batch, at least 1, and whether every batch has images.

    A collective: the mean is over the batches of all processes that have images.

    batches: list of batches, each a list of target dictionaries; as many in every process.
    """
    count = sum(len(target["labels"]) for targets in batches for target in targets)
    with_images = sum(bool(targets) for targets in batches)
    count, with_images = dist.all_gather_floats([count, with_images]).sum(0)
    is_complete = with_images == len(batches) * launch.get_world_size()
    return max(count / max(with_images, 1), 1), is_complete


class PostProcess:
    """Convert model outputs to detections in pixels."""

    def __call__(self, outputs, target_sizes):
        """Return the detections of each image.

        outputs: output dict of DETR; target_sizes: int [B, 2], height and width of each original
        image in pixels.

        Returns a list of B dicts of NumPy arrays: scores float32 [Q], labels int32 [Q], boxes
        float32 [Q, 4], xyxy in pixels. Fetches the predictions from the device in one transfer.
        """
        prob = nn.softmax(outputs["pred_logits"], dim=-1)
        labels, scores = prob[..., :-1].argmax(-1)
        labels, scores, boxes = jt.fetch_sync([labels, scores, outputs["pred_boxes"]])
        height, width = np.asarray(target_sizes, np.float32).T
        scale = np.stack([width, height, width, height], 1)[:, None]
        boxes = box_ops.box_cxcywh_to_xyxy(boxes) * scale
        keys = ("scores", "labels", "boxes")
        return [dict(zip(keys, image)) for image in zip(scores, labels, boxes)]


def build_detr(
    arch: Architecture, dropout: float = 0.1, train_backbone: bool = True, aux_loss: bool = False
) -> DETR | DETRsegm:
    """Build a DETR, or a DETRsegm if the architecture has masks, with random weights."""
    is_learned = arch.position_embedding == "learned"
    encoding = PositionEmbeddingLearned if is_learned else PositionEmbeddingSine
    resnet = arch.backbone, train_backbone, arch.dilation, arch.backbone_norm, arch.masks
    backbone = Joiner(Backbone(*resnet), encoding(arch.hidden_dim // 2))
    layers = arch.enc_layers, arch.dec_layers, arch.dim_feedforward
    transformer = Transformer(arch.hidden_dim, arch.nheads, *layers, dropout, arch.pre_norm)
    model = DETR(backbone, transformer, arch.num_classes, arch.num_queries, aux_loss)
    return DETRsegm(model) if arch.masks else model


def build_model(args: Namespace, num_classes: int) -> tuple[DETR | DETRsegm, SetCriterion, dict]:
    """Build model, criterion and postprocessors from the parsed flags of main.py.

    num_classes: highest category id + 1. The postprocessors are a dict with bbox and, with masks,
    segm and panoptic.
    """
    architecture = get_architecture(args, num_classes)
    model = build_detr(architecture, args.dropout, args.lr_backbone > 0, args.aux_loss)
    detr = model.detr if args.masks else model
    frozen = [detr] if args.frozen_weights else [getattr(detr, part) for part in args.freeze]
    for module in frozen:
        for parameter in module.parameters():
            parameter.stop_grad()
    weights = {"loss_ce": 1, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
    suffixes = [""] + [f"_{i}" for i in range(args.dec_layers - 1)] if args.aux_loss else [""]
    weight_dict = {name + suffix: weight for suffix in suffixes for name, weight in weights.items()}
    postprocessors = {"bbox": PostProcess()}
    if args.masks:
        weight_dict.update(loss_mask=args.mask_loss_coef, loss_dice=args.dice_loss_coef)
        postprocessors["segm"] = PostProcessSegm()
        if args.dataset_file == "coco_panoptic":
            postprocessors["panoptic"] = PostProcessPanoptic(get_coco_things(num_classes))
    matcher = HungarianMatcher(args.set_cost_class, args.set_cost_bbox, args.set_cost_giou)
    criterion = SetCriterion(num_classes, matcher, weight_dict, args.eos_coef)
    # Jittor is lazy: draw the initial weights now, before dropout draws in the first step.
    jt.sync_all()
    return model, criterion, postprocessors
