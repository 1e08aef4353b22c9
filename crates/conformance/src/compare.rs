//! Whether a result is right.

use mlx_native::{Activations, DType, DeviceKind, DeviceOptions};

use crate::Array;

/// How far a result may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not at all (a NaN may be any NaN).
    Equal,
    /// Σ(out − ref)² ≤ bound · Σref²
    Nmse(f64),
    /// Within one bf16 ulp for 99.9 % of the values, and Σ(out − ref)² ≤ 2e-5 · Σref². Where a sum nearly cancels, f32 accumulation alone is more than an ulp
    /// of the result off; so one such value is allowed in fewer than 1000 too, and the second condition says how far off it may be.
    Bf16Ulp,
}

/// The NMSE allowed to bf16 operands.
const BF16: f64 = 2e-5;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Σ(out − ref)² / Σref²
    pub nmse: f64,
    /// The largest |out − ref|.
    pub max_abs: f64,
}

/// What products a bound is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// A product of so many rows with a weight: f16 operands on GPUs, 8-bit activations by option.
    Product {
        /// Input rows.
        m: usize,
        /// Element type of the output.
        output: DType,
    },
    /// Attention: f16 operands on GPUs.
    Attention,
    /// Everything else that computes.
    Float,
    /// Copies, conversions and indices.
    Exact,
}

/// The accuracy table of the operations' contract.
pub fn bound(precision: Precision, kind: DeviceKind, options: &DeviceOptions) -> Bound {
    const EXACT: Bound = Bound::Nmse(1e-10);
    const HALF: Bound = Bound::Nmse(1e-6);
    const Q8: Bound = Bound::Nmse(1e-4);
    let gpu = matches!(kind, DeviceKind::Cuda | DeviceKind::Metal);
    let half_allowed = gpu && options.activations != Activations::Exact;
    match precision {
        Precision::Exact => Bound::Equal,
        Precision::Float => EXACT,
        Precision::Attention if half_allowed => HALF,
        Precision::Attention => EXACT,
        Precision::Product { .. } if options.activations == Activations::Q8 && kind != DeviceKind::Reference => Q8,
        // f16 operands move a sum by more than an ulp of bf16 where it cancels.
        Precision::Product { m, output: DType::BF16, .. } if half_allowed && m > 4 => Bound::Nmse(BF16),
        Precision::Product { output: DType::BF16, .. } => Bound::Bf16Ulp,
        // All numbers of rows have the kernel of verify batches then.
        Precision::Product { .. } if half_allowed && options.batch_invariant && kind == DeviceKind::Cuda => HALF,
        Precision::Product { m, .. } if half_allowed && m > 4 => HALF,
        Precision::Product { .. } => EXACT,
    }
}

/// How far `found` is from `expected`.
///
/// # Errors
///
/// What is wrong with it, when it is not within the bound. A value that is not finite in the reference must not be finite, any other must be.
pub fn compare(found: &Array, expected: &Array, bound: Bound) -> Result<Difference, String> {
    if found.dtype != expected.dtype || found.len() != expected.len() {
        let (have, want) = ((found.len(), found.dtype), (expected.len(), expected.dtype));
        return Err(format!("{} {} where {} {} are expected", have.0, have.1, want.0, want.1));
    }
    let (out, reference) = (found.values(), expected.values());
    if bound == Bound::Equal {
        return equal(found, expected, &out, &reference);
    }
    let (mut errors, mut energy, mut worst, mut beyond_ulp) = (0.0, 0.0, (0, 0.0f64), 0);
    for (i, (&out, &reference)) in out.iter().zip(&reference).enumerate() {
        if out.is_finite() != reference.is_finite() {
            return Err(format!("value {i} of {}: expected {reference:e}, got {out:e}", found.len()));
        }
        if reference.is_finite() {
            let error = out - reference;
            errors += error * error;
            energy += reference * reference;
            if error.abs() > worst.1 {
                worst = (i, error.abs());
            }
            beyond_ulp += usize::from(error.abs() > bf16_ulp(reference));
        }
    }
    let nmse = if errors == 0.0 { 0.0 } else { errors / energy };
    let show = || {
        format!("the largest error is at value {}: expected {:e}, got {:e}", worst.0, reference[worst.0], out[worst.0])
    };
    let beyond = |limit: f64| Err(format!("NMSE {nmse:.2e} exceeds {limit:e} over {} values; {}", found.len(), show()));
    match bound {
        Bound::Nmse(limit) if nmse.is_nan() || nmse > limit => beyond(limit),
        Bound::Bf16Ulp if nmse.is_nan() || nmse > BF16 => beyond(BF16),
        Bound::Bf16Ulp if beyond_ulp > found.len().div_ceil(1000) => {
            Err(format!("{beyond_ulp} of {} values are more than a bf16 ulp off; {}", found.len(), show()))
        }
        _ => Ok(Difference { nmse, max_abs: worst.1 }),
    }
}

fn equal(found: &Array, expected: &Array, out: &[f64], reference: &[f64]) -> Result<Difference, String> {
    let size = found.dtype.size_of();
    let pairs = found.bytes.chunks_exact(size).zip(expected.bytes.chunks_exact(size)).zip(out.iter().zip(reference));
    for (i, ((a, b), (out, reference))) in pairs.enumerate() {
        if a != b && !(out.is_nan() && reference.is_nan()) {
            return Err(format!("value {i} of {}: expected {reference:e}, got {out:e}", found.len()));
        }
    }
    Ok(Difference::default())
}

/// The distance between the bf16 numbers around `x`.
fn bf16_ulp(x: f64) -> f64 {
    let exponent = if x == 0.0 { -126 } else { (x.abs().log2().floor() as i32).max(-126) };
    2f64.powi(exponent - 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(values: &[f32]) -> Array {
        Array::floats(DType::F32, values)
    }

    #[test]
    fn errors_are_measured_against_the_reference() {
        let difference = compare(&array(&[3.0, 4.5]), &array(&[3.0, 4.0]), Bound::Nmse(0.1)).unwrap();
        assert_eq!(difference, Difference { nmse: 0.01, max_abs: 0.5 });
        let message = compare(&array(&[3.0, 4.5]), &array(&[3.0, 4.0]), Bound::Nmse(0.001)).unwrap_err();
        assert!(message.contains("1.00e-2") && message.contains("value 1"), "{message}");
        assert!(compare(&array(&[0.0]), &array(&[0.0]), Bound::Nmse(0.0)).is_ok());
        assert!(compare(&array(&[1e-30]), &array(&[0.0]), Bound::Nmse(1e-4)).is_err());
    }

    #[test]
    fn only_what_is_not_finite_may_be_not_finite() {
        for bound in [Bound::Nmse(1.0), Bound::Bf16Ulp, Bound::Equal] {
            assert!(compare(&array(&[f32::NAN]), &array(&[1.0]), bound).is_err());
            assert!(compare(&array(&[1.0]), &array(&[f32::INFINITY]), bound).is_err());
            assert!(compare(&array(&[f32::NAN]), &array(&[f32::NAN]), bound).is_ok());
        }
    }

    #[test]
    fn one_bf16_ulp_in_999_of_1000() {
        let reference: Vec<f32> = (0..2000).map(|i| 1.0 + i as f32).collect();
        let mut out = reference.clone();
        out[0] += 1.0;
        out[1] += 1.0;
        assert!(compare(&array(&out), &array(&reference), Bound::Bf16Ulp).is_ok());
        out[2] += 1.0;
        assert!(compare(&array(&out), &array(&reference), Bound::Bf16Ulp).is_err());
        assert!(compare(&array(&[1.004, 256.0]), &array(&[1.0, 256.0]), Bound::Bf16Ulp).is_ok());
        assert!(compare(&array(&[1.01, 256.0]), &array(&[1.0, 256.0]), Bound::Bf16Ulp).is_ok());
        assert!(compare(&array(&[1.01]), &array(&[1.0]), Bound::Bf16Ulp).is_err());
    }

    #[test]
    fn lengths_and_types_agree() {
        assert!(compare(&array(&[1.0]), &array(&[1.0, 2.0]), Bound::Equal).is_err());
        assert!(compare(&array(&[1.0]), &Array::words(&[1]), Bound::Equal).is_err());
        assert!(compare(&Array::words(&[7]), &Array::words(&[8]), Bound::Equal).is_err());
    }

    #[test]
    fn bounds_follow_the_accuracy_table() {
        let product = |m, output| Precision::Product { m, output };
        let of =
            |precision, kind, activations| bound(precision, kind, &DeviceOptions { activations, ..Default::default() });
        use Activations::{Auto, Exact, Q8};
        assert_eq!(of(product(100, DType::F32), DeviceKind::Cpu, Auto), Bound::Nmse(1e-10));
        assert_eq!(of(product(1, DType::F32), DeviceKind::Cpu, Q8), Bound::Nmse(1e-4));
        assert_eq!(of(product(4, DType::F32), DeviceKind::Cuda, Auto), Bound::Nmse(1e-10));
        assert_eq!(of(product(5, DType::F32), DeviceKind::Metal, Auto), Bound::Nmse(1e-6));
        assert_eq!(of(product(5, DType::F32), DeviceKind::Metal, Exact), Bound::Nmse(1e-10));
        assert_eq!(of(product(1, DType::BF16), DeviceKind::Cpu, Auto), Bound::Bf16Ulp);
        let invariant = |m, kind, activations| {
            let options = DeviceOptions { activations, batch_invariant: true, ..Default::default() };
            bound(product(m, DType::F32), kind, &options)
        };
        assert_eq!([1, 33].map(|m| invariant(m, DeviceKind::Cuda, Auto)), [Bound::Nmse(1e-6); 2]);
        assert_eq!([1, 33].map(|m| invariant(m, DeviceKind::Cuda, Exact)), [Bound::Nmse(1e-10); 2]);
        assert_eq!(invariant(1, DeviceKind::Metal, Auto), Bound::Nmse(1e-10));
        assert_eq!(invariant(1, DeviceKind::Cpu, Auto), Bound::Nmse(1e-10));
        assert_eq!(of(Precision::Float, DeviceKind::Cuda, Auto), Bound::Nmse(1e-10));
        assert_eq!(of(Precision::Exact, DeviceKind::Cpu, Q8), Bound::Equal);
    }
}
