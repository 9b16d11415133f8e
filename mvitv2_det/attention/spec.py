"""The options of one attention module, in one place.

Axes: H × W tokens, C channels, D = C / h channels for each of h heads.
"""

from dataclasses import dataclass

from .position import RELATIVE, TERMS


@dataclass(frozen=True)
class AttentionSpec:
    """What a :class:`~mvitv2_det.attention.multiscale.MultiScaleAttention` consists of.

    A kind of attention is two choices: how far q, k and v are pooled, and where the windows lie.
    Without pooling it is the attention of a plain transformer; Table 4 compares the kinds.

    Attributes:
        dim: channels coming in.
        dim_out: channels inside and going out.
        num_heads: attention heads; must divide ``dim_out``.
        qkv_bias: whether the q, k, v projection has a bias.
        pool_q, pool_kv: whether queries, and keys and values, are pooled and normalised at all.
        pool_kernel: kernel of the pooling convolutions.
        stride_q, stride_kv: strides of the query pooling, and of the key and value pooling.
        residual_pooling: whether the query, pooled or not, is added to the output (Eq. 5).
        window_size: side of the windows in incoming tokens; 0 attends over the whole map.
        shift: incoming tokens by which the windows are shifted (Swin); 0 leaves them in place.
        mask_window_padding: whether the zeros that complete windows are hidden from the queries
            of the map. Detectron2's MViT, and so every released weight, lets them be seen.
        use_rel_pos: whether there are relative position tables.
        rel_pos_kind: ``"decomposed"``, one table per axis (Eq. 4), or ``"joint"``, one table for
            all axes (Table 6).
        rel_pos_terms: which of ``"q"``, ``"k"`` and ``"v"`` have relative position tables
            (appendix A.4).
        rel_pos_zero_init: whether the tables start at zero; otherwise they start from a truncated
            normal distribution of standard deviation 0.02.
        table_size: side of the token grid, before pooling, that the tables are made for.

    Raises:
        ValueError: a value is none of those above, a stride is given without pooling, or the
            heads do not divide the channels.
    """

    dim: int = 96
    dim_out: int = 96
    num_heads: int = 1
    qkv_bias: bool = True
    pool_q: bool = True
    pool_kv: bool = True
    pool_kernel: tuple[int, int] = (3, 3)
    stride_q: int = 1
    stride_kv: int = 1
    residual_pooling: bool = True
    window_size: int = 0
    shift: int = 0
    mask_window_padding: bool = False
    use_rel_pos: bool = True
    rel_pos_kind: str = "decomposed"
    rel_pos_terms: tuple[str, ...] = ("q",)
    rel_pos_zero_init: bool = True
    table_size: int = 56

    def __post_init__(self) -> None:
        for name, stride, pooled in (
            ("q", self.stride_q, self.pool_q),
            ("kv", self.stride_kv, self.pool_kv),
        ):
            if stride > 1 and not pooled:
                raise ValueError(f"stride_{name} = {stride} needs pool_{name}=True")
        if self.dim_out % self.num_heads:
            raise ValueError(
                f"dim_out must be divisible by num_heads, got {self.dim_out} and {self.num_heads}"
            )
        if self.rel_pos_kind not in RELATIVE:
            raise ValueError(
                f"rel_pos_kind must be {' or '.join(RELATIVE)}, got {self.rel_pos_kind!r}"
            )
        terms = self.rel_pos_terms
        if not terms or set(terms) - set(TERMS) or len(set(terms)) < len(terms):
            raise ValueError(
                f"rel_pos_terms must be some of {', '.join(TERMS)}, each once, got {list(terms)}; "
                f"use_rel_pos=False goes without"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head, D."""
        return self.dim_out // self.num_heads

    @property
    def scale(self) -> float:
        """The factor of the content logits, D^-½ (Eq. 1)."""
        return self.head_dim**-0.5

    @property
    def position_terms(self) -> tuple[str, ...]:
        """The terms that have tables; empty without relative positions."""
        return self.rel_pos_terms if self.use_rel_pos else ()
