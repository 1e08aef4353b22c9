"""Print the grids of the IQ1, IQ2 and IQ3 formats as the Rust tables of crates/mlx-native/src/format/ggml/grids.rs.

    pip install gguf==0.19.0 && python scripts/golden/make_codebooks.py > crates/mlx-native/src/format/ggml/grids.rs

A grid is a list of points whose coordinates take few levels. The tables hold one u16 a point, the coordinate's level index
in `bits` bits, coordinate 0 lowest.
"""

import numpy as np
from gguf import quants

# (Rust name, gguf class, coordinates of a point, bits of a level index)
GRIDS = [
    ("IQ1", quants.IQ1_S, 8, 2),
    ("IQ2_XXS", quants.IQ2_XXS, 8, 2),
    ("IQ2_XS", quants.IQ2_XS, 8, 2),
    ("IQ2_S", quants.IQ2_S, 8, 2),
    ("IQ3_XXS", quants.IQ3_XXS, 4, 3),
    ("IQ3_S", quants.IQ3_S, 4, 3),
]


def main():
    print("//! Points of the IQ1, IQ2 and IQ3 grids, written by scripts/golden/make_codebooks.py.")
    print("//!")
    print("//! One u16 a point: the level index of each coordinate, coordinate 0 in the lowest bits (2 bits a coordinate for")
    print("//! IQ1 and IQ2, 3 for IQ3, whose tables are in octal so that a digit is a coordinate). The levels stand in `codebooks`.")
    for name, cls, dims, bits in GRIDS:
        cls.init_grid()
        grid = cls.grid.reshape(-1, dims)
        levels = {level: index for index, level in enumerate(cls.grid_map)}
        points = [sum(levels[value] << (bits * i) for i, value in enumerate(point)) for point in grid.tolist()]
        print(f"\npub(super) const {name}: [u16; {len(points)}] = [")
        digits = "0x{:04x}" if bits == 2 else "0o{:04o}"
        for start in range(0, len(points), 14):
            print("    " + ", ".join(digits.format(p) for p in points[start : start + 14]) + ",")
        print("];")


if __name__ == "__main__":
    main()
