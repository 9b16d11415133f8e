"""The options of one attention module, in one place.

Axes: n axes of a token map, H × W for images and T × H × W for clips; C channels, D = C / h
channels for each of h heads.
"""

from dataclasses import dataclass

from .position import TERMS, RelativeTable, relative_tables


@dataclass(frozen=True)
class AttentionSpec:
    """What a :class:`~mvitv2_det.attention.multiscale.MultiScaleAttention` consists of.

    A kind of attention is two choices: how far q, k and v are pooled, and where the windows lie.
    Without pooling it is the attention of a plain transformer; Table 4 compares the kinds.

    The pooling kernel has one side per axis, and its length says how many axes the maps have.
    Strides and table sizes are per axis, too; one number stands for all axes alike.

    Attributes:
        dim: channels coming in.
        dim_out: channels inside and going out.
        num_heads: attention heads; must divide ``dim_out``.
        qkv_bias: whether the q, k, v projection has a bias.
        pool_q, pool_kv: whether queries, and keys and values, are pooled and normalised at all.
        pool_kernel: kernel of the pooling convolutions.
        stride_q, stride_kv: strides of the query pooling, and of the key and value pooling.
        residual_pooling: whether the query, pooled or not, is added to the output (Eq. 5).
        residual_class_token: whether this holds for the query of a class token, as in
            facebookresearch/mvit and timm; PySlowFast's networks leave it out.
        window_size: side of the windows in incoming tokens; 0 attends over the whole map. Windows
            are cut from images alone, with the same strides along both axes.
        shift: incoming tokens by which the windows are shifted (Swin); 0 leaves them in place.
        mask_window_padding: whether what completes windows is hidden from the queries of the map.
            Detectron2's MViT and ViT, and so all released weights, let it be seen.
        use_rel_pos: whether there are relative position tables.
        rel_pos_kind: ``"decomposed"``, one table per axis (Eq. 4), or ``"joint"``, one table for
            all axes (Table 6). Clips have three more (Table A.6): ``"joint_space"``, a table for
            height and width together and one for time; ``"space"``, height and width alone; and
            ``"time"``, time alone.
        rel_pos_terms: which of ``"q"``, ``"k"`` and ``"v"`` have relative position tables
            (appendix A.4).
        rel_pos_zero_init: whether the tables start at zero; otherwise they start from a truncated
            normal distribution of standard deviation 0.02.
        table_size: token grid, before pooling, that the tables are made for.

    Raises:
        ValueError: a value is none of those above, a stride is given without pooling, windows
            are asked for where there are none, or the heads do not divide the channels.
    """

    dim: int = 96
    dim_out: int = 96
    num_heads: int = 1
    qkv_bias: bool = True
    pool_q: bool = True
    pool_kv: bool = True
    pool_kernel: tuple[int, ...] = (3, 3)
    stride_q: tuple[int, ...] = (1, 1)
    stride_kv: tuple[int, ...] = (1, 1)
    residual_pooling: bool = True
    residual_class_token: bool = True
    window_size: int = 0
    shift: int = 0
    mask_window_padding: bool = False
    use_rel_pos: bool = True
    rel_pos_kind: str = "decomposed"
    rel_pos_terms: tuple[str, ...] = ("q",)
    rel_pos_zero_init: bool = True
    table_size: tuple[int, ...] = (56, 56)

    def __post_init__(self) -> None:
        if self.axes not in (2, 3):
            raise ValueError(f"pool_kernel must have 2 or 3 sides, got {self.pool_kernel}")
        for name in ("stride_q", "stride_kv", "table_size"):
            object.__setattr__(self, name, per_axis(name, getattr(self, name), self.axes))
        for name, stride, pooled in (
            ("q", self.stride_q, self.pool_q),
            ("kv", self.stride_kv, self.pool_kv),
        ):
            if max(stride) > 1 and not pooled:
                raise ValueError(f"stride_{name} = {stride} needs pool_{name}=True")
        if self.dim_out % self.num_heads:
            raise ValueError(
                f"dim_out must be divisible by num_heads, got {self.dim_out} and {self.num_heads}"
            )
        if self.window_size and (
            self.axes != 2 or len({*self.stride_q}) + len({*self.stride_kv}) > 2
        ):
            raise ValueError(
                f"windows need maps of 2 axes with the same stride along both, got strides "
                f"{self.stride_q} of queries, {self.stride_kv} of keys and values"
            )
        relative_tables(self.rel_pos_kind, self.axes)
        terms = self.rel_pos_terms
        if not terms or set(terms) - set(TERMS) or len(set(terms)) < len(terms):
            raise ValueError(
                f"rel_pos_terms must be some of {', '.join(TERMS)}, each once, got {list(terms)}; "
                f"use_rel_pos=False goes without"
            )

    @property
    def axes(self) -> int:
        """Axes of the maps, n."""
        return len(self.pool_kernel)

    @property
    def head_dim(self) -> int:
        """Channels of one head, D."""
        return self.dim_out // self.num_heads

    @property
    def window_fill_is_projected(self) -> bool:
        """Whether what completes windows is the projection's bias: of zeros, padded before it."""
        pooled = self.pool_q or self.pool_kv
        hidden = self.mask_window_padding
        return bool(self.window_size and self.qkv_bias) and not pooled and not hidden

    @property
    def scale(self) -> float:
        """The factor of the content logits, D^-½ (Eq. 1)."""
        return self.head_dim**-0.5

    @property
    def position_terms(self) -> tuple[str, ...]:
        """The terms that have tables; empty without relative positions."""
        return self.rel_pos_terms if self.use_rel_pos else ()

    @property
    def tables(self) -> tuple[RelativeTable, ...]:
        """The relative position tables that each term has."""
        return relative_tables(self.rel_pos_kind, self.axes)


def per_axis(name: str, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One number for each axis.

    Raises:
        ValueError: there are more or fewer.
    """
    values = (value,) * axes if isinstance(value, int) else (*value,)
    if len(values) != axes:
        raise ValueError(f"{name} must have one number for each of {axes} axes, got {values}")
    return values
