"""Quantisation: weights as small whole numbers, each with its share of a scale.

    8 bits   w ~ scale * code              code in -127 ... 127   one scale for each output row
    4 bits   w ~ lowest + step * code      code in 0 ... 15       one lowest and one step for each group of a row

Rounding moves a weight by at most half a step, so the error of an output is at most sum_i |x_i| * step / 2: the bounds
that `rounding_bound` returns. Generation reads every weight once for each token and waits for the memory, so a quarter
of the bytes is up to four times the speed.

The functions are the definitions. The layers call torch's fused kernels where there is one (on the CPU: activations in
bfloat16, sums in float32) and follow the definition elsewhere.

Sources: Jacob et al. 2018 (weights as whole numbers with a scale), Dettmers et al. 2022 (one scale for each row).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from llm_core.compression.replace import Model, replace_layers
from llm_core.layers.embedding import TokenEmbedding


def quantize_int8(weight: Float[Tensor, "O I"]) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Codes and scales with weight ~ codes * scale[:, None]; no weight moves by more than scale / 2.

    The largest weight of a row gets code 127 or -127. A row of zeros has scale 1.

    Raises:
        ValueError: a weight is not finite, or not a floating-point number.

    >>> codes, scale = quantize_int8(torch.tensor([[1.27, -0.30]]))
    >>> codes, scale
    (tensor([[127, -30]], dtype=torch.int8), tensor([0.0100]))
    """
    _check_weights(weight)
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (weight / scale[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def quantize_int4(
    weight: Float[Tensor, "O I"], group: int
) -> tuple[UInt8[Tensor, "O I"], Float[Tensor, "O groups"], Float[Tensor, "O groups"]]:
    """Codes 0 ... 15, steps and lowest values, one pair for each `group` weights of a row.

    No weight moves by more than step / 2. The code of a weight is how many steps it lies above the lowest of its
    group. A group of equal weights has step 1.

    Raises:
        ValueError: a weight is not finite or not a floating-point number, or the group does not divide I.
    """
    _check_weights(weight)
    _check_group(weight.shape[1], group)
    groups = weight.unflatten(1, (-1, group))
    lowest, highest = groups.amin(dim=2), groups.amax(dim=2)
    step = (highest - lowest) / 15
    step = torch.where(step > 0, step, 1.0)
    codes = ((groups - lowest[..., None]) / step[..., None]).round().clamp(0, 15)
    return codes.flatten(1).to(torch.uint8), step, lowest


def dequantize_int4(
    codes: UInt8[Tensor, "O I"], step: Float[Tensor, "O groups"], lowest: Float[Tensor, "O groups"]
) -> Float[Tensor, "O I"]:
    """lowest + step * code, group by group."""
    groups = codes.unflatten(1, (step.shape[1], -1))
    return (lowest[..., None] + step[..., None] * groups).flatten(1)


def pack_int4(codes: UInt8[Tensor, "O I"]) -> UInt8[Tensor, "O I2"]:
    """Two codes to a byte: code 2i in the low four bits, code 2i + 1 in the high four.

    >>> pack_int4(torch.tensor([[1, 15]], dtype=torch.uint8))
    tensor([[241]], dtype=torch.uint8)
    """
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_int4(packed: UInt8[Tensor, "O I2"]) -> UInt8[Tensor, "O I"]:
    """The codes that `pack_int4` put together."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def rounding_bound(x: Float[Tensor, "*batch I"], step: Float[Tensor, "O groups"]) -> Float[Tensor, "*batch O"]:
    """How far rounding the weights can move each output: sum_i |x_i| * step / 2.

    `step` is that of the codes, one for each row (`scale[:, None]`) or for each group of a row.
    """
    size = x.abs().unflatten(-1, (step.shape[1], -1)).sum(dim=-1)  # (..., groups)
    return size @ step.T / 2


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights; a quarter of the memory of float32.

    Only the weights are quantised. On the CPU torch's kernel reads them as they are and takes x in bfloat16, whose
    rounding adds at most 2^-8 of sum_i |x_i w_i| or so to `rounding_bound`.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, codes: Int8[Tensor, "O I"], scale: Float[Tensor, " O"], bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The 8-bit copy of a linear layer."""
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(*quantize_int8(linear.weight.detach()), bias)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """x times the transposed weights, plus the bias."""
        y = int8_product(x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias

    def dequantized(self) -> Float[Tensor, "O I"]:
        """The weights that the codes stand for."""
        return self.codes * self.scale[:, None]


class Int8Embedding(nn.Module):
    """A token embedding, and with it a tied output head, with 8-bit vectors."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Int8[Tensor, "V D"], scale: Float[Tensor, " V"]) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, embedding: TokenEmbedding) -> Int8Embedding:
        """The 8-bit copy of an embedding."""
        return cls(*quantize_int8(embedding.weight.detach()))

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of the tokens.

        Raises:
            ValueError: an id is no token.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.codes):
            tokens = f"0 ... {len(self.codes) - 1}"
            raise ValueError(f"ids must be tokens, {tokens}: got {ids.min().item()} to {ids.max().item()}")
        return self.codes[ids] * self.scale[ids][..., None]

    def logits(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """How well each vector fits each token: the tied output head."""
        return int8_product(x, self.codes, self.scale)


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights in groups, two to a byte.

    With the two numbers of each group, in float32, that is 6 bits a weight in groups of 32 and 5 in groups of 64: less
    than a fifth of the memory of float32.

    The product follows the definition: the weights are unpacked for each call. `for_generation` gives the layer
    that torch's CPU kernel runs, which is quick, and of one machine: it cannot be saved.
    """

    packed: Tensor
    step: Tensor
    lowest: Tensor
    bias: Tensor | None

    def __init__(
        self,
        packed: UInt8[Tensor, "O I2"],
        step: Float[Tensor, "O groups"],
        lowest: Float[Tensor, "O groups"],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape[0], 2 * packed.shape[1]
        self.register_buffer("packed", packed)
        self.register_buffer("step", step)
        self.register_buffer("lowest", lowest)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear, group: int = 32) -> Int4Linear:
        """The 4-bit copy of a linear layer.

        Raises:
            ValueError: the group does not divide the layer's input width.
        """
        codes, step, lowest = quantize_int4(linear.weight.detach(), group)
        return cls(pack_int4(codes), step, lowest, None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """x times the transposed weights, plus the bias."""
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)

    def dequantized(self) -> Float[Tensor, "O I"]:
        """The weights that the codes stand for."""
        return dequantize_int4(unpack_int4(self.packed), self.step, self.lowest)

    def for_generation(self) -> FusedInt4Linear:
        """The same layer in the form that torch's CPU kernel reads.

        Raises:
            ValueError: the kernel cannot take it: an output width that is no multiple of 16, or another group than
                32, 64, 128 or 256.
        """
        return FusedInt4Linear(self)


class FusedInt4Linear(nn.Module):
    """`Int4Linear` on torch's CPU kernel: the weights stay packed, x and the groups' steps are taken in bfloat16."""

    def __init__(self, layer: Int4Linear) -> None:
        super().__init__()
        group = 2 * layer.packed.shape[1] // layer.step.shape[1]
        _check_kernel(layer.packed.shape[0], group)
        codes = unpack_int4(layer.packed).to(torch.int32)
        self.out_features, self.in_features = codes.shape
        self.group = group
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        # The kernel computes (code - 8) * step + middle.
        middle = layer.lowest + 8 * layer.step
        self._steps = torch.stack([layer.step.T, middle.T], dim=-1).contiguous().to(torch.bfloat16)
        self._bias = layer.bias

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """x times the transposed weights, plus the bias."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._packed, self.group, self._steps)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self._bias is None else y + self._bias


def to_8bit(layer: nn.Module) -> nn.Module:
    """The 8-bit copy of a linear layer or a token embedding; any other layer as it is.

    For loaders that convert each layer as soon as it is read: `load_smollm2(convert=to_8bit)`.
    """
    if isinstance(layer, nn.Linear):
        return Int8Linear.of(layer)
    return Int8Embedding.of(layer) if isinstance(layer, TokenEmbedding) else layer


def to_4bit(layer: nn.Module) -> nn.Module:
    """The 4-bit copy of a linear layer, in groups of 32, and the 8-bit copy of a token embedding; else the layer.

    For loaders, as `to_8bit`: `load_smollm2(convert=to_4bit)`.

    Raises:
        ValueError: 32 does not divide the layer's input width.
    """
    if isinstance(layer, nn.Linear):
        return Int4Linear.of(layer)
    return Int8Embedding.of(layer) if isinstance(layer, TokenEmbedding) else layer


def quantize_8bit(model: Model) -> Model:
    """Give every linear layer and token embedding of a model 8-bit weights, in place, one layer after the other."""
    return replace_layers(model, Int8Linear.of, Int8Embedding.of)


def quantize_4bit(model: Model, *, group: int = 32, for_generation: bool = False) -> Model:
    """Give every linear layer of a model 4-bit weights, and every token embedding 8-bit ones, in place.

    The embedding is looked up and is the output head too; four bits cost it the most quality for the least memory.

    Args:
        group: weights that share a step. Smaller is closer and larger.
        for_generation: in the form that torch's CPU kernel reads, which is quick and cannot be saved.

    Raises:
        ValueError: a layer's input width is no multiple of the group, or the kernel cannot take it. The model is then
            as it was.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _check_group(module.in_features, group)
            if for_generation:
                _check_kernel(module.out_features, group)

    def linear(layer: nn.Linear) -> nn.Module:
        quantized = Int4Linear.of(layer, group)
        return quantized.for_generation() if for_generation else quantized

    return replace_layers(model, linear, Int8Embedding.of)


def int8_product(
    x: Float[Tensor, "*batch I"], codes: Int8[Tensor, "O I"], scale: Float[Tensor, " O"]
) -> Float[Tensor, "*batch O"]:
    """x @ (codes * scale)^T. On the CPU, and where no gradient is wanted, by torch's kernel, which takes bfloat16.

    Of a row whose width is no multiple of 16 the kernel reads more than there is, so it is not asked then.
    """
    if x.device.type != "cpu" or x.shape[-1] % 16 or (x.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    # The scale is applied here and not in the kernel, which would round it to bfloat16.
    y = torch.ops.aten._weight_int8pack_mm(rows, codes, _ones(len(scale)))
    return (y.to(x.dtype) * scale).view(*x.shape[:-1], -1)


@lru_cache(maxsize=64)
def _ones(n: int) -> Tensor:
    """Scales that change nothing. Made once for each width: it would be a quarter of the time of a small layer."""
    return torch.ones(n, dtype=torch.bfloat16)


def _check_weights(weight: Tensor) -> None:
    if not weight.is_floating_point():
        raise ValueError(f"weights must be floating-point numbers to be given a scale: got {weight.dtype}")
    if not weight.isfinite().all():
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} weights are not finite: there is no scale for infinity or NaN")


def _check_group(width: int, group: int) -> None:
    if group < 2 or group % 2 or width % group:
        raise ValueError(
            f"a group is an even number that divides the input width: got a group of {group}, a width of {width}"
        )


def _check_kernel(width: int, group: int) -> None:
    if width % 16 or group not in (32, 64, 128, 256):
        raise ValueError(
            "torch's 4-bit kernel takes an output width that is a multiple of 16 and groups of 32, 64, 128 or 256: got "
            f"a width of {width} and groups of {group}. Int4Linear without the kernel takes any"
        )
