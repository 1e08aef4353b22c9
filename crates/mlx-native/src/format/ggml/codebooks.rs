//! The codebooks: what an index stands for, once for the CPU and for the text of every GPU kernel.

use super::grids;

/// IQ4_NL and IQ4_XS: the sixteen values of a 4-bit index.
pub static IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// MXFP4 and NVFP4: twice the E2M1 value of a 4-bit code, so that it is an integer. Code 8 is minus zero; GGML reads it as 0.
pub static E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// IQ2_XXS, IQ2_XS and IQ3_XXS: the eight signs (bit i set: value i is negative) that seven stored bits stand for.
/// The eighth sign makes the number of negative values even.
pub static EVEN_SIGNS: [u8; 128] = even_signs();

/// IQ1_S and IQ1_M: points of {−1, 0, 1}⁸.
pub static IQ1_GRID: [[i8; 8]; 2048] = expand(&grids::IQ1, [-1, 0, 1, 0]);
/// IQ2_XXS: magnitudes of 8 values.
pub static IQ2_XXS_GRID: [[i8; 8]; 256] = expand(&grids::IQ2_XXS, IQ2_LEVELS);
/// IQ2_XS: magnitudes of 8 values.
pub static IQ2_XS_GRID: [[i8; 8]; 512] = expand(&grids::IQ2_XS, IQ2_LEVELS);
/// IQ2_S: magnitudes of 8 values.
pub static IQ2_S_GRID: [[i8; 8]; 1024] = expand(&grids::IQ2_S, IQ2_LEVELS);
/// IQ3_XXS: magnitudes of 4 values.
pub static IQ3_XXS_GRID: [[i8; 4]; 256] = expand(&grids::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);
/// IQ3_S: magnitudes of 4 values.
pub static IQ3_S_GRID: [[i8; 4]; 512] = expand(&grids::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

/// Three levels; the fourth index of the 2-bit field does not occur.
const IQ2_LEVELS: [i8; 4] = [8, 25, 43, 0];

/// IQ1_S and IQ1_M shift every grid coordinate by this much, up or down.
pub const IQ1_DELTA: f32 = 0.125;

const fn even_signs() -> [u8; 128] {
    let mut signs = [0; 128];
    let mut i = 0;
    while i < 128 {
        signs[i] = i as u8 | ((i.count_ones() as u8 & 1) << 7);
        i += 1;
    }
    signs
}

/// The coordinates of packed grid points; a level index takes as many bits as there are `levels` (a power of two).
const fn expand<const DIMS: usize, const POINTS: usize, const LEVELS: usize>(
    packed: &[u16; POINTS],
    levels: [i8; LEVELS],
) -> [[i8; DIMS]; POINTS] {
    let bits = LEVELS.trailing_zeros() as usize;
    let mut grid = [[0; DIMS]; POINTS];
    let mut point = 0;
    while point < POINTS {
        let mut i = 0;
        while i < DIMS {
            grid[point][i] = levels[(packed[point] as usize >> (bits * i)) % LEVELS];
            i += 1;
        }
        point += 1;
    }
    grid
}

/// A codebook that a format's kernels read, as the renderer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The name in rendered source: `IQ4_VALUES`.
    pub name: &'static str,
    /// The values.
    pub data: TableData,
}

/// The values of a [`Table`].
#[derive(Clone, Copy, Debug)]
pub enum TableData {
    /// One number.
    Scalar(f32),
    /// A plain list of signed bytes.
    I8(&'static [i8]),
    /// A plain list of unsigned bytes.
    U8(&'static [u8]),
    /// Points of four coordinates.
    I8x4(&'static [[i8; 4]]),
    /// Points of eight coordinates.
    I8x8(&'static [[i8; 8]]),
}

/// Every codebook.
pub static TABLES: [Table; 10] = [
    Table { name: "IQ4_VALUES", data: TableData::I8(&IQ4_VALUES) },
    Table { name: "E2M1_DOUBLED", data: TableData::I8(&E2M1_DOUBLED) },
    Table { name: "EVEN_SIGNS", data: TableData::U8(&EVEN_SIGNS) },
    Table { name: "IQ1_DELTA", data: TableData::Scalar(IQ1_DELTA) },
    Table { name: "IQ1_GRID", data: TableData::I8x8(&IQ1_GRID) },
    Table { name: "IQ2_XXS_GRID", data: TableData::I8x8(&IQ2_XXS_GRID) },
    Table { name: "IQ2_XS_GRID", data: TableData::I8x8(&IQ2_XS_GRID) },
    Table { name: "IQ2_S_GRID", data: TableData::I8x8(&IQ2_S_GRID) },
    Table { name: "IQ3_XXS_GRID", data: TableData::I8x4(&IQ3_XXS_GRID) },
    Table { name: "IQ3_S_GRID", data: TableData::I8x4(&IQ3_S_GRID) },
];
