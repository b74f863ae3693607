"""Both frameworks on the same images, compared layer by layer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.names import MatchedWeights
from focalnet_jax.errors import SetupError
from focalnet_jax.heads import Segmenter
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
    peers, _ = _import_peers()
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

    return _compared(
        functools.partial(apply, params),
        functools.partial(peers.run_peer, peer, kind),
        images,
        tolerance=tolerance,
        batch_size=batch_size,
    )


def compare_segmenters(
    model: Segmenter,
    variables: dict[str, Any],
    heads: str,
    images: np.ndarray,
    *,
    tolerance: float,
    batch_size: int = 8,
    weights: MatchedWeights | None = None,
) -> Verdict:
    """Does the same for a segmenter, whose peer has transformers' encoder.

    Args:
      model: our model.
      variables: our model's parameters and running averages.
      heads: whose heads the peer has, `"mmsegmentation"` or `"transformers"`.
      images, tolerance, batch_size: as for `compare_layers`.
      weights: the weights that `variables` were converted from. The peer takes their
        tensors without a conversion. With None it takes `variables`, converted.

    Raises:
      SetupError: a library is not installed, or cannot express the model.
    """
    _, segmenters = _import_peers()
    peer = segmenters.PeerSegmenter(heads, model)
    if images.dtype == np.float64:
        peer.double()
    if weights is None:
        averages = variables["batch_stats"]
        state_dict = to_torch(
            variables["params"], model, dialect="mmsegmentation", batch_stats=averages
        )
    else:
        state_dict = {
            parameter.dialect_key: parameter.tensor
            for parameter in weights.parameters.values()
        }
    peer.load(state_dict)
    # transformers pads images whose sides are no multiple of the patch size.
    model = model.clone(encoder=model.encoder.clone(pad_to_patch=True))

    @jax.jit
    def apply(images):
        logits, outputs = model.apply(variables, images)
        own = {"logits": logits.logits, "auxiliary_logits": logits.auxiliary}
        return {**outputs, **{n: map for n, map in own.items() if map is not None}}

    return _compared(apply, peer.run, images, tolerance=tolerance, batch_size=batch_size)


def _import_peers():
    try:
        from focalnet_jax.parity import peers, segmenters
    except ImportError as error:
        raise SetupError(f"{error}: pip install 'focalnet_jax[parity]'") from error
    return peers, segmenters


def _compared(
    ours: Callable[[jax.Array], dict[str, jax.Array]],
    theirs: Callable[[np.ndarray], dict[str, Any]],
    images: np.ndarray,
    *,
    tolerance: float,
    batch_size: int,
) -> Verdict:
    """Compares functions from images to the outputs of layers by name."""
    import torch

    comparison = Comparison(tolerance)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with torch.no_grad():
            expected = {name: output.numpy() for name, output in theirs(batch).items()}
        given = ours(jnp.asarray(batch))
        comparison.add(jax.device_get({name: given[name] for name in expected}), expected)
        if len(images) > batch_size:
            print(f"compared {start + len(batch):,} of {len(images):,} images")
    return comparison.verdict()
