"""Pretraining on ImageNet-22K.

    python -m focalnet_jax.data.prepare folder:/data/imagenet22k --name=imagenet22k
    python main.py --config=configs/in22k.py
    python main.py --config=configs/in22k.py:large_fl4

The official release has no recipe for this. The values are those of the paper for
FocalNet-B and FocalNet-L (arXiv 2203.11926, Table 19 and appendix A.3). Among them are
LayerScale in all models, and 0.8 for cutmix. What the paper does not say is as in
configs/base.py. No accuracy is published for this step, only after fine-tuning
(configs/finetune.py).

There are no splits: `prepare` makes all images `train`, of which this takes the last
hundredth for testing. Where they aren't the 14,197,122 of the release of 2011, a message
says what `--config.data.num_train_examples` is. Classes are the sorted WordNet ids,
21,841 of them there. The head has 21,842 outputs, as the official weights have, whose
order is their own; `--config.model.num_classes` sets another number.
"""

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.train import load_recipe

# The rate of stochastic depth of each variant.
DROP_PATH_RATES = {
    # The paper says 0.2 for base and large. For tiny and small it is our choice.
    "tiny_srf": 0.2,
    "tiny_lrf": 0.2,
    "small_srf": 0.2,
    "small_lrf": 0.2,
    "base_srf": 0.2,
    "base_lrf": 0.2,
    # The official files of all these have 0.5; for large, the paper's text comes first.
    "large_fl3": 0.2,
    "large_fl4": 0.2,
    "xlarge_fl3": 0.5,
    "xlarge_fl4": 0.5,
    "huge_fl3": 0.5,
    "huge_fl4": 0.5,
}


def get_config(variant: str = ""):
    variant = variant or "base_lrf"
    if variant not in DROP_PATH_RATES:
        hint = did_you_mean(variant, DROP_PATH_RATES)
        raise SetupError(f"configs/in22k.py has no variant {variant!r}{hint}")

    config = load_recipe("base")
    config.batch_size = 4096
    config.num_epochs = 90.0
    config.learning_rate_batch_size = 4096
    config.warmup_epochs = 5.0
    config.cutmix_alpha = 0.8

    config.model.name = f"focalnet_{variant}"
    config.model.num_classes = 21842
    config.model.drop_path_rate = DROP_PATH_RATES[variant]
    config.model.use_layerscale = True  # "for stability"; it begins at 1e-4

    config.data.name = "imagenet22k"
    config.data.train_split = "train[:99%]"
    config.data.num_train_examples = 14_055_151
    config.data.test_split = "train[99%:]"
    config.data.max_bad_records = 100  # among 14 million files from the web

    config.checkpoint.every_steps = 1000
    config.evaluate_every_steps = 10_000
    return config
