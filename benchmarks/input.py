"""Images a second of input pipelines, side by side on the same JPEGs.

    pip install '.[fast,test]' scikit-image tensorflow-cpu
    python benchmarks/input.py [--rounds=15] [--json=FILE]
    python benchmarks/input.py --table [--json=FILE]     # of what has been measured

Two tasks of classification, each from files to batches of 224 x 224 uint8 images on the
host: `crop`, that is decoding, random resized crop (bicubic, antialiased) and flip; and
`full`, the same and RandAugment (rand-m9-mstd0.5-inc1), all that the recipe does on the
host. What follows on the accelerator, normalisation, erasing and mixing, is left out for
all. Contenders: this pipeline in its two modes; timm's loader with its uint8 collation;
tf.data with `decode_and_crop_jpeg`, `tf.image.resize` and
`tf.image.random_flip_left_right`, in `crop` alone, where TensorFlow is installed.

`--tasks segmentation` is the recipe for ADE20K, from images of 683 x 512 and their masks
to crops of 512 x 512 with labels. Contenders: this pipeline, and mmsegmentation's own
transforms in its data loader. It needs `pip install --no-deps -r
tests/mmsegmentation.txt` in addition.

Each contender has as many workers as the others (processes; of tf.data threads), one and
then two.

Each contender is a process of its own, stopped (SIGSTOP) while others have their turn. A
turn first takes what was loaded in advance, then measures. All take turns in every round,
in an order that changes; printed are medians over the rounds of images a second, images a
second of CPU time, and of the ratios within rounds to the others, with their least and
greatest. With `--json=FILE` they become a part of the file, with the processor, the
versions and the command; `--table` prints the file in Markdown.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import recorded
import segmentation_loaders
from segmentation_loaders import Repeated

SIZE = 224
BATCH_SIZES = {"crop": 64, "full": 64, "segmentation": 16}
POLICY = "rand-m9-mstd0.5-inc1"
CONTENDERS = {
    "crop": ("exact", "fast", "timm", "tf.data"),
    "full": ("exact", "fast", "timm"),
    "segmentation": ("exact", "mmsegmentation"),
}
# The others, in the order of their columns.
RIVALS = ("timm", "tf.data", "mmsegmentation")
NEEDED = ("timm", "torchvision", "cv2", "cykooz_resizer", "psutil")
NEEDED_FOR_SEGMENTATION = ("mmseg", "mmcv", "mmengine", "torch", "cv2", "psutil")
VERSIONS = ("grain", "simplejpeg", "cykooz-resizer", "opencv-python-headless", "pillow")
VERSIONS += ("numpy", "timm", "torch", "torchvision", "tensorflow-cpu")
VERSIONS += ("mmsegmentation", "mmcv-lite")
RESULTS = pathlib.Path(__file__).parent / "results" / "input.json"
REPEATS = 10_000  # of the images: as many as in ImageNet-22K, and no epoch ends


def ours(pixels, task, workers, images):
    from focalnet_jax.data import RandAugment, TrainTransform, open_source, train_batches
    from focalnet_jax.tasks.examples import TrainExample

    transform = TrainTransform(
        SIZE,
        rand_augment=RandAugment.parse(POLICY) if task == "full" else None,
        pixels=pixels,
    )
    folder = open_source(f"folder:{images}", split="train")
    source = dataclasses.replace(folder, records=Repeated(folder.records, REPEATS))
    batches = train_batches(
        source,
        TrainExample(transform, source.labels()),
        batch_size=BATCH_SIZES[task],
        seed=0,
        threads=1,
        workers=workers,
    )
    for batch in batches:
        yield checked(batch["image"], task)


def timms(task, workers, images):
    import torch

    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError):
        # Built for CUDA beside a torch for CPUs: its import asks for two operators.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
    import PIL.Image
    from timm.data import ImageDataset, auto_augment, create_loader

    posterize = auto_augment.posterize

    def posterize_to_any(image, bits, **options):
        # Full magnitude leaves no bit, which Pillow refuses by now: timm would stop.
        if bits == 0:
            return PIL.Image.new("RGB", image.size)
        return posterize(image, bits, **options)

    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize_to_any

    class RepeatedImages(ImageDataset):
        def __len__(self):
            return super().__len__() * REPEATS

        def __getitem__(self, index):
            return super().__getitem__(index % super().__len__())

    loader = create_loader(
        RepeatedImages(str(images)),
        (3, SIZE, SIZE),
        BATCH_SIZES[task],
        is_training=True,
        # Batches of uint8, made by the workers; the device's part is left out.
        use_prefetcher=True,
        device=torch.device("cpu"),
        interpolation="bicubic",
        auto_augment=POLICY if task == "full" else None,
        color_jitter=0.0,
        num_workers=workers,
        pin_memory=False,
    ).loader
    for image, _ in loader:
        yield checked(image.numpy(), task)


def tf_datas(workers, images):
    import tensorflow as tf

    def load(path):
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return tf.image.random_flip_left_right(image)

    files = sorted(map(str, images.glob("*/*.jpg")))
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files))
    dataset = dataset.map(load, num_parallel_calls=workers, deterministic=False)
    dataset = dataset.batch(BATCH_SIZES["crop"]).prefetch(2).with_options(options)
    for batch in dataset.as_numpy_iterator():
        yield checked(batch, "crop")


def checked(images, task):
    assert images.dtype == "uint8"
    assert images.size == BATCH_SIZES[task] * SIZE * SIZE * 3
    return images


def contend(name, task, workers, images):
    """A contender's process: for each line with two numbers, skips and measures."""
    import psutil

    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    if task == "segmentation":
        module = segmentation_loaders
        loader = {"exact": module.ours, "mmsegmentation": module.mmsegmentations}[name]
        batches = loader(BATCH_SIZES[task], workers, images, REPEATS)
    else:
        batches = {
            "exact": lambda: ours("exact", task, workers, images),
            "fast": lambda: ours("fast", task, workers, images),
            "timm": lambda: timms(task, workers, images),
            "tf.data": lambda: tf_datas(workers, images),
        }[name]()
    for line in sys.stdin:
        skip, count = map(int, line.split())
        for _ in range(skip):
            next(batches)
        cpu, start = cpu_seconds(psutil), time.perf_counter()
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
        cpu = cpu_seconds(psutil) - cpu
        made = count * BATCH_SIZES[task]
        print(json.dumps([made / s for s in (seconds, cpu)]), file=results)
        results.flush()
    batches.close()


def cpu_seconds(psutil) -> float:
    this = psutil.Process()
    times = [p.cpu_times() for p in [this, *this.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


class Contender:
    """A process that takes turns."""

    def __init__(self, name, task, workers, images):
        command = [sys.executable, __file__, "--contender", name, task, str(workers)]
        self._process = subprocess.Popen(
            [*command, f"--images={images}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("VERBOSE") else None,
            text=True,
            start_new_session=True,
        )

    def turn(self, skip, count):
        """Images a second, and images a second of CPU time."""
        os.killpg(self._process.pid, signal.SIGCONT)
        print(skip, count, file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], 600)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise SystemExit("a contender has ended: try again with VERBOSE=1")
        os.killpg(self._process.pid, signal.SIGSTOP)
        return json.loads(line)

    def end(self):
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


def compare(task, workers, images, *, rounds, count):
    """By contender, the results of each round."""
    names = [n for n in CONTENDERS[task] if n != "tf.data" or has_tensorflow()]
    contenders = {name: Contender(name, task, workers, images) for name in names}
    results = {name: [] for name in names}
    try:
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                # Both loaders hold at most 2 batches for a worker; tf.data 3 in all.
                result = contenders[name].turn(skip=2 * workers + 2, count=count)
                if number:  # the first round is for warming up
                    results[name].append(result)
            if number:
                shown = (f"{n} {results[n][-1][0]:,.0f}" for n in names)
                progress = f"{task}, {workers} workers, round {number}/{rounds}"
                print(f"{progress}: {'  '.join(shown)}", file=sys.stderr)
    finally:
        for contender in contenders.values():
            contender.end()
    return results


def has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None


def summary(results):
    """By contender, medians, and of ratios within rounds also the least and greatest."""
    table = {}
    for name, rounds in results.items():
        speed, per_cpu = (statistics.median(values) for values in zip(*rounds))
        table[name] = {"images_per_second": speed, "images_per_cpu_second": per_cpu}
        for rival in RIVALS:
            if rival in results:
                ratios = [a / b for (a, _), (b, _) in zip(rounds, results[rival])]
                numbers = [statistics.median(ratios), min(ratios), max(ratios)]
                table[name][f"times_{rival}"] = numbers
    return table


def markdown(measured):
    """A table of some entries of a file, by lines."""
    rows = [row for entry in measured.values() for row in entry["contenders"].values()]
    rivals = [name for name in RIVALS if any(f"times_{name}" in row for row in rows)]
    heads = ["task", "workers", "", "images/s", "images/s of CPU"]
    heads += [f"times {rival}" for rival in rivals]
    yield f"| {' | '.join(heads)} |".replace("|  |", "| |")
    yield "|" + "---|" * len(heads)
    for entry in measured.values():
        for name, row in entry["contenders"].items():
            cells = [entry["task"], entry["workers"], f"`{name}`"]
            for key in ("images_per_second", "images_per_cpu_second"):
                cells.append(f"{row[key]:,.0f}")
            for rival in rivals:
                numbers = row.get(f"times_{rival}")
                cells.append("{:.2f} ({:.2f}-{:.2f})".format(*numbers) if numbers else "")
            yield f"| {' | '.join(map(str, cells))} |"


def about(args):
    """The machine, the versions and how it was measured."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "rounds": args.rounds,
        "batches": args.batches,
        "command": recorded.command("benchmarks/input.py"),
    }


def made_for(task, directory):
    """A folder of images for a task, which are made if they aren't there."""
    from photographs import make, make_pairs

    kind = "pairs" if task == "segmentation" else "classes"
    if not (directory / kind).exists():
        {"pairs": make_pairs, "classes": make}[kind](directory / kind)
    return directory / kind


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=10, help="in each turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--tasks", nargs="+", default=["crop", "full"], choices=CONTENDERS
    )
    parser.add_argument(
        "--images",
        type=pathlib.Path,
        help="an image folder of JPEGs; for segmentation, one in ADE20K's layout",
    )
    parser.add_argument("--json", type=pathlib.Path, help="where to add the results")
    parser.add_argument("--table", action="store_true", help="print it, measure nothing")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        name, task, workers = args.contender
        contend(name, task, int(workers), args.images)
        return
    if args.table:
        measured = recorded.read(args.json or RESULTS)
        chosen = {
            n: entry for n, entry in measured.items() if entry["task"] in args.tasks
        }
        print(*markdown(chosen), sep="\n")
        return
    needed = {*NEEDED} if {*args.tasks} - {"segmentation"} else set()
    needed |= {*NEEDED_FOR_SEGMENTATION} if "segmentation" in args.tasks else set()
    if missing := [n for n in sorted(needed) if importlib.util.find_spec(n) is None]:
        raise SystemExit(
            f"error: the contenders need {', '.join(missing)}, which is not there:\n"
            "  pip install '.[fast,test]' scikit-image && "
            "pip install --no-deps -r tests/mmsegmentation.txt"
        )

    with tempfile.TemporaryDirectory() as directory:
        for task in args.tasks:
            images = args.images or made_for(task, pathlib.Path(directory))
            for workers in args.workers:
                results = compare(
                    task, workers, images, rounds=args.rounds, count=args.batches
                )
                entry = {"task": task, "workers": workers, **about(args)}
                entry["contenders"] = summary(results)
                name = f"{task}, {workers} worker{'s' * (workers > 1)}"
                print(*markdown({name: entry}), sep="\n", flush=True)
                if args.json:
                    whole = (
                        json.loads(args.json.read_text()) if args.json.exists() else {}
                    )
                    whole = dict(sorted((whole | {name: entry}).items()))
                    args.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
