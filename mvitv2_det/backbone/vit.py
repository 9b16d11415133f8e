"""The plain vision transformer as a detection backbone: the ViT-B rows of Tables 4 and 9.

Axes: B images, H × W pixels, C channels.
"""

from collections.abc import Callable, Sequence
from math import log2

from torch import nn

from ..attention.spec import AttentionSpec
from .feature_trunk import FeatureTrunk
from .schedule import build_plain_schedule
from .trunk import PatchEmbed


class ViT(FeatureTrunk):
    """Plain ViT with any of the attention kinds that the paper compares on ViT-B.

    One scale from beginning to end. Without pooling its outputs and parameter names are those of
    ``detectron2.modeling.ViT``, but for the norm of the feature map, ``scale4_norm``: ViTDet's
    released weights are loaded with ``output_norm=False``.

    Args:
        img_size: side of the images that the relative position tables are made for.
        patch_size: side of the patches, which do not overlap; a power of 2.
        in_chans: channels of the images.
        embed_dim, depth, num_heads: the size; the default is ViT-B.
        mlp_ratio: hidden channels of the MLPs over their input channels.
        qkv_bias: whether the q, k, v projections have a bias.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLPs.
        window_size: side of the windows in tokens; 0: every block is global.
        window_layout: ``"hybrid"``: all blocks have windows but those that end a quarter of the
            depth; ``"fixed"``: all; ``"shifted"``: all, every other block's shifted by half (Swin).
        global_block_indexes: other blocks to be global in the hybrid layout; ViTDet names those
            that have windows instead, ``window_block_indexes``.
        mask_window_padding: hide the zeros that fill incomplete windows from the image's queries.
        pooling: pool queries, keys and values as MViTv2 does, queries with stride 1, and add the
            pooled query (Eq. 5).
        kv_stride: stride of the K/V pooling; 2 in Table 4.
        qkv_pool_kernel: kernel of the pooling convolutions.
        use_abs_pos: absolute positions, resized bicubically to the image.
        use_rel_pos, rel_pos_zero_init, rel_pos_kind, rel_pos_terms: as in :class:`mvitv2_det.MViT`.
        attention_backend, recompute_products: likewise.
        use_act_checkpoint: recompute each block in backward instead of keeping its activations.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in front.
        output_norm: normalise the feature map; ViTDet does not.

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        window_size: int = 0,
        window_layout: str = "hybrid",
        global_block_indexes: Sequence[int] | None = None,
        mask_window_padding: bool = False,
        pooling: bool = False,
        kv_stride: int = 1,
        qkv_pool_kernel: tuple[int, int] = (3, 3),
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        rel_pos_kind: str = "decomposed",
        rel_pos_terms: Sequence[str] = ("q",),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        output_norm: bool = True,
        attention_backend: str = "auto",
        recompute_products: bool = False,
    ) -> None:
        _check_patches(patch_size, img_size, pretrain_img_size)
        stage = int(log2(patch_size))
        patches = (patch_size, patch_size)
        schedule = build_plain_schedule(
            stage=stage,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            window_size=window_size,
            table_size=img_size // patch_size,
            drop_path_rate=drop_path_rate,
            window_layout=window_layout,
            global_block_indexes=global_block_indexes,
            pooling=pooling,
            kv_stride=kv_stride,
            mlp_ratio=mlp_ratio,
            attention=AttentionSpec(
                qkv_bias=qkv_bias,
                pool_kernel=(*qkv_pool_kernel,),
                residual_pooling=pooling,
                mask_window_padding=mask_window_padding,
                use_rel_pos=use_rel_pos,
                rel_pos_kind=rel_pos_kind,
                rel_pos_terms=tuple(rel_pos_terms),
                rel_pos_zero_init=rel_pos_zero_init,
            ),
        )
        super().__init__(
            PatchEmbed(in_chans, embed_dim, kernel=patches, stride=patches, padding=(0, 0)),
            schedule,
            norm_layer=norm_layer,
            act_layer=act_layer,
            use_abs_pos=use_abs_pos,
            pretrain_img_size=pretrain_img_size,
            pretrain_use_cls_token=pretrain_use_cls_token,
            use_act_checkpoint=use_act_checkpoint,
            out_features=(f"scale{stage}",),
            attention_backend=attention_backend,
            recompute_products=recompute_products,
            output_norms=output_norm,
        )

    @property
    def size_divisibility(self) -> int:
        """Images are padded to whole patches, which a convolution would cut off."""
        return self.patch_embed.proj.stride[0]


def _check_patches(patch_size: int, img_size: int, pretrain_img_size: int) -> None:
    if patch_size < 1 or log2(patch_size) % 1:
        raise ValueError(f"patch_size must be a power of 2, got {patch_size}")
    for name, size in (("img_size", img_size), ("pretrain_img_size", pretrain_img_size)):
        if size < patch_size:
            raise ValueError(f"{name} must be at least patch_size = {patch_size}, got {size}")
