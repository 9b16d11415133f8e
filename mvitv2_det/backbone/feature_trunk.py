"""A trunk that returns a feature map where a stage ends: what detection needs.

Axes: B images, H × W pixels or tokens, C channels.
"""

from collections.abc import Callable, Sequence

from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .schedule import BlockSpec
from .trunk import PatchEmbed, Trunk


class FeatureTrunk(Trunk, Backbone):
    """A Detectron2 backbone with a given schedule of blocks.

    Args:
        patch_embed: makes tokens of images.
        schedule: the blocks.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLPs.
        use_abs_pos: absolute positions, resized bicubically to the image.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in
            front.
        use_act_checkpoint: recompute each block in backward instead of saving its activations.
        out_features: names of the feature maps to return.
        freeze_at: number of stages to freeze.
        attention_backend: what computes the blocks, one of :data:`mvitv2_det.fused.BACKENDS`.
        recompute_products: recompute the widest maps of each block, as in
            :func:`mvitv2_det.fused.accelerate`.
        output_norms: normalise each feature map.

    Raises:
        ValueError: there is no such backend, or it cannot recompute.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        schedule: Sequence[BlockSpec],
        *,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        use_abs_pos: bool,
        pretrain_img_size: int,
        pretrain_use_cls_token: bool,
        use_act_checkpoint: bool,
        out_features: Sequence[str],
        freeze_at: int = 0,
        attention_backend: str = "auto",
        recompute_products: bool = False,
        output_norms: bool = True,
    ) -> None:
        stride = patch_embed.proj.stride[0]
        super().__init__(
            patch_embed,
            schedule,
            norm_layer=norm_layer,
            act_layer=act_layer,
            use_abs_pos=use_abs_pos,
            pretrain_size=(pretrain_img_size // stride,) * 2,
            pretrain_use_cls_token=pretrain_use_cls_token,
            use_act_checkpoint=use_act_checkpoint,
            attention_backend=attention_backend,
            recompute_products=recompute_products,
        )
        self.freeze_at = freeze_at
        self._out_features = tuple(out_features)
        self._out_feature_channels, self._out_feature_strides = {}, {}
        self._feature_after_block = {}
        for index, spec in enumerate(schedule):
            name = f"scale{spec.stage}"
            if spec.ends_stage and name in self._out_features:
                self._feature_after_block[index] = name
                self._out_feature_channels[name] = spec.dim_out
                self._out_feature_strides[name] = stride * 2 ** (spec.stage - schedule[0].stage)
                if output_norms:
                    self.add_module(f"{name}_norm", norm_layer(spec.dim_out))
        self.has_output_norms = output_norms
        self._freeze(num_blocks=sum(spec.stage <= freeze_at for spec in schedule))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of images.

        Args:
            images: (B, C, H, W), any size; sizes that no stride divides are rounded up in each
                stage.

        Returns:
            for each name s of ``out_features``, first to last stage,
            (B, C_s, H / stride_s, W / stride_s).

        Raises:
            ValueError: ``images`` has another number of dimensions or channels.
        """
        x, _ = self.embed(images)
        features = {}
        for index in range(max(self._feature_after_block) + 1):
            x, _ = self.run_block(index, x)
            if name := self._feature_after_block.get(index):
                normed = getattr(self, f"{name}_norm")(x) if self.has_output_norms else x
                features[name] = normed.permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> "FeatureTrunk":
        """Sets training mode; frozen blocks stay in evaluation mode, so that they drop no paths."""
        super().train(mode)
        self.blocks[: self._num_frozen_blocks].eval()
        return self

    def _freeze(self, num_blocks: int) -> None:
        """Freezes the first blocks, and what comes before them where ``freeze_at`` is not 0."""
        self._num_frozen_blocks = num_blocks
        if self.freeze_at > 0:
            self.patch_embed.requires_grad_(False)
            if self.pos_embed is not None:
                self.pos_embed.requires_grad_(False)
        self.blocks[:num_blocks].requires_grad_(False).eval()
