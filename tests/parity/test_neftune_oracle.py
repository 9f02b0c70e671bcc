"""The size of NEFTune's noise against the hook of transformers' Trainer, which TRL uses."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxpost.objectives.neftune import neftune_noise

torch = oracle.torch
neftune = pytest.importorskip("transformers.integrations.neftune")


@pytest.mark.parametrize(("length", "features", "alpha"), [(40, 64, 5.0), (7, 300, 15.0), (128, 33, 0.1)])
def test_the_noise_of_one_document_without_padding_has_the_same_distribution(length, features, alpha):
    """Both fill the same interval evenly: bounds within 2 %, quantiles of |noise| within 5 %.

    Mutation: jaxpost/objectives/neftune.py: `alpha / jnp.sqrt(length * features)` -> `alpha / jnp.sqrt(length + features)`
    """  # noqa: E501
    module = torch.nn.Embedding(1, features)
    module.neftune_noise_alpha = alpha
    torch.manual_seed(0)
    theirs = neftune.neftune_post_forward_hook(module.train(), None, torch.zeros(8, length, features)).numpy()
    ours = np.asarray(neftune_noise(jax.random.key(0), jnp.ones((8, length), jnp.int32), features, alpha))
    for q, tolerance in ((1.0, 0.02), (0.75, 0.05), (0.5, 0.05), (0.25, 0.05)):
        np.testing.assert_allclose(np.quantile(np.abs(ours), q), np.quantile(np.abs(theirs), q), rtol=tolerance)
    quiet = neftune.neftune_post_forward_hook(module.eval(), None, torch.zeros(1, length, features))
    assert not quiet.any()
