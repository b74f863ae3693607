"""What the TPU compiler makes of one block: no copies of maps between layouts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, SingleDeviceSharding

from focalnet_jax.models.blocks import FocalNetBlock
from focalnet_jax.models.modulation import FocalModulation
from focalnet_jax.train.aot import bundles, hlo

BATCH = 8


def operations_of_block(device, *, side, channels, gradient):
    """Those of one block in bfloat16, forward or with all gradients."""
    modulation = functools.partial(FocalModulation, focal_level=3, focal_window=3)
    block = FocalNetBlock(modulation, dtype=jnp.bfloat16)
    shape = (BATCH, side, side, channels)
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    variables = jax.eval_shape(
        lambda: block.init(jax.random.key(0), jnp.zeros(shape, jnp.bfloat16), train=False)
    )
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        variables,
    )

    def forward(variables, x):
        y, _ = block.apply(variables, x, train=False)
        return y

    def backward(variables, x, cotangent):
        _, pull = jax.vjp(forward, variables, x)
        return pull(cotangent)

    function, arguments = forward, (variables, x)
    if gradient:
        function, arguments = backward, (variables, x, x)
    mesh = Mesh(np.array([device]), ("data",))  # It tells the net what it is for.
    with (
        bundles.collected() as schedule_of,
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    ):
        compiled = jax.jit(function).lower(*arguments).compile()
        return list(hlo.operations(compiled.as_text(), schedule_of))


def copies(operations, *, least):
    """Operations that only move a map of that many numbers, or more.

    Arguments and results lie as the caller has them, so that copies of arguments, and
    those that are results, don't count: in a net there are other blocks around this one.
    """
    arguments = {o.name for o in operations if o.kind == "parameter"}
    [root] = [o for o in operations if o.text.startswith("ROOT ")]
    results = {root.name, *operands(root)}
    return [
        operation
        for operation in operations
        if operation.kind in ("copy", "transpose")
        and max(count for _, count in hlo.arrays(operation.result)) >= least
        and not arguments.intersection(operands(operation))
        and operation.name not in results
    ]


def operands(operation):
    _, _, given = operation.text.partition(f" {operation.kind}(")
    return re.findall(r"%([\w.\-]+)", given.partition(")")[0])


PROGRAM = """\
ENTRY %main.1_spmd (x: f32[2,3]) -> (f32[2,3], f32[2,3]) {
  %x = f32[2,3]{1,0} parameter(0)
  %copy.1 = f32[2,3]{0,1} copy(%x)
  %fusion.2 = f32[2,3]{0,1} fusion(%copy.1), kind=kLoop, calls=%fused
  %copy.3 = f32[2,3]{1,0} copy(%fusion.2)
  %copy.4 = f32[2]{0} copy(%row)
  %fusion.5 = f32[2,3]{1,0} fusion(%copy.3, %copy.4), kind=kLoop, calls=%fused
  %copy.6 = f32[2,3]{0,1} copy(%fusion.5)
  ROOT %tuple.7 = (f32[2,3]{0,1}, f32[2,3]{1,0}) tuple(%copy.6, %fusion.5)
}
"""


def test_copies_of_arguments_and_to_results_do_not_count():
    found = copies(list(hlo.operations(PROGRAM)), least=6)
    assert [copy.name for copy in found] == ["copy.3"]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(
    ("side", "channels"),
    [(8, 128), pytest.param(14, 512, marks=pytest.mark.extended)],
)
def test_a_block_copies_no_maps(v5e, side, channels, gradient):
    operations = operations_of_block(v5e, side=side, channels=channels, gradient=gradient)
    found = copies(operations, least=BATCH * side**2 * channels)
    listed = [f"{c.cycles} cycles: {c.kind} to {c.result} of {c.source}" for c in found]
    assert not found, "\n".join(listed)
    assert sum("tpu_custom_call" in o.text for o in operations) == 1 + gradient
