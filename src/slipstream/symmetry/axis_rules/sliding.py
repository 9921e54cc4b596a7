"""Operators that mix neighbouring places of a map: pooling, interpolation."""

from slipstream.symmetry.atoms import Layout
from slipstream.symmetry.axis_rules.registry import Call, rule


@rule("max_pool1d max_pool2d max_pool3d")
@rule("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices")
@rule("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
@rule("avg_pool1d avg_pool2d avg_pool3d", signs=True)
@rule("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", signs=True)
@rule("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d", signs=True)
@rule("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", signs=True)
@rule("upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d", signs=True)
@rule("upsample_bicubic2d _upsample_bicubic2d_aa", signs=True)
def window(call: Call) -> Layout | list[Layout]:
    """The last axes are places of a map, the ones before go along."""
    axes = call.axes("self", "input")
    rank = next(int(letter) for letter in call.operator if letter.isdigit())
    for axis in axes[-rank:]:
        call.pin(axis, "a window slides along this axis")
    result = axes[:-rank] + call.places(call.shapes[0][-rank:])
    return result if len(call.shapes) == 1 else [result] * len(call.shapes)
