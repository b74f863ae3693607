"""Both frameworks on the same images, compared layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.names import MatchedWeights
from focalnet_jax.errors import SetupError
from focalnet_jax.models import FocalNet
from focalnet_jax.parity.compare import Comparison, Verdict


def compare_layers(
    model: FocalNet,
    params: dict[str, Any],
    kind: str,
    images: np.ndarray,
    *,
    tolerance: float,
    batch_size: int = 8,
    weights: MatchedWeights | None = None,
) -> Verdict:
    """Applies our model and a peer to images and compares what each layer returns.

    Args:
      model: our model.
      params: our model's parameters.
      kind: the kind of the peer, `"timm"` or `"transformers"`.
      images: `[n, height, width, channels]`, in the precision to compare in.
      tolerance: the greatest allowed relative error of a layer.
      batch_size: number of images at a time.
      weights: the weights that `params` were converted from. The peer takes their tensors
        unconverted. With None the peer takes `params`, converted to its dialect.

    Raises:
      SetupError: the peer is not installed, or cannot express the model.
    """
    try:
        import torch

        from focalnet_jax.parity import peers
    except ImportError as error:
        raise SetupError(f"{error}: pip install 'focalnet_jax[parity]'") from error
    peer = peers.build_peer(kind, model)
    if images.dtype == np.float64:
        peer.double()
    use_postln = model.encoder.use_postln
    if weights is None:
        state_dict = to_torch(params, model, dialect=kind)
    else:
        state_dict = peers.own_state_dict(peer, kind, weights, use_postln=use_postln)
    peers.load_peer(peer, state_dict)
    if kind == "transformers":
        # transformers pads images whose sides are no multiple of the patch size.
        model = model.clone(encoder=model.encoder.clone(pad_to_patch=True))

    @jax.jit
    def apply(params, images):
        logits, outputs = model.apply({"params": params}, images)
        return {**outputs, "logits": logits}

    comparison = Comparison(tolerance)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with torch.no_grad():
            theirs = {k: v.numpy() for k, v in peers.run_peer(peer, kind, batch).items()}
        ours = apply(params, jnp.asarray(batch))
        comparison.add(jax.device_get({name: ours[name] for name in theirs}), theirs)
        if len(images) > batch_size:
            print(f"compared {start + len(batch):,} of {len(images):,} images")
    return comparison.verdict()
