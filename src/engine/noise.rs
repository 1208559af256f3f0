//! Random numbers that are a function of the place where they are used. A run therefore has the same bits for every
//! number of threads, and a backward pass can draw its noise again instead of keeping it.

/// Mixes the bits of a 64-bit value (the finalizer of SplitMix64, Steele et al. 2014).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The noise of one sequence at one place of the graph.
#[derive(Clone, Copy, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The noise for a sequence's `key` at dropout `site`.
    pub fn new(key: u64, site: u32) -> Self {
        Noise(mix(key ^ mix(u64::from(site))))
    }

    /// Fills `factors` with 0 (with this `probability`) or `1 / (1 - probability)`. Element `j` of row `row` depends
    /// only on the noise, `row` and `j`, through a 32-bit integer hash (constants of C. Wellons, "hash prospector",
    /// bias 0.17) that the compiler vectorizes.
    pub fn dropout_row(self, row: usize, probability: f32, factors: &mut [f32]) {
        let start = mix(self.0 ^ row as u64) as u32;
        let threshold = (f64::from(probability) * 4_294_967_296.0) as u32;
        let keep = 1.0 / (1.0 - probability);
        for (column, factor) in factors.iter_mut().enumerate() {
            let mut hash = start.wrapping_add((column as u32).wrapping_mul(0x9e37_79b9));
            hash = (hash ^ (hash >> 16)).wrapping_mul(0x7feb_352d);
            hash = (hash ^ (hash >> 15)).wrapping_mul(0x846c_a68b);
            hash ^= hash >> 16;
            *factor = if hash < threshold { 0.0 } else { keep };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_stated_share_and_the_mean() {
        let mut factors = vec![0.0; 1000];
        let (mut zeros, mut sum) = (0, 0.0);
        for row in 0..200 {
            Noise::new(7, 3).dropout_row(row, 0.1, &mut factors);
            zeros += factors.iter().filter(|&&f| f == 0.0).count();
            sum += factors.iter().map(|&f| f64::from(f)).sum::<f64>();
        }
        // 200,000 draws: a standard deviation of 134 zeros.
        assert!((19_400..20_600).contains(&zeros), "{zeros}");
        assert!((sum / 200_000.0 - 1.0).abs() < 0.004, "{sum}");
    }

    #[test]
    fn places_do_not_share_their_noise() {
        let draw = |key, site, row| {
            let mut factors = vec![0.0; 64];
            Noise::new(key, site).dropout_row(row, 0.5, &mut factors);
            factors
        };
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(2, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 3, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 2, 4));
    }
}
