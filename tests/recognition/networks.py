"""Networks of other projects, their weights copied, and comparisons of outputs and gradients."""

import torch
from models import randomize
from torch import Tensor, nn

from mvitv2_det import Recognizer
from mvitv2_det.variants import MVITV1_ARGUMENTS, Variant
from mvitv2_det.weights.key_maps import TORCHVISION, Format, from_source

NARROW = Variant(embed_dim=8, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0)
MVITV1 = {k: v for k, v in MVITV1_ARGUMENTS.items() if k != "global_kv_stride_factor"}
_TORCHVISION_POSITIONS = {
    "pos_encoding.spatial_pos": "pos_embed_spatial",
    "pos_encoding.temporal_pos": "pos_embed_temporal",
    "pos_encoding.class_pos": "pos_embed_class",
}


def renamed(tensors: dict[str, Tensor], source: Format) -> dict[str, Tensor]:
    """Tensors of another project under the names used here; each must have one."""
    found, unknown = from_source(tensors, source)
    for name in list(unknown) if source is TORCHVISION else ():
        value = unknown.pop(name)
        found[_TORCHVISION_POSITIONS[name]] = value.reshape(1, -1, value.shape[-1])
    assert not unknown
    return found


def copy_weights(ours: Recognizer, theirs: nn.Module, source: Format) -> None:
    """Randomizes the other network and copies all of it, both in evaluation mode."""
    randomize(theirs).eval()
    ours.load_state_dict(renamed(theirs.state_dict(), source))
    ours.eval()


def assert_equal(
    ours: Recognizer, theirs: nn.Module, source: Format, images: Tensor, tolerance: float
) -> None:
    """Logits and all gradients, relative to the largest value of each tensor.

    Some gradients are 0 but for rounding, as that of a key's bias: tensors whose largest value is
    below a thousandth of the largest of all are measured by that.
    """
    actual, expected = ours(images), theirs(images)
    assert_near(actual, expected, expected.abs().max(), tolerance, "logits")
    seed = torch.randn_like(expected)
    actual.backward(seed)
    expected.backward(seed)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    gradients = renamed(gradients, source)
    least = 1e-3 * max(gradient.abs().max() for gradient in gradients.values())
    own = {name: weight.grad for name, weight in ours.named_parameters()}
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_near(
            own[name], gradient, torch.maximum(gradient.abs().max(), least), tolerance, name
        )


def assert_near(
    actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float, name: str
) -> None:
    error = ((actual - expected).abs().max() / scale).item()
    assert error < tolerance, f"{name}: {error:.1e}"
