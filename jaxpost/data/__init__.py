"""Files -> rows -> examples -> batches: numpy out, no jax."""
