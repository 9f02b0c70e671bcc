"""What every room stands on: errors, atomic files, configuration, progress. No jax."""
