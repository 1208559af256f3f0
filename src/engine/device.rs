//! The devices that hold tensors and compute with them.

use super::cpu;
#[cfg(feature = "dfdx-cuda")]
use super::cuda::OnCard;
use super::Precision;

/// A device, chosen at run time.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The CPU with this engine's kernels. An operation without a kernel runs its dfdx definition.
    #[default]
    Cpu,
    /// The CPU with dfdx's tensors. Every operation runs its dfdx definition.
    DfdxCpu,
    /// A CUDA card with dfdx's tensors. Every operation runs its dfdx definition.
    #[cfg(feature = "dfdx-cuda")]
    DfdxCuda(OnCard<dfdx::tensor::Cuda>),
}

impl Device {
    /// The CUDA card with this number, from 0.
    ///
    /// # Errors
    /// What the driver reports.
    #[cfg(feature = "dfdx-cuda")]
    pub fn cuda(number: usize) -> Outcome<Self> {
        let card = dfdx::tensor::Cuda::try_build(number, 0).map_err(Error::of)?;
        Ok(Device::DfdxCuda(OnCard::new(card)))
    }

    /// Whether products on this device decode weights as they need them. Otherwise it keeps all weights in f32.
    pub fn decodes(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Whether this device, on this machine, computes products in this precision.
    pub fn has(&self, precision: Precision) -> bool {
        match self {
            Device::Cpu => cpu::has(precision),
            _ => precision == Precision::F32,
        }
    }

    /// The number of rows that a group of sequences should have. It depends on the device, never on the number of
    /// threads: it determines the order in which gradients are summed, and so the bits of the result.
    pub fn group_rows(&self) -> usize {
        match self {
            Device::Cpu | Device::DfdxCpu => cpu::GROUP_ROWS,
            #[cfg(feature = "dfdx-cuda")]
            Device::DfdxCuda(_) => usize::MAX,
        }
    }

    /// How many groups may be in their forward pass at once, for a model of this width. A wide model gets half as many
    /// groups as threads, which halves the activations that are kept. A narrow model gets as many as threads, because
    /// fewer would take longer.
    pub fn groups_at_once(&self, width: usize) -> usize {
        let threads = rayon::current_num_threads();
        match cpu::is_wide(width) {
            true => threads.div_ceil(2),
            false => threads,
        }
    }

    /// Whether attention with a single query row per sequence should avoid computing keys and values, see
    /// `graph/optimizations/absorbed_keys.rs`.
    pub fn absorbs_keys(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Whether the gradients of large parameters can be computed after the pass, see [`cpu::Deferred`].
    pub fn defers_gradients(&self) -> bool {
        matches!(self, Device::Cpu)
    }

    /// Applies `work` to every group and returns the results in order. On a CPU the groups run in parallel. On a CUDA
    /// card they run one after the other, and each operation is parallel. At most `at_once` groups begin at first; the
    /// next may begin when a group calls the last argument of `work`, or ends.
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

/// An error that a device reports, such as running out of memory.
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

/// A result, or the device's error.
pub type Outcome<T> = Result<T, Error>;
