"""Conversion to a narrower float dtype in one rounding, to the nearest and ties to even.

Torch and numpy convert float64 and int64 to half types by way of float32. That rounds twice, and a
value just above a tie becomes the tie, which then goes the wrong way: 1 + 2⁻⁸ + 2⁻⁴⁰ becomes 1.0 in
bfloat16, though 1.0078125 is nearer. Rounding to odd on the way keeps the tie broken (Boldo and
Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57(4), 2008): the
wider format has more than two further bits, so the second rounding gives what one would have.
"""

import torch

_WIDE_INTEGERS = (torch.int64, torch.uint64)


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` (real numbers of any dtype) in a float dtype, each the nearest there is.

    What is too large becomes infinity, or what the dtype has in its place.
    """
    if values.dtype == dtype or not dtype.is_floating_point or values.is_complex():
        return values.to(dtype)
    if values.dtype in _WIDE_INTEGERS and dtype.itemsize < 8:
        values = _integers_to_odd(values)
    elif dtype.itemsize < 4 and not values.dtype.is_floating_point:
        values = values.to(torch.float64)
    if values.dtype == torch.float64 and dtype.itemsize < 4:
        values = _to_odd_float32(values)
    return values.to(dtype)


def _to_odd_float32(wide: torch.Tensor) -> torch.Tensor:
    """float64 to float32: cut off towards zero, and the last bit set where anything was cut."""
    near = wide.to(torch.float32)
    back = near.to(torch.float64)
    bits = near.view(torch.int32)
    bits.sub_((back.abs() > wide.abs()).to(torch.int32))
    bits.bitwise_or_((back != wide).to(torch.int32))
    return near


def _integers_to_odd(values: torch.Tensor) -> torch.Tensor:
    """64-bit integers to float64, rounded to odd."""
    # Both halves are exact in float64, and the low one is less than the high one's last bit
    # wherever their sum is not.
    if values.dtype == torch.uint64:
        signed = values.view(torch.int64)
        high = (signed >> 32).bitwise_and(0xFFFFFFFF)
    else:
        signed = values
        high = signed >> 32
    low = signed.bitwise_and(0xFFFFFFFF).to(torch.float64)
    top = high.to(torch.float64) * 2.0**32
    total = top + low
    # Knuth's two-sum: what the rounded sum lacks, exactly.
    part = total - top
    lost = (top - (total - part)) + (low - part)
    bits = total.view(torch.int64)
    # `lost` and the sum point apart where the sum was rounded away from zero.
    away = (lost != 0) & ((lost > 0) != (total > 0))
    bits.sub_(away.to(torch.int64))
    bits.bitwise_or_((lost != 0).to(torch.int64))
    return total
