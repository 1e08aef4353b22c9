//! Products of one row with what a layer has around them: a residual that the product before is added to, the norm, the activation.

use super::columns::{Columns, EXACT_ROWS, Part};
use super::matmul::route;
use super::matvec::{self, Group, Residual};
use super::{MATRICES, Product, Rows};
use crate::Result;
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::{Bound, Plan, Planner};
use crate::ops::{Activation, Matmul, RmsNorm};

/// Operations that follow one another, each reading what the one before wrote.
pub(in crate::backend::cuda) struct Chain<'a> {
    /// A product that the norm adds to its input.
    pub before: Option<&'a Matmul>,
    pub norm: Option<&'a RmsNorm>,
    /// One to three products of one input.
    pub products: &'a [&'a Matmul],
    pub activation: Option<Activation>,
}

impl Chain<'_> {
    /// Two launches, or one where nothing comes before; none where these kernels do not take all of it. `args` are the portable arguments of the
    /// first product, the one before included.
    pub(in crate::backend::cuda) fn plan(&self, planner: &Planner<'_>, args: &ProductArgs) -> Result<Option<Plan>> {
        let by_rows = |op: &Matmul| route(op, planner) == Some(true);
        let [first, ..] = self.products else { return Ok(None) };
        if self.products.len() > MATRICES || !self.products.iter().chain(&self.before).all(|op| by_rows(op)) {
            return Ok(None);
        }
        let Some(part) = Part::all(first.m, planner.options).next() else { return Ok(None) };
        // A norm is of one row that is alone in the columns.
        let suits = if self.norm.is_some() || self.before.is_some() {
            part.columns == Columns::One && first.m == 1
        } else {
            part.invariant || first.m <= EXACT_ROWS
        };
        if !suits {
            return Ok(None);
        }
        let mut plan = Plan::default();
        if let (Some(before), Some(norm)) = (self.before, self.norm) {
            let Some(sum) = &norm.sum else { return Ok(None) };
            let Some(product) = Product::of(before, planner) else { return Ok(None) };
            let input = Rows::of(&before.input, before.m, args, &mut plan)?;
            let residual = Residual { input: &norm.input, sum };
            let Some(launch) = matvec::launch(&product, &input, &before.output, part, Some(residual))? else {
                return Ok(None);
            };
            plan.launches.push(launch);
        }
        let input = match self.norm {
            Some(norm) => {
                let source = norm.sum.as_ref().unwrap_or(&norm.input);
                if [source, &norm.weight].iter().any(|view| !view.offset.is_multiple_of(16)) {
                    return Ok(None);
                }
                Rows { at: Bound::view(source), stride: first.k as u64 }
            }
            None => Rows::of(&first.input, first.m, args, &mut plan)?,
        };
        let Some(products) = self.products.iter().map(|op| Product::of(op, planner)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let outputs: Vec<_> = self.products.iter().map(|op| &op.output).collect();
        let group = Group { products: &products, outputs: &outputs, norm: self.norm, activation: self.activation };
        for part in Part::all(first.m, planner.options) {
            let Some(launch) = group.launch(&input, part)? else { return Ok(None) };
            if part.first > 0 {
                // The launch before reads the same weights again.
                plan.launches.iter_mut().for_each(|launch| launch.products = 0);
            }
            plan.launches.push(launch);
        }
        Ok(Some(plan))
    }
}
