//! Where tensors lie, and what is computed there.

use super::cpu;
#[cfg(feature = "dfdx-cuda")]
use super::cuda::OnCard;
use super::Precision;

/// A device, chosen at run time.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The CPU, with kernels of our own; an operation without one runs its definition.
    #[default]
    Cpu,
    /// The CPU, with dfdx's tensors: every operation is computed as it is defined.
    DfdxCpu,
    /// A CUDA card, with dfdx's tensors.
    #[cfg(feature = "dfdx-cuda")]
    DfdxCuda(OnCard<dfdx::tensor::Cuda>),
}

impl Device {
    /// The CUDA card of a number.
    ///
    /// # Errors
    /// What the driver reports.
    #[cfg(feature = "dfdx-cuda")]
    pub fn cuda(number: usize) -> Outcome<Self> {
        let card = dfdx::tensor::Cuda::try_build(number, 0).map_err(Error::of)?;
        Ok(Device::DfdxCuda(OnCard::new(card)))
    }

    /// Whether it has, on this machine, products of this precision.
    pub fn has(&self, precision: Precision) -> bool {
        match self {
            Device::Cpu => cpu::has(precision),
            _ => precision == Precision::F32,
        }
    }

    /// How many rows a group of sequences should have. A constant of the device, never of the
    /// number of threads: the order in which gradients are summed depends on it.
    pub fn group_rows(&self) -> usize {
        match self {
            Device::Cpu | Device::DfdxCpu => cpu::GROUP_ROWS,
            #[cfg(feature = "dfdx-cuda")]
            Device::DfdxCuda(_) => usize::MAX,
        }
    }

    /// How many groups of a model of such a width go forward at once: half as many as threads for a wide one, which
    /// halves the activations that are kept; as many as threads for a narrow one, where that would take longer.
    pub fn groups_at_once(&self, width: usize) -> usize {
        let threads = rayon::current_num_threads();
        match cpu::is_wide(width) {
            true => threads.div_ceil(2),
            false => threads,
        }
    }

    /// Whether it is worth it to leave out the keys and values of a sequence where a single row asks.
    pub fn absorbs_keys(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Whether it can leave the gradients of large parameters to be computed after a pass, see
    /// [`cpu::Deferred`].
    pub fn defers_gradients(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Applies `work` to every group and gives the results in order; its own operations are parallel, or the groups
    /// are, never both. At most `at_once` groups are begun until one of them calls `work`'s last argument, or ends:
    /// then the next may begin.
    pub fn map_groups<T: Sync, R: Send + Sync>(
        &self,
        groups: &[T],
        at_once: usize,
        work: impl Fn(&T, &mut dyn FnMut()) -> R + Sync,
    ) -> Vec<R> {
        match self {
            Device::Cpu | Device::DfdxCpu => cpu::map_groups(groups, at_once, work),
            #[cfg(feature = "dfdx-cuda")]
            Device::DfdxCuda(_) => groups.iter().map(|g| work(g, &mut || ())).collect(),
        }
    }
}

/// What a device reports.
#[derive(Debug, Clone)]
pub struct Error(String);

impl Error {
    pub(super) fn of(error: impl std::fmt::Debug) -> Self {
        Error(format!("{error:?}"))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A result, or what the device reports.
pub type Outcome<T> = Result<T, Error>;
