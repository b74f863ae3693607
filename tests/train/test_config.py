"""Configurations: recipes, errors at the door, and no field that nothing reads."""

import pathlib

import pytest
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.errors import SetupError, nearest
from focalnet_jax.train import check_config, default_config, evaluate, train
from focalnet_jax.train.config import all_fields, check_field_name, total_steps
from focalnet_jax.train.recipes import find_recipe, load_recipe, own_recipes
from focalnet_jax.train.run.workdir import changed_fields, describe_run


@pytest.mark.parametrize("name", own_recipes())
def test_recipes_pass_the_door(name):
    check_config(load_recipe(name))


def test_recipes_are_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = own_recipes()
    assert own.keys() >= {"digits", "base", "in22k", "finetune", "fashion_mnist"}
    for given in ("base", "configs/base.py", str(own["base"])):
        assert find_recipe(f"{given}:tiny_srf") == f"{own['base']}:tiny_srf"
    pathlib.Path("base.py").write_text("")
    assert find_recipe("base.py:x") == "base.py:x"
    assert find_recipe("base") == str(own["base"])
    with pytest.raises(SetupError, match="no recipe 'digit'; did you mean 'digits'"):
        find_recipe("digit")
    with pytest.raises(SetupError, match="did you mean 'configs/digits.py'"):
        find_recipe("configs/digit.py")
    # What lies in the checkout is found from everywhere.
    path = "tests/train/operator_recipe.py"
    assert find_recipe(path) == str(pathlib.Path(__file__).parents[2] / path)
    with pytest.raises(SetupError, match=f"paths are looked for in {tmp_path} and "):
        find_recipe("mine.py")
    pathlib.Path("my_digits.py").write_text("")
    with pytest.raises(SetupError, match="did you mean 'my_digits.py'"):
        find_recipe("mydigits.py")
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    with pytest.raises(SetupError) as raised:
        find_recipe("mine.py")
    assert str(raised.value).count(str(pathlib.Path.cwd())) == 1


def test_recipes_where_there_is_no_home_or_directory(tmp_path, monkeypatch):
    with pytest.raises(SetupError, match="that user has no home directory here"):
        find_recipe("~nobody-of-that-name/a.py")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("~nobody-of-that-name").mkdir()
    pathlib.Path("~nobody-of-that-name/a.py").write_text("")
    assert find_recipe("./~nobody-of-that-name/a.py") == "~nobody-of-that-name/a.py"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SetupError, match="looked for in the current directory .which"):
        find_recipe("mine.py")


def run_config(**fields):
    config = load_recipe("digits")
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return check_config(config)[0]


def test_places_do_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    """Those that a run was given are compared as they were meant."""
    workdir, fields = epath.Path(tmp_path / "run"), all_fields("classification")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    places = {"init_from": "start", "data.name": "folder:data", "data.classes": "c.txt"}
    describe_run(workdir, run_config(**places), {})
    monkeypatch.chdir(tmp_path / "b")
    same = {name: value.replace("folder:", "") for name, value in places.items()}
    same = {name: f"../a/{value}" for name, value in same.items()}
    same["data.name"] = f"folder:{same['data.name']}"
    assert changed_fields(workdir, run_config(**same), fields) == []
    changes = changed_fields(workdir, run_config(**places), fields)
    assert changes[-1] == f"init_from: {tmp_path}/a/start -> {tmp_path}/b/start"
    assert len(changes) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON: "),
        ("[]", r"it holds \[\], and no object"),
        ("{}", "it has no field of a configuration"),
        ("\udcff", "it is no JSON: "),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"seed": "abc"}', "seed='abc' is not a whole number"),
        ('{"seed": 0, "data": 5}', "'data' is 5, and no object"),
        ('{"data": {"name": 5}}', "data.name=5 is not a text"),
    ],
)
def test_a_damaged_record_of_a_configuration_is_told(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(SetupError, match=f"config.json is damaged: {message}.*move it"):
        changed_fields(epath.Path(tmp_path), run_config(), all_fields("classification"))


def test_hints_differ_from_what_was_given():
    assert nearest("a", ["a", "ab"]) == "ab"
    assert nearest("a", ["a"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"mine.py, line 1: "),
        ("x = 1", "mine.py is no recipe: it has no function get_config"),
        ("def get_config(): pass", "mine.py has no variants, given 'large'"),
        ("def get_config(variant): pass", "get_config has to return a configuration"),
        ("config.batchsize = 3", "no field batchsize; did you mean 'batch_size'"),
        ("config.update(batchsize=3)", "no field batchsize; did you mean 'batch_size'"),
        (
            "config.batch_size = 'x'",
            "(?s)^batch_size takes a whole number from .* given 'x' of the type str\n"
            "  .*mine.py, line 4: config.batch",
        ),
        (
            "config.model.drop_path_rate = '0.2'",
            r"^model.drop_path_rate takes a number in \[0, 1\), given '0.2' of the type",
        ),
        ("config.model.depths = 3", "takes a tuple of .*, given 3 of the type int"),
        ("config.data = 3", "data is a group of fields, which are set one by one"),
        ("x = 1 / 0", "(?s)ZeroDivisionError.*mine.py, line 1: x = 1 / 0"),
        ("import no_such", "(?s)No module named 'no_such'.*mine.py, line 1: import no"),
        ("config.seed = a_name", "(?s)'a_name' is not defined.*mine.py, line 4: config"),
        ("get_config = 3", "mine.py is no recipe: it has no function get_config"),
        (
            "config = load_recipe('digit')",
            "(?s)mean 'digits'.*mine.py, line 4: config = ",
        ),
        ("config = load_recipe('base:tiny')", "has no variant 'tiny'; did you mean"),
        ("raise SystemExit", "(?s)ends the program.*mine.py, line 1: raise SystemExit"),
    ],
)
def test_recipes_that_cannot_be_read_are_one_line(text, message, tmp_path):
    if text.startswith("config"):
        text = (
            "from focalnet_jax.train import default_config, load_recipe\n"
            "def get_config(variant):\n"
            f"    config = default_config()\n    {text}\n    return config\n"
        )
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SetupError, match=message):
        load_recipe(f"{tmp_path / 'mine.py'}:large")


def test_base_is_the_release_recipe():
    config = load_recipe("base")
    assert config.model.name == "focalnet_base_lrf"
    assert config.model.drop_path_rate == 0.5
    assert (config.num_epochs, config.warmup_epochs) == (300, 20)
    assert (config.learning_rate, config.batch_size) == (1e-3, 1024)
    assert (config.warmup_learning_rate, config.final_learning_rate) == (1e-6, 1e-5)
    assert (config.weight_decay, config.clip_norm) == (0.05, 5.0)
    assert config.label_smoothing == 0.1
    assert not config.warmup_prefix
    assert config.data.rand_augment == "rand-m9-mstd0.5-inc1"
    assert config.data.color_jitter == 0  # timm leaves it out beside RandAugment
    assert (config.random_erasing, config.random_erasing_mode) == (0.25, "pixel")
    assert (config.mixup_alpha, config.cutmix_alpha) == (0.8, 1.0)
    assert (config.mix_probability, config.mix_switch_probability) == (1.0, 0.5)
    assert total_steps(config, 1_281_167) == 375_342


def test_base_has_a_variant_for_every_1k_model():
    config = load_recipe("base:tiny_srf")
    assert config.model.name == "focalnet_tiny_srf"
    assert config.model.drop_path_rate == 0.2
    assert (config.mixup_alpha, config.cutmix_alpha) == (0.8, 1.0)
    config, _ = check_config(load_recipe("base:base_deeper"))
    assert config.model.name == "focalnet_base_deeper"
    with pytest.raises(SetupError, match="did you mean 'tiny_iso'"):
        load_recipe("base:tiny_is")


def test_pretraining_and_fine_tuning_vary_the_recipe():
    config, _ = check_config(load_recipe("in22k:large_fl4"))
    assert config.model.name == "focalnet_large_fl4"
    assert config.model.num_classes == 21842
    # The paper, Table 19.
    assert (config.batch_size, config.num_epochs, config.warmup_epochs) == (4096, 90, 5)
    assert (config.learning_rate, config.warmup_learning_rate) == (1e-3, 1e-6)
    assert (config.final_learning_rate, config.weight_decay) == (1e-5, 0.05)
    assert (config.mixup_alpha, config.cutmix_alpha) == (0.8, 0.8)
    assert config.model.drop_path_rate == 0.2
    for variant in ("tiny_srf", "base_lrf"):
        assert load_recipe(f"in22k:{variant}").model.use_layerscale
    with pytest.raises(SetupError, match="did you mean 'huge_fl4'"):
        load_recipe("in22k:huge_fl5")
    config, _ = check_config(load_recipe("finetune:large_fl3,224"))
    assert (config.data.image_size, config.data.eval_crop) == (224, 0.875)
    assert (config.mixup_alpha, config.cutmix_alpha) == (0, 0)
    assert (config.batch_size, config.num_epochs, config.warmup_epochs) == (1024, 30, 0)
    assert (config.learning_rate, config.final_learning_rate) == (3e-5, 5e-6)
    assert (config.weight_decay, config.model.drop_path_rate) == (1e-8, 0.3)
    assert (config.random_erasing, config.label_smoothing) == (0.25, 0.1)
    config, _ = check_config(load_recipe("finetune"))
    assert (config.data.image_size, config.data.eval_crop) == (384, 1.0)
    config, task = check_config(load_recipe("finetune:large_fl3,360x880"))
    assert (config.data.image_size, config.data.eval_crop) == ((360, 880), 0.875)
    assert task.batch["image"].shape == (360, 880, 3)
    with pytest.raises(SetupError, match="'big' is no image size"):
        load_recipe("finetune:base_lrf,big")


def test_fill_is_the_mean_as_in_timm(tiny_config):
    assert check_config(tiny_config)[1].train_transform.fill == (124, 116, 104)


def set_field(config, field, value):
    *groups, name = field.split(".")
    for group in groups:
        config = config[group]
    config[name] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "batch_size",
            0,
            "batch_size=0 is not a whole number from 1 to 16,777",
        ),
        ("label_smoothing", 1.0, r"label_smoothing=1.0 is not a number in \[0, 1\)"),
        ("weight_decay_mask", "nominl", "did you mean 'nominal'"),
        ("mesh.data", 0, "mesh.data=0 is not -1 or a whole number from 1"),
        ("data.interpolation", "bicubc", "did you mean 'bicubic'"),
        ("data.interpolation", "randm", "did you mean 'random'"),
        ("data.eval_interpolation", "random", "data.eval_interpolation='random'"),
        ("data.pixels", "exakt", "did you mean 'exact'"),
        ("data.rand_augment", "rand-q9", "data.rand_augment='rand-q9' is no policy"),
        ("data.color_jitter", -0.1, "data.color_jitter=-0.1 is not a number in"),
        (
            "data.max_bad_records",
            -1,
            "data.max_bad_records=-1 is not a whole number",
        ),
        ("data.crop_area", (0.5, 0.1), "the greater one first: did you mean"),
        ("data.crop_area", (0.5, 9.0), "is not a tuple of 2 numbers in"),
        ("data.crop_aspect", ("a", "b"), "is not a tuple of 2 "),
        ("data.mean", (0.5,), "is not a tuple of 3 numbers"),
        ("data.std", (0.5, 0.5, 0.0), r"is not a tuple of 3 numbers in \[0.001"),
        ("adam_b2", 1.0, "adam_b2=1.0 is not a number in"),
        ("seed", -1, "seed=-1 is not a whole number from 0 to 4,294,967,295"),
        ("data.eval_crop", 1.5, "data.eval_crop=1.5"),
        ("data.image_size", 3, "too small for focalnet_tiny_srf, which needs 4 x 4"),
        ("data.image_size", (3, 16), "which needs 4 x 4"),
        ("data.image_size", (16,), r"data.image_size=\(16,\) is no size in pixels"),
        ("data.image_size", 1.5, "data.image_size=1.5 is no size in pixels"),
        ("data.image_size", None, "data.image_size=None is no size"),
        ("model.name", "focalnet_tny_srf", "did you mean 'focalnet_tiny_srf'"),
        ("model.depths", (1, 1, 1), "model.focal_levels has 1 entries and depths 3"),
        ("model.in_channels", 1, "images are read as RGB"),
        ("model.num_classes", 0, "model.num_classes=0"),
        ("model.remat", "dot", "model.remat='dot' is unknown; did you mean 'dots'"),
        ("reset_head", True, "reset_head=True needs init_from"),
        ("resize_kernels", True, "resize_kernels=True needs init_from"),
        ("ema_decay", 1.0, "ema_decay=1.0 is not a number in"),
        ("profile_steps", (3, 2), "has the greater one first"),
        ("profile_steps", (3,), "is not a tuple of 2 "),
        ("checkpoint.every_steps", 0, "checkpoint.every_steps=0 is not a whole"),
        ("checkpoint.every_minutes", -1.0, "checkpoint.every_minutes=-1.0 is not a"),
        (
            "checkpoint.best_metric",
            "test/acc",
            "is unknown; there are test/top1, test/top5, ",
        ),
        ("checkpoint.best_metric", "test_ema/top1", "needs ema_decay above 0"),
    ],
)
def test_values_that_cannot_be_are_named(tiny_config, field, value, message):
    check_config(tiny_config)
    set_field(tiny_config, field, value)
    with pytest.raises(SetupError, match=message):
        check_config(tiny_config)


@pytest.mark.parametrize("given", [16, (16, 16), [16, 16], "16", "16x16"])
def test_a_square_has_one_size_however_it_is_spelt(tiny_config, given):
    tiny_config.data.image_size = given
    config, task = check_config(tiny_config)
    assert config.data.image_size == 16
    assert task.preprocessing.image_size == 16


def test_fields_that_do_not_exist_are_named():
    with pytest.raises(AttributeError, match="learning_rate"):
        default_config().learning_rte = 1.0
    config = ConfigDict(default_config().to_dict() | {"learning_rte": 1.0})
    with pytest.raises(SetupError, match="learning_rte; did you mean 'learning_rate'"):
        check_config(config)
    del config["learning_rte"], config["seed"]
    with pytest.raises(SetupError, match="lacks the field seed"):
        check_config(config)
    with pytest.raises(SetupError, match="did you mean 'mesh.fsdp'"):
        check_field_name("mesh.fspd")


def test_groups_of_fields_are_no_fields():
    for name, message in (
        (
            "data",
            r"data is a group of fields, .*: data\.\w+, data\.\w+, data\.\w+, \.\.\.$",
        ),
        ("mesh", "mesh is a group .*: mesh.data, mesh.fsdp, mesh.spatial$"),
    ):
        with pytest.raises(SetupError, match=message):
            check_field_name(name)
        config = default_config()
        config[name] = None
        with pytest.raises(SetupError, match=message):
            check_config(config)


def test_every_option_of_the_model_is_a_field(tiny_config):
    tiny_config.model.use_postln = True
    tiny_config.model.dtype = "bfloat16"
    encoder = check_config(tiny_config)[1].model.encoder
    assert encoder.use_postln
    assert encoder.dtype == "bfloat16"


def test_every_field_is_read_by_someone(tiny_config, tmp_path, monkeypatch):
    """A run and its evaluation between them read all of the configuration.

    Fields are noted where they are read by name; writing the whole to `config.json`
    doesn't count.
    """
    tiny_config.num_steps = 2
    tiny_config.data.image_size = 8
    groups = ("model", "data", "mesh", "checkpoint")
    read = set()
    get = ConfigDict.__getattr__

    def noting(self, name):
        if name in self:
            own = [group for group in groups if {*self} <= {*default[group]}]
            read.add(".".join([*own, name]))
        return get(self, name)

    default = default_config().to_dict()
    monkeypatch.setattr(ConfigDict, "__getattr__", noting)
    run = check_config(tiny_config)
    train(*run, epath.Path(tmp_path))
    evaluate(*run, epath.Path(tmp_path))
    monkeypatch.undo()

    # The model's options go to `create_model` as a whole, which refuses unknown ones.
    # `num_steps` is set here, and stands in for `num_epochs`.
    unread = all_fields("classification").keys() - read
    unread = {name for name in unread if not name.startswith("model.")}
    assert unread == {"num_epochs"}
