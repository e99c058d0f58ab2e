//! Sequences, scheduler, sampler, stop conditions: one thread that owns the model.
