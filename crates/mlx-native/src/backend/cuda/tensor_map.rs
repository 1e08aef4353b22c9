//! Tensor maps: how the bulk copy engine cuts a matrix into boxes.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::check;
use crate::{MlxError, Result};

/// How a tensor map cuts a matrix into boxes, see `cuTensorMapEncodeTiled`; sizes from the fastest dimension on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorMap {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    pub dims: Vec<u64>,
    /// Bytes from one element to the next, of each dimension but the first; multiples of 16.
    pub strides: Vec<u64>,
    pub tile: Vec<u32>,
    /// Whether rows of 128 bytes are swizzled.
    pub swizzled: bool,
}

/// The 128 bytes that a kernel takes for a tensor map.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct EncodedTensorMap(pub sys::CUtensorMap);

impl TensorMap {
    /// `n` rows of `row` bytes behind one another, in boxes of `height` rows of `pitch` bytes; elements of so many bytes.
    pub(crate) fn rows(element_bytes: usize, [row, n]: [usize; 2], [pitch, height]: [usize; 2]) -> TensorMap {
        TensorMap {
            element_bytes: element_bytes as u32,
            dims: vec![(row / element_bytes) as u64, n as u64],
            strides: vec![row as u64],
            tile: vec![(pitch / element_bytes) as u32, height as u32],
            swizzled: false,
        }
    }

    /// The same for each of `count` matrices, `stride` bytes from one to the next.
    pub(crate) fn of_each(mut self, count: usize, stride: usize) -> TensorMap {
        self.dims.push(count as u64);
        self.strides.push(stride as u64);
        self.tile.push(1);
        self
    }

    /// Encodes the map of a matrix at `address`, a multiple of 16.
    pub(super) fn encode(&self, address: u64) -> Result<EncodedTensorMap> {
        use sys::CUtensorMapDataType_enum as Type;
        let rank = self.dims.len();
        if rank == 0 || rank > 5 || self.strides.len() + 1 != rank || self.tile.len() != rank {
            return Err(MlxError::CommandBufferError(format!("cuda: a tensor map of these dimensions: {self:?}")));
        }
        let element = match self.element_bytes {
            1 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            4 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT64,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        };
        let swizzle = if self.swizzled {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        let ones = [1u32; 5];
        // SAFETY: a map is plain data.
        let mut map: EncodedTensorMap = unsafe { std::mem::zeroed() };
        // SAFETY: the arrays have `rank` (strides one less) elements, checked above; the map is written.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                element,
                rank as u32,
                address as *mut c_void,
                self.dims.as_ptr(),
                self.strides.as_ptr(),
                self.tile.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", code).map(|()| map)
    }
}
