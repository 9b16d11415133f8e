"""Speed of the whole Mask R-CNN with Detectron2's backbone and with ours, and of its parts."""

from collections.abc import Callable

import torch
from detectron2.config import instantiate
from detectron2.modeling import MViT as Detectron2MViT
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from mvitv2_det import get_config
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.profiling import profiler
from projects.backbone_benchmark.tables import per_second, ratio, speed_over
from projects.common.memory import OutOfMemory, attempt
from projects.common.timing import interleave, resident

OBJECTS = 7
PARTS = ("backbone", "FPN", "proposals", "box and mask heads", "rest")


def build(setting: Setting, backbone: type[nn.Module] | None = None) -> nn.Module:
    """Makes the published Mask R-CNN of the size, with another class of backbone where given."""
    call = get_config(f"mask_rcnn_mvitv2_{setting.variant.lower()}_3x").model
    call.roi_heads.box_predictor.test_score_thresh = 0.0  # scores of random weights are low
    call.backbone.bottom_up.drop_path_rate = 0.0
    if backbone is not None:
        call.backbone.bottom_up._target_ = backbone
    torch.manual_seed(0)
    return instantiate(call).to(setting.device)


def inputs(setting: Setting) -> list[dict]:
    """Makes images of noise with seven objects each."""
    height, width = setting.size
    generator = torch.Generator().manual_seed(0)
    made = []
    for image in setting.images():
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 20 + torch.rand(OBJECTS, 2, generator=generator) * min(height, width) * 0.3
        boxes = torch.cat((corner, corner + side), dim=1)
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        made.append(
            {
                "image": (image.cpu() * 50 + 120).clamp(0, 255),
                "instances": annotated(boxes, masks),
                "height": height,
                "width": width,
            }
        )
    return made


def annotated(boxes: Tensor, masks: Tensor) -> Instances:
    """Makes ground truth of (N, 4) boxes and (N, H, W) masks, each of another class."""
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.arange(len(boxes))
    instances.gt_masks = BitMasks(masks)
    return instances


def inference(model: nn.Module, setting: Setting) -> Callable[[], object]:
    """Makes a step from images to detections."""
    batch = inputs(setting)

    def step() -> object:
        model.eval()
        with torch.inference_mode(), setting.autocast():
            return model(batch)

    return step


def training(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """Makes a step of losses and their gradients."""
    batch = inputs(setting)

    def step() -> None:
        model.train()
        with EventStorage(), setting.autocast():
            losses = model(batch)
        sum(losses.values()).backward()
        model.zero_grad(set_to_none=True)

    return step


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Times both detectors in turns.

    Returns:
        a row for each, with its speed-up over the one with Detectron2's backbone.
    """
    models = {"Detectron2": build(setting, Detectron2MViT), "ours": build(setting)}
    models["ours"].load_state_dict(models["Detectron2"].state_dict())
    times = {}
    for kind, make in (("inference", inference), ("training", training)):
        times[kind] = interleave(
            {name: resident(make(model, setting)) for name, model in models.items()},
            rounds=rounds,
            device=setting.device,
            progress=lambda line, kind=kind: report(f"detector {setting.full_name} {kind} {line}"),
        )
    rows = []
    for name, model in models.items():
        row = {**setting.columns, "backbone": name}
        for kind, heading in (("inference", "images/s"), ("training", "training images/s")):
            own, base = times[kind][name], times[kind]["Detectron2"]
            row[heading] = per_second(own, setting.batch)
            row[f"{kind} speed-up"] = ratio(speed_over(own, base))
        percent = attempt(lambda model=model: shares(model, setting))
        known = {} if isinstance(percent, OutOfMemory) else percent
        rows.append(row | {f"{p} %": f"{known[p]:.0f}" if known else "" for p in PARTS})
    return rows


def shares(model: nn.Module, setting: Setting) -> dict[str, float]:
    """Measures the percentage of inference that each part takes, with the profiler."""
    parts = {
        "backbone": model.backbone.bottom_up,
        "backbone and FPN": model.backbone,
        "proposals": model.proposal_generator,
        "box and mask heads": model.roi_heads,
    }
    handles = [handle for name, part in parts.items() for handle in _labelled(name, part)]
    step = inference(model, setting)
    step()
    with profiler("cpu") as recorded, torch.profiler.record_function("detector"):
        step()
        if setting.device == "cuda":
            torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    took = {event.key: event.cpu_time_total for event in recorded.key_averages()}
    percent = {name: 100 * took[name] / took["detector"] for name in parts}
    percent["FPN"] = percent.pop("backbone and FPN") - percent["backbone"]
    percent["rest"] = 100 - sum(percent.values())
    return {part: percent[part] for part in PARTS}


def _labelled(name: str, module: nn.Module) -> list:
    """Adds a module's forward pass to the profile under a name."""
    open_ranges = []

    def begin(module: nn.Module, _) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        open_ranges.append(torch.profiler.record_function(name).__enter__())

    def end(*_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        open_ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
