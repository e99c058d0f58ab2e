use crate::train::OptimizerConfig;

/// The learning rate of an update (counted from 1): linear from 0 during the warm-up, then half a cosine down to
/// `final_share` of the largest.
pub fn learning_rate(config: &OptimizerConfig, step: u64) -> f64 {
    let warmup = config.warmup_steps.min(config.steps);
    if step <= warmup {
        return config.learning_rate * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (config.steps - warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    config.learning_rate * (config.final_share + (1.0 - config.final_share) * cosine)
}
