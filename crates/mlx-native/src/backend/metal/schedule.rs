//! From a list of operations to stages of launches: what may overlap, and which memory each operation has for itself.

use std::ops::Range;

use super::launches::{self, Access, Bound, Fault, Launch, Routing, fuse};
use crate::backend::CommandList;
use crate::{MlxError, Result};

/// Offsets of scratch and argument memory: what every Metal device accepts for any type.
pub(crate) const ALIGNMENT: usize = 256;

/// A list of operations as a device runs it.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// The launches of a stage are independent; a barrier lies between two stages.
    pub stages: Vec<Vec<Step>>,
    /// For each operation of the list; an operation that cannot be planned has no launches.
    pub tasks: Vec<Result<Task>>,
    /// Bytes of scratch memory that the tasks share out.
    pub scratch_bytes: usize,
}

/// A launch of a stage.
#[derive(Debug)]
pub(crate) struct Step {
    /// Index of the operation.
    pub task: usize,
    pub launch: Launch,
}

/// What an operation has for itself beside its launches.
#[derive(Debug)]
pub(crate) struct Task {
    /// Parts of the scratch memory, by the index of [`Bound::Scratch`].
    pub scratch: Vec<Range<usize>>,
    /// What the word of [`Bound::Fault`] counts.
    pub fault: Option<Fault>,
}

impl Schedule {
    /// Plans the operations between two barriers together: stage s has the s-th launch of each, so that an operation of several launches does
    /// not keep its neighbours from overlapping. Their scratch memories lie apart; those of operations that a barrier separates share bytes.
    pub(crate) fn new(list: &CommandList, routing: &Routing) -> Schedule {
        let mut schedule = Schedule { stages: Vec::new(), tasks: Vec::new(), scratch_bytes: 0 };
        let (mut first_stage, mut scratch) = (0, 0);
        let mut rest = list.ops();
        // Whether a barrier went into a launch of several operations: then one follows it.
        let mut barrier_within = false;
        while let [recorded, ..] = rest {
            let task = schedule.tasks.len();
            let (plan, count) = match fuse::plan(rest, routing) {
                Some(fused) => fused,
                None => (launches::plan(&recorded.op, recorded.kernel.as_deref(), routing), 1),
            };
            let (together, after) = rest.split_at(count);
            if barrier_within || together.iter().any(|recorded| recorded.barrier) {
                (first_stage, scratch) = (schedule.stages.len(), 0);
            }
            barrier_within = together.iter().skip(1).any(|recorded| recorded.barrier);
            rest = after;
            let planned = plan.and_then(|plan| {
                let parts = plan.scratch.iter().map(|&bytes| take(&mut scratch, bytes)).collect::<Result<_>>()?;
                Ok((plan.launches, Task { scratch: parts, fault: plan.fault }))
            });
            schedule.scratch_bytes = schedule.scratch_bytes.max(scratch);
            schedule.tasks.push(planned.map(|(launches, described)| {
                for (i, launch) in launches.into_iter().enumerate() {
                    if schedule.stages.len() == first_stage + i {
                        schedule.stages.push(Vec::new());
                    }
                    if let Some(stage) = schedule.stages.get_mut(first_stage + i) {
                        stage.push(Step { task, launch });
                    }
                }
                described
            }));
            // The others of a launch of several operations have none of their own.
            let nothing = || Ok(Task { scratch: Vec::new(), fault: None });
            schedule.tasks.extend((1..count).map(|_| nothing()));
        }
        schedule
    }

    /// The part of the scratch memory that a step's binding names.
    pub(crate) fn scratch(&self, step: &Step, index: usize) -> Option<Range<usize>> {
        self.tasks.get(step.task)?.as_ref().ok()?.scratch.get(index).cloned()
    }

    /// Two launches of one stage of which one writes what the other touches. A device that overlaps them would race.
    pub(crate) fn race(&self) -> Option<String> {
        self.stages.iter().find_map(|stage| {
            let pairs = stage.iter().enumerate().flat_map(|(i, a)| stage[..i].iter().map(move |b| (a, b)));
            pairs.filter(|(a, b)| self.conflict(a, b)).map(|(a, b)| describe(a, b)).next()
        })
    }

    fn conflict(&self, a: &Step, b: &Step) -> bool {
        let written = |access: &Access| *access != Access::Read;
        let pairs = a.launch.bindings.iter().flat_map(|x| b.launch.bindings.iter().map(move |y| (x, y)));
        pairs.into_iter().any(|pair| match pair {
            (Bound::View(x, x_access), Bound::View(y, y_access)) => {
                (written(x_access) || written(y_access)) && x.overlaps(y)
            }
            (Bound::Scratch(x, x_access), Bound::Scratch(y, y_access)) if written(x_access) || written(y_access) => {
                match (self.scratch(a, *x), self.scratch(b, *y)) {
                    (Some(x), Some(y)) => x.start < y.end && y.start < x.end,
                    _ => true,
                }
            }
            _ => false,
        })
    }
}

fn describe(a: &Step, b: &Step) -> String {
    let name = |step: &Step| format!("{} of operation {}", step.launch.pipeline.function, step.task);
    format!("{} and {} run at the same time, and one writes what the other touches", name(b), name(a))
}

/// The next part of a memory that grows.
fn take(used: &mut usize, bytes: usize) -> Result<Range<usize>> {
    let end = used.checked_add(bytes).and_then(|end| Some((end, end.checked_next_multiple_of(ALIGNMENT)?)));
    let (end, next) = end.ok_or(MlxError::BufferAllocationError { bytes })?;
    let part = *used..end;
    *used = next;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Recorded;
    use crate::ops::Op;
    use crate::{Activations, Binary, CommandEncoder, DType, DeviceOptions, GgmlType, MlxBuffer, MlxDevice, Weight};

    const ROUTING: Routing = Routing {
        options: DeviceOptions { activations: Activations::Auto, batch_invariant: false, threads: 0 },
        tensor_ops: false,
    };

    fn f32s(device: &MlxDevice, len: usize) -> MlxBuffer {
        device.alloc_buffer(4 * len, DType::F32, vec![len]).unwrap()
    }

    /// The recorded operations as a list of its own.
    fn schedule(encoder: &CommandEncoder) -> Schedule {
        Schedule::new(encoder.list(), &ROUTING)
    }

    /// Two expert-routed products of nine tokens that read the same input, and a sum.
    fn record(device: &MlxDevice) -> CommandEncoder {
        let weight = |byte| {
            let bytes = vec![byte; 4 * 32 * 34];
            let data = device.buffer_from_slice(&bytes, DType::U8, vec![]).unwrap();
            Weight::stack(GgmlType::Q8_0.into(), 4, 32, 32, data, None, None).unwrap()
        };
        let x = f32s(device, 9 * 32);
        let ids = device.buffer_from_slice(&[1u32; 18], DType::U32, vec![18]).unwrap();
        let (mut y, mut z, mut sum) = (f32s(device, 18 * 32), f32s(device, 18 * 32), f32s(device, 18 * 32));
        let mut encoder = device.command_encoder().unwrap();
        encoder.matmul_id(&x, &weight(1), &ids, &mut y, None).unwrap();
        encoder.matmul_id(&x, &weight(2), &ids, &mut z, None).unwrap();
        encoder.binary(Binary::Mul, &y.clone(), &z, &mut sum).unwrap();
        encoder
    }

    #[test]
    fn neighbours_share_stages_and_have_scratch_of_their_own() {
        let device = MlxDevice::reference().unwrap();
        let schedule = schedule(&record(&device));
        let names: Vec<Vec<&str>> =
            schedule.stages.iter().map(|s| s.iter().map(|s| s.launch.pipeline.function.as_str()).collect()).collect();
        assert_eq!(names, [vec!["map_experts"; 2], vec!["mm_id"; 2], vec!["mul"]]);
        assert_eq!(schedule.race(), None);
        let parts: Vec<Range<usize>> =
            schedule.tasks.iter().flat_map(|t| t.as_ref().unwrap().scratch.clone()).collect();
        assert_eq!(parts.len(), 4);
        for (i, a) in parts.iter().enumerate() {
            assert!(a.start % ALIGNMENT == 0 && a.end <= schedule.scratch_bytes, "{parts:?}");
            assert!(parts[..i].iter().all(|b| a.end <= b.start || b.end <= a.start), "{parts:?}");
        }
    }

    #[test]
    fn a_missing_barrier_is_a_race() {
        let device = MlxDevice::reference().unwrap();
        let encoder = record(&device);
        let mut list = CommandList::new(&Arc::default());
        for recorded in encoder.list().ops() {
            let op: Op = recorded.op.clone();
            list.push(Recorded { op, barrier: false, kernel: None }).unwrap();
        }
        let race = Schedule::new(&list, &ROUTING).race().unwrap();
        assert!(race.contains("map_experts of operation 0 and mul of operation 2"), "{race}");
    }

    #[test]
    fn what_cannot_be_planned_is_an_error_of_its_own() {
        let device = MlxDevice::reference().unwrap();
        let (x, mut y, mut z) = (f32s(&device, 4), f32s(&device, 4), f32s(&device, 4));
        let mut encoder = device.command_encoder().unwrap();
        encoder.binary(Binary::Add, &x, &x, &mut y).unwrap();
        encoder.binary(Binary::Mul, &x, &x, &mut z).unwrap();
        let mut list = CommandList::new(&Arc::default());
        for (recorded, kernel) in encoder.list().ops().iter().zip([Some("fastest".into()), None]) {
            list.push(Recorded { op: recorded.op.clone(), barrier: false, kernel }).unwrap();
        }
        let schedule = Schedule::new(&list, &ROUTING);
        assert!(matches!(&schedule.tasks[0], Err(MlxError::KernelNotFound(why)) if why.contains("fastest")));
        assert!(schedule.tasks[1].is_ok() && schedule.stages.len() == 1 && schedule.stages[0][0].task == 1);
    }
}
