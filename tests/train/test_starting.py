"""Runs that start from parameters of others."""

import numpy as np
import pytest
from etils import epath
from running import stored_arrays

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train
from focalnet_jax.weights.params import newest_params_path

pytestmark = pytest.mark.usefixtures("shared_programs", "no_summaries")


def test_starting_from_other_parameters(tiny_config, tmp_path, capsys):
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    trained = train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    assert evaluate(*check_config(tiny_config), second) == {
        name: value for name, value in trained.items() if name.startswith("test/")
    }
    tiny_config.num_steps = 1
    tiny_config.learning_rate = tiny_config.warmup_learning_rate = 0.0
    tiny_config.final_learning_rate = 0.0
    started = train(*check_config(tiny_config), second)
    assert f"starting from {first}" in capsys.readouterr().out
    assert started["test/loss"] == trained["test/loss"]
    assert newest_params_path(second) == second / "checkpoints" / "1" / "params"


def test_starting_with_a_new_head(tiny_config, tmp_path, capsys):
    """For other classes, on what an earlier run has learnt, its average here."""
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    tiny_config.num_steps = 1
    tiny_config.ema_decay = 0.9
    train(*check_config(tiny_config), first)
    average = first / "checkpoints" / "1" / "ema"
    tiny_config.init_from = str(average)
    tiny_config.model.num_classes = 12
    with pytest.raises(SetupError, match=r"has \(8, 12\)\n.*reset_head=True"):
        train(*check_config(tiny_config), second)
    tiny_config.reset_head = True
    tiny_config.learning_rate = tiny_config.warmup_learning_rate = 0.0
    tiny_config.final_learning_rate = 0.0
    train(*check_config(tiny_config), second)
    said = capsys.readouterr().out
    assert f"starting from {average}, with a new head\n" in said
    assert "but with" not in said
    before, after = stored_arrays(first, 1), stored_arrays(second, 1)
    assert after["params['head']['kernel']"].shape == (8, 12)
    for name, value in before.items():
        if name.startswith("ema") and "head" not in name:
            now = after[name.replace("ema", "params")]
            np.testing.assert_array_equal(now, value, err_msg=name)


def test_parameters_that_do_not_fit_are_listed(tiny_config, tmp_path):
    first = epath.Path(tmp_path / "first")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    tiny_config.model.use_layerscale = True
    tiny_config.model.focal_levels = (2,)
    with pytest.raises(SetupError) as error:
        train(*check_config(tiny_config), epath.Path(tmp_path / "second"))
    message = str(error.value)
    assert "layers_0/blocks_0/gamma_1 (8,) is not stored" in message
    assert "f/bias is stored as (18,), the model has (19,)" in message
    assert "layers_0/blocks_0/modulation/focal_layers_1/kernel" in message
    assert message.endswith(
        "set these fields as there:\n"
        "  model.focal_levels: (1,) there, (2,) here\n"
        "  model.use_layerscale: False there, True here"
    )

    tiny_config.init_from = None
    with pytest.raises(SetupError, match=r"model.use_layerscale: False there, True here"):
        train(*check_config(tiny_config), first)


def test_options_that_leave_no_trace_in_parameters_are_compared(
    tiny_config, tmp_path, capsys
):
    """Evaluation refuses them, a new run from the parameters says them."""
    first = epath.Path(tmp_path / "first")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.model.mlp_ratio = 4.0  # the default, spelt out
    tiny_config.model.drop_path_rate = 0.3
    evaluate(*check_config(tiny_config), first)
    tiny_config.model.normalize_modulator = True
    message = "model.normalize_modulator: False there, True here"
    for workdir, init_from in [(first, None), (tmp_path / "second", str(first))]:
        tiny_config.init_from = init_from
        with pytest.raises(SetupError, match=message):
            evaluate(*check_config(tiny_config), epath.Path(workdir))
    capsys.readouterr()
    train(*check_config(tiny_config), epath.Path(tmp_path / "second"))
    assert message in capsys.readouterr().out


def test_started_runs_do_not_need_their_origin_any_more(tiny_config, tmp_path):
    first, second = epath.Path(tmp_path / "first"), epath.Path(tmp_path / "second")
    tiny_config.num_steps = 1
    train(*check_config(tiny_config), first)
    tiny_config.init_from = str(first)
    train(*check_config(tiny_config), second)
    first.rmtree()
    tiny_config.num_steps = 2
    assert train(*check_config(tiny_config), second)["test/examples"] == 60
