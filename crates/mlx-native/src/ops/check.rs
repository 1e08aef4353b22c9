//! Arithmetic on sizes that cannot overflow, and the errors of operands that do not fit.

use crate::{DType, MlxError, Result};

/// `InvalidArgument` with this message.
pub(crate) fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(MlxError::InvalidArgument(message.into()))
}

/// The product of dimensions; overflow is `InvalidArgument` that shows them.
pub(crate) fn product(what: &str, dims: &[usize]) -> Result<usize> {
    let product = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    // isize::MAX bounds every allocation, and byte offsets stay representable as signed numbers.
    match product {
        Some(product) if product <= isize::MAX as usize / 8 => Ok(product),
        _ => invalid(format!("{what}: the product of {dims:?} overflows")),
    }
}

/// Bytes of a dense array.
pub(crate) fn bytes(what: &str, dims: &[usize], dtype: DType) -> Result<usize> {
    Ok(product(what, dims)? * dtype.size_of())
}

/// Every dimension is at least 1.
pub(crate) fn non_zero(op: &str, dims: &[(&str, usize)]) -> Result<()> {
    match dims.iter().find(|(_, value)| *value == 0) {
        None => Ok(()),
        Some((name, _)) => invalid(format!("{op}: {name} must not be 0")),
    }
}

/// The operand has this dtype.
pub(crate) fn dtype(op: &str, name: &str, buffer: &crate::MlxBuffer, expected: DType) -> Result<()> {
    if buffer.dtype() == expected {
        return Ok(());
    }
    invalid(format!("{op}: {name} must be {expected}, got {}", buffer.dtype()))
}

/// The operand has one of these dtypes.
pub(crate) fn dtype_in(op: &str, name: &str, buffer: &crate::MlxBuffer, expected: &[DType]) -> Result<()> {
    if expected.contains(&buffer.dtype()) {
        return Ok(());
    }
    let names: Vec<&str> = expected.iter().map(|dtype| dtype.name()).collect();
    invalid(format!("{op}: {name} must be {}, got {}", names.join(" or "), buffer.dtype()))
}
