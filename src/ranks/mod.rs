//! The processes that run one pipeline together. Each computes a part of every batch, and all of them take the same step.
//!
//! In: bytes of this process. Out: bytes of all. Messages go through MPI; this folder knows nothing of graphs or plans.

#[cfg(feature = "mpi")]
mod mpi;

use std::sync::OnceLock;
use std::time::Duration;

use crate::diagnostic::Problem;

/// How processes speak with each other. All of them make the same calls in the same order.
pub trait Collective: Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;
    /// The number of processes.
    fn size(&self) -> usize;
    /// The bytes that each process gives, in the order of the ranks.
    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>>;
    /// Replaces values by their sums over all processes: the same bits for the same number of processes.
    fn all_reduce(&self, values: &mut [f32]);
    /// The bytes that process 0 gives.
    fn broadcast(&self, own: Vec<u8>) -> Vec<u8>;
    /// Ends all processes, with this exit code.
    fn abort(&self, code: i32) -> !;
    /// Leaves the job. Every process calls this before it ends.
    fn leave(&self);
}

/// A process on its own.
struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    fn all_reduce(&self, _: &mut [f32]) {}

    fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        own
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }

    fn leave(&self) {}
}

static WORLD: OnceLock<Box<dyn Collective>> = OnceLock::new();

/// See [`most_threads`].
static THREADS: OnceLock<usize> = OnceLock::new();

/// The largest number of threads of any process.
pub fn most_threads() -> usize {
    let of_all = THREADS.get().copied();
    of_all.unwrap_or_else(rayon::current_num_threads)
}

/// The processes that this one runs with; before [`join`], itself alone.
pub fn world() -> &'static dyn Collective {
    match WORLD.get() {
        Some(world) => &**world,
        None => &Alone,
    }
}

/// A number that a launcher put into the environment.
fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many processes `mpirun`, or `srun` with PMI, started.
fn started() -> Option<usize> {
    let of_slurm = || number("PMIX_RANK").and(number("SLURM_NTASKS"));
    number("OMPI_COMM_WORLD_SIZE")
        .or_else(|| number("PMI_SIZE"))
        .or_else(of_slurm)
}

/// Refuses a command that several processes would each do on their own.
///
/// # Errors
/// A launcher started several.
pub fn refuse_several() -> Result<(), Problem> {
    match started() {
        Some(size) if size > 1 => {
            let message = format!("this is one of {size} processes that a launcher started, and each would do the same");
            Err(Problem::new("delta::ranks::alone", message)
                .help("start the command by itself: processes share out the run of a `.delta` file, and `deltarun eval`"))
        }
        _ => Ok(()),
    }
}

/// Joins the other processes, if a launcher started several: `mpirun`, or `srun` with PMI.
///
/// # Errors
/// A launcher did, and this program cannot speak with the others.
pub fn join() -> Result<(), Problem> {
    let of_torch = number("RANK").and(number("WORLD_SIZE"));
    match (started(), of_torch) {
        (Some(size), _) if size > 1 => join_mpi(size),
        (None, Some(size)) if size > 1 => {
            let message = format!("`torchrun` started {size} processes, which speak NCCL, and this version has only MPI");
            Err(Problem::new("delta::ranks::nccl", message).help(format!(
                "start them with MPI: `mpirun -n {size} deltarun FILE.delta`"
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(feature = "mpi")]
fn join_mpi(started: usize) -> Result<(), Problem> {
    let found = mpi::Mpi::new()?;
    if found.size() != started {
        let message = format!(
            "the launcher started {started} processes, and this program's MPI library finds {}",
            found.size()
        );
        return Err(Problem::new("delta::ranks::mpi", message)
            .help("use the `mpirun` of the MPI library that the program was built with"));
    }
    let threads = (rayon::current_num_threads() as u64).to_le_bytes();
    let all = found.all_gather(&threads);
    let number = |bytes: &Vec<u8>| u64::from_le_bytes(taken(&mut bytes.as_slice())) as usize;
    let _ = THREADS.set(all.iter().map(number).max().unwrap_or(1));
    let _ = WORLD.set(Box::new(found));
    Ok(())
}

#[cfg(not(feature = "mpi"))]
fn join_mpi(size: usize) -> Result<(), Problem> {
    let message = format!("this is one of {size} processes that a launcher started, and this program was built without MPI");
    Err(Problem::new("delta::ranks::mpi", message).help(
        "build it with `cargo build --release --features mpi`, which needs an MPI library and libclang, or start one process",
    ))
}

/// The items of a shared list that this process computes. `first` is the number of the list's first item.
pub fn own_of<T>(first: usize, items: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    let is_own = |(index, _): &(usize, T)| index % world().size() == world().rank();
    (first..).zip(items).filter(is_own).map(|(_, item)| item)
}

/// Something that processes send each other.
pub trait Portable: Sized {
    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8>;
    /// Reads it from bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
}

impl Portable for Vec<f32> {
    fn to_bytes(&self) -> Vec<u8> {
        self.iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let numbers = bytes.as_chunks().0.iter();
        numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

impl Portable for Vec<(String, String)> {
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts are JSON")
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).expect("a process sends whole items")
    }
}

/// Gathers items `first` to `first + count` of a list. Each process gives those that [`own_of`] assigns to it.
pub fn all_items<T: Portable>(first: usize, own: Vec<T>, count: usize) -> Vec<T> {
    if world().size() == 1 {
        return own;
    }
    let mut bytes = Vec::new();
    for item in own {
        let item = item.to_bytes();
        bytes.extend((item.len() as u64).to_le_bytes());
        bytes.extend(item);
    }
    let gathered = world().all_gather(&bytes);
    let mut rests: Vec<&[u8]> = gathered.iter().map(Vec::as_slice).collect();
    let size = rests.len();
    let mut next = |index: usize| {
        let rest = &mut rests[index % size];
        let length = u64::from_le_bytes(taken(rest)) as usize;
        let (item, behind) = rest.split_at(length);
        *rest = behind;
        T::from_bytes(item)
    };
    (first..first + count).map(&mut next).collect()
}

/// Takes the first bytes of what a process sent.
pub fn taken<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes
        .split_first_chunk()
        .expect("a process sends whole items");
    *bytes = rest;
    *first
}

/// What each process has, in the order of the ranks.
pub fn all_gathered<T: Portable>(own: T) -> Vec<T> {
    let gathered = world().all_gather(&own.to_bytes());
    gathered.iter().map(|bytes| T::from_bytes(bytes)).collect()
}

/// Whether any process says so.
pub fn any(own: bool) -> bool {
    match world().size() {
        1 => own,
        _ => world().all_gather(&[u8::from(own)]).concat().contains(&1),
    }
}

/// Returns `own` if all processes succeeded. Otherwise the first that failed gets its error, and the others wait until it
/// ends them.
///
/// # Errors
/// That of the first failed process.
pub fn agree<T, E>(own: Result<T, E>) -> Result<T, E> {
    if world().size() == 1 {
        return own;
    }
    let failed = world().all_gather(&[u8::from(own.is_err())]).concat();
    match failed.iter().position(|failed| *failed == 1) {
        None => own,
        Some(first) if first == world().rank() => own,
        Some(_) => {
            // Its destructors may tidy something up.
            drop(own);
            // The first one ends this process when it has said why.
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    }
}

/// Waits before a process reports a failure. Others may fail for the same reason: the first of them reports it, and ends
/// the others meanwhile.
pub fn let_others_report() {
    let rank = world().rank().min(10) as u64;
    std::thread::sleep(Duration::from_millis(500 * rank));
}
