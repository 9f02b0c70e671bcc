"""jaxpost.kernels: hand-written accelerator kernels, each beside its plain `jax.numpy` twin."""
