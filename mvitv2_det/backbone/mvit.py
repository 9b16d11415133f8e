"""The MViTv2 backbone, and by its keywords MViTv1 and every ablation of MViTv2 in the paper.

Axes: B images, H × W pixels or tokens, C channels.
"""

from collections.abc import Callable, Sequence

from torch import nn

from ..attention.spec import AttentionSpec
from .feature_trunk import FeatureTrunk
from .schedule import FEATURE_NAMES, FIRST_STAGE, build_schedule
from .trunk import PatchEmbed


class MViT(FeatureTrunk):
    """Multiscale vision transformer with Hybrid window attention (Hwin, section 4.2).

    Takes every keyword of ``detectron2.modeling.MViT`` with the same meaning and default, has the
    same ``state_dict``, and gives the same outputs on the same weights.

    Args:
        img_size: side of the images that the relative position tables are made for.
        patch_kernel, patch_stride, patch_padding: the patch embedding's convolution.
        in_chans: channels of the images.
        embed_dim, depth, num_heads, last_block_indexes: the size; see
            :data:`mvitv2_det.VARIANTS`.
        qkv_pool_kernel: kernel of the pooling convolutions.
        adaptive_kv_stride: K/V stride in scale2, halved from stage to stage.
        adaptive_window_size: window in scale2, halved from stage to stage, or the windows of the
            four stages. 0: every block is global.
        residual_pooling: adds the pooled query to the attention's output (Eq. 5).
        mlp_ratio: hidden channels of the MLPs over their input channels.
        qkv_bias: whether the q, k, v projections have a bias.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        norm_layer: makes a normalisation from its channels. The published models use
            ``partial(nn.LayerNorm, eps=1e-6)``.
        act_layer: makes the activation of the MLPs (Detectron2's MViT ignores it).
        use_abs_pos: absolute positions, resized bicubically to the image.
        use_rel_pos: decomposed relative positions (Eq. 4).
        rel_pos_zero_init: whether their tables start at zero.
        use_act_checkpoint: recompute each block in backward instead of keeping its activations.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in
            front, as the checkpoints pre-trained on ImageNet-21K have.
        out_features: names of the feature maps to return, of ``scale2`` to ``scale5``.
        expand_in_attention: channels double in a stage's first attention (appendix B.1).
            ``False`` doubles them in the MLP that ends the stage before, which is the L of the
            paper's tables and of the ImageNet-1K weights.
        global_kv_stride_factor: the global blocks that end scale3 and scale4 multiply their K/V
            stride by this. The classification networks have 1.
        freeze_at: number of stages to freeze: 0 nothing, 1 patch embedding and absolute
            positions, 2 also the blocks of scale2, … 5 also those of scale5. Frozen blocks drop
            no paths. The output norms always train: they are new in detection.
        window_layout: which blocks have windows. ``"hybrid"``: all but the last ones of scale3,
            scale4 and scale5 (Hwin); ``"fixed"``: all; ``"shifted"``: all, those of every other
            block of a stage shifted by half (Swin). Table 4 compares them.
        global_block_indexes: other blocks to be global in the hybrid layout.
        mask_window_padding: hide the zeros that fill incomplete windows from the image's
            queries: right for new trainings, while the released weights were trained seeing them.
        full_q_pooling: pool the queries of all blocks; otherwise only where a stage starts, as
            MViTv1 does (Table 7).
        rel_pos_kind: ``"decomposed"`` tables, one per axis, or ``"joint"`` ones (Table 6).
        rel_pos_terms: whether queries (``"q"``), keys (``"k"``) and values (``"v"``) meet
            relative positions (Table A.4).
        attention_backend: what computes the blocks: ``"auto"``, the fastest exact way on the
            device, or a name of :mod:`mvitv2_det.fused.choice`. Weights do not depend on it.
        recompute_products: recompute the widest maps of each block in backward, the projected q,
            k and v and the MLP's hidden channels, instead of keeping them: a third of what is
            kept by default is left, for 15 % more multiply-adds of a training step. By the
            backends ``"auto"``, ``"tiled"`` and ``"triton"``, with the same gradients.

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_kernel: tuple[int, int] = (7, 7),
        patch_stride: tuple[int, int] = (4, 4),
        patch_padding: tuple[int, int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: int = 16,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 11, 15),
        qkv_pool_kernel: tuple[int, int] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int | Sequence[int] = 56,
        residual_pooling: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = False,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = FEATURE_NAMES,
        expand_in_attention: bool = True,
        global_kv_stride_factor: int = 2,
        freeze_at: int = 0,
        window_layout: str = "hybrid",
        global_block_indexes: Sequence[int] | None = None,
        mask_window_padding: bool = False,
        full_q_pooling: bool = True,
        rel_pos_kind: str = "decomposed",
        rel_pos_terms: Sequence[str] = ("q",),
        attention_backend: str = "auto",
        recompute_products: bool = False,
    ) -> None:
        _check_patches(patch_stride, img_size, pretrain_img_size)
        _check_features(out_features, freeze_at)
        schedule = build_schedule(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            last_block_indexes=last_block_indexes,
            adaptive_kv_stride=adaptive_kv_stride,
            adaptive_window_size=adaptive_window_size,
            table_size=img_size // patch_stride[0],
            drop_path_rate=drop_path_rate,
            expand_in_attention=expand_in_attention,
            global_kv_stride_factor=global_kv_stride_factor,
            window_layout=window_layout,
            global_block_indexes=global_block_indexes,
            full_q_pooling=full_q_pooling,
            mlp_ratio=mlp_ratio,
            attention=AttentionSpec(
                qkv_bias=qkv_bias,
                pool_kernel=(*qkv_pool_kernel,),
                residual_pooling=residual_pooling,
                mask_window_padding=mask_window_padding,
                use_rel_pos=use_rel_pos,
                rel_pos_kind=rel_pos_kind,
                rel_pos_terms=tuple(rel_pos_terms),
                rel_pos_zero_init=rel_pos_zero_init,
            ),
        )
        super().__init__(
            PatchEmbed(in_chans, embed_dim, (*patch_kernel,), (*patch_stride,), (*patch_padding,)),
            schedule,
            norm_layer=norm_layer,
            act_layer=act_layer,
            use_abs_pos=use_abs_pos,
            pretrain_img_size=pretrain_img_size,
            pretrain_use_cls_token=pretrain_use_cls_token,
            use_act_checkpoint=use_act_checkpoint,
            out_features=out_features,
            freeze_at=freeze_at,
            attention_backend=attention_backend,
            recompute_products=recompute_products,
        )


def _check_patches(patch_stride: Sequence[int], img_size: int, pretrain_img_size: int) -> None:
    if patch_stride[0] != patch_stride[1]:
        raise ValueError(
            f"patch_stride must be the same for both axes, got {patch_stride[0]} and "
            f"{patch_stride[1]}"
        )
    for name, size in (("img_size", img_size), ("pretrain_img_size", pretrain_img_size)):
        if size < 8 * patch_stride[0]:
            raise ValueError(
                f"{name} must be at least 8 patch strides = {8 * patch_stride[0]}, got {size}"
            )


def _check_features(out_features: Sequence[str], freeze_at: int) -> None:
    unknown = [name for name in out_features if name not in FEATURE_NAMES]
    if unknown or not out_features:
        raise ValueError(
            f"out_features must be some of {', '.join(FEATURE_NAMES)}, got "
            f"{', '.join(map(repr, unknown)) or 'none'}"
        )
    last_stage = FIRST_STAGE + len(FEATURE_NAMES) - 1
    if not 0 <= freeze_at <= last_stage:
        raise ValueError(f"freeze_at must be between 0 and {last_stage}, got {freeze_at}")
