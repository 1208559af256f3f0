//! Messages through MPI.

use std::mem::ManuallyDrop;

use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use mpi::Threading;

use super::Collective;
use crate::diagnostic::Problem;

/// The processes of an MPI job.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    /// Dropping it would finalize MPI, which must last as long as the process.
    _universe: ManuallyDrop<Universe>,
}

// SAFETY: MPI allows calls of any thread, one at a time ([`Mpi::new`] looks), and the steps of a run make theirs from one.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

impl Mpi {
    pub fn new() -> Result<Self, Problem> {
        let universe = mpi::initialize_with_threading(Threading::Serialized);
        let failed = |message: &str| {
            Problem::failure("delta::ranks::mpi", message).help("look at what `mpirun` reports")
        };
        let (universe, threading) =
            universe.ok_or_else(|| failed("MPI cannot be started: it was started already"))?;
        if threading < Threading::Serialized {
            return Err(failed(
                "this MPI library allows calls of the first thread alone",
            ));
        }
        Ok(Mpi {
            world: universe.world(),
            _universe: ManuallyDrop::new(universe),
        })
    }
}

/// MPI counts in 32 bits.
const MOST: usize = 1 << 30;

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let mut lengths = vec![0u64; self.size()];
        self.world
            .all_gather_into(&(own.len() as u64), &mut lengths[..]);
        let mut all: Vec<Vec<u8>> = lengths
            .iter()
            .map(|length| Vec::with_capacity(*length as usize))
            .collect();
        // In pieces whose sum can be counted.
        let piece = MOST / self.size();
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        for first in (0..longest).step_by(piece) {
            let part = |length: usize| first.min(length)..(first + piece).min(length);
            let counts: Vec<i32> = lengths
                .iter()
                .map(|length| part(*length as usize).len() as i32)
                .collect();
            let displacements: Vec<i32> = counts
                .iter()
                .scan(0, |sum, count| {
                    *sum += count;
                    Some(*sum - count)
                })
                .collect();
            let mut bytes = vec![0u8; counts.iter().sum::<i32>() as usize];
            let mut partition = PartitionMut::new(&mut bytes[..], &counts[..], &displacements[..]);
            self.world
                .all_gather_varcount_into(&own[part(own.len())], &mut partition);
            for ((all, count), start) in all.iter_mut().zip(&counts).zip(&displacements) {
                all.extend(&bytes[*start as usize..][..*count as usize]);
            }
        }
        all
    }

    fn all_reduce(&self, values: &mut [f32]) {
        for part in values.chunks_mut(MOST) {
            let own = part.to_vec();
            self.world
                .all_reduce_into(&own[..], part, SystemOperation::sum());
        }
    }

    fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        let root = self.world.process_at_rank(0);
        let mut length = own.len() as u64;
        root.broadcast_into(&mut length);
        let mut bytes = own;
        bytes.resize(length as usize, 0);
        for part in bytes.chunks_mut(MOST) {
            root.broadcast_into(part);
        }
        bytes
    }

    fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }

    fn leave(&self) {
        // SAFETY: MPI was started, and nothing is sent any more.
        unsafe { mpi::ffi::MPI_Finalize() };
    }
}
