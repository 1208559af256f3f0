//! The learning rate over the steps of a stage, as transformers' schedulers define it.

use crate::plan::{Schedule, ScheduleShape, Warmup};

/// transformers' `timescale` of an inverse square root without a warm-up.
const TIMESCALE: usize = 10_000;

/// The factor on the peak learning rate at `step` (from 0) of `total`.
pub fn factor(schedule: &Schedule, step: usize, total: usize) -> f32 {
    let warmup = match schedule.warmup {
        Warmup::Steps(steps) => steps,
        Warmup::Fraction(share) => (share * total as f64).ceil() as usize,
    };
    if step < warmup {
        return step as f32 / warmup.max(1) as f32;
    }
    let rest = total.saturating_sub(warmup).max(1) as f64;
    let progress = ((step - warmup) as f64 / rest).min(1.0);
    match schedule.shape {
        ScheduleShape::InverseSqrt => {
            let scale = if warmup == 0 { TIMESCALE } else { warmup };
            let shift = scale - warmup;
            (scale as f64 / (step + shift) as f64).sqrt() as f32
        }
        ScheduleShape::Constant => 1.0,
        ScheduleShape::Linear => (1.0 - progress) as f32,
        ScheduleShape::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(shape: ScheduleShape, warmup: Warmup, total: usize) -> Vec<f32> {
        let schedule = Schedule { shape, warmup };
        (0..total)
            .map(|step| factor(&schedule, step, total))
            .collect()
    }

    // transformers warms up over `math.ceil(total * ratio)` steps, and 0.1 is no fraction of two.
    #[test]
    fn a_share_warms_up_over_the_steps_of_transformers() {
        for (share, total, steps) in [
            (0.1, 100, 10),
            (0.05, 1000, 50),
            (0.15, 200, 30),
            (0.2, 500, 100),
            (0.3, 100, 30),
            (0.06, 1001, 61),
        ] {
            let rates = all(ScheduleShape::Linear, Warmup::Fraction(share), total);
            assert_eq!(rates[steps], 1.0, "{share} of {total}");
            assert!(rates[steps - 1] < 1.0, "{share} of {total}");
        }
    }

    // Literals printed by transformers 5.23.0: get_linear_schedule_with_warmup(o, 2, 8),
    // get_cosine_schedule_with_warmup(o, 2, 8), get_constant_schedule_with_warmup(o, 2).
    #[test]
    fn schedules_are_those_of_transformers() {
        let close = |found: Vec<f32>, expected: [f32; 8]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
            }
        };
        let two = Warmup::Steps(2);
        close(
            all(ScheduleShape::Linear, two, 8),
            [
                0.0,
                0.5,
                1.0,
                0.833_333_3,
                0.666_666_7,
                0.5,
                0.333_333_34,
                0.166_666_67,
            ],
        );
        close(
            all(ScheduleShape::Cosine, two, 8),
            [0.0, 0.5, 1.0, 0.933_012_7, 0.75, 0.5, 0.25, 0.066_987_3],
        );
        // get_inverse_sqrt_schedule(o, 2), and (o, 0)
        let falling = [
            0.0,
            0.5,
            1.0,
            0.816_496_6,
            std::f32::consts::FRAC_1_SQRT_2,
            0.632_455_5,
            0.577_350_3,
            0.534_522_5,
        ];
        close(all(ScheduleShape::InverseSqrt, two, 8), falling);
        let late = all(ScheduleShape::InverseSqrt, Warmup::Steps(0), 8)[7];
        assert!((late - 0.999_650_2).abs() < 1e-6, "{late}");
        close(
            all(ScheduleShape::Constant, Warmup::Fraction(0.25), 8),
            [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        );
    }
}
