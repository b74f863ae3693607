"""Images a second of input pipelines, side by side on the same JPEGs.

    pip install '.[fast,test]' scikit-image tensorflow-cpu
    python benchmarks/input.py [--rounds=15] [--json=FILE]
    python benchmarks/input.py --table [--json=FILE]     # of what has been measured

Two tasks, each from files to batches of 224 x 224 uint8 images on the host: `crop`, that
is decoding, random resized crop (bicubic, antialiased) and flip; and `full`, the same and
RandAugment (rand-m9-mstd0.5-inc1), all that the recipe does on the host. What follows on
the accelerator, normalisation, erasing and mixing, is left out for all.

Contenders: this pipeline in its two modes; timm's loader with its uint8 collation;
tf.data with `decode_and_crop_jpeg`, `tf.image.resize` and
`tf.image.random_flip_left_right`, in `crop` alone, where TensorFlow is installed. Each
has as many workers as the others (processes; of tf.data threads), one and then two.

Each contender is a process of its own, stopped (SIGSTOP) while others have their turn. A
turn first takes what was loaded in advance, then measures. All take turns in every round,
in an order that changes; printed are medians over the rounds of images a second, images a
second of CPU time, and of the ratios within rounds to timm and tf.data, with their least
and greatest. With `--json=FILE` they become a part of the file, with the processor, the
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

BATCH_SIZE = 64
SIZE = 224
POLICY = "rand-m9-mstd0.5-inc1"
CONTENDERS = {
    "crop": ("exact", "fast", "timm", "tf.data"),
    "full": ("exact", "fast", "timm"),
}
NEEDED = ("timm", "torchvision", "cv2", "cykooz_resizer", "psutil")
VERSIONS = ("grain", "simplejpeg", "cykooz-resizer", "opencv-python-headless", "pillow")
VERSIONS += ("numpy", "timm", "torch", "torchvision", "tensorflow-cpu")
RESULTS = pathlib.Path(__file__).parent / "results" / "input.json"
REPEATS = 10_000  # of the images: as many as in ImageNet-22K, and no epoch ends


class Repeated:
    """The records of a source again and again."""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records) * REPEATS

    def __getitem__(self, index):
        return self._records[index % len(self._records)]


def ours(pixels, task, workers, images):
    from focalnet_jax.data import RandAugment, TrainTransform, open_source, train_batches
    from focalnet_jax.tasks.examples import TrainExample

    transform = TrainTransform(
        SIZE,
        rand_augment=RandAugment.parse(POLICY) if task == "full" else None,
        pixels=pixels,
    )
    folder = open_source(f"folder:{images}", split="train")
    source = dataclasses.replace(folder, records=Repeated(folder.records))
    batches = train_batches(
        source,
        TrainExample(transform, source.labels()),
        batch_size=BATCH_SIZE,
        seed=0,
        threads=1,
        workers=workers,
    )
    for batch in batches:
        yield batch["image"]


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
        BATCH_SIZE,
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
        yield image.numpy()


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
    dataset = dataset.batch(BATCH_SIZE).prefetch(2).with_options(options)
    yield from dataset.as_numpy_iterator()


def contend(name, task, workers, images):
    """A contender's process: for each line with two numbers, skips and measures."""
    import psutil

    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
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
            batch = next(batches)
        seconds = time.perf_counter() - start
        assert batch.dtype == "uint8"
        assert batch.size == BATCH_SIZE * SIZE * SIZE * 3
        cpu = cpu_seconds(psutil) - cpu
        print(json.dumps([count * BATCH_SIZE / s for s in (seconds, cpu)]), file=results)
        results.flush()
        del batch
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
        for rival in ("timm", "tf.data"):
            if rival in results:
                ratios = [a / b for (a, _), (b, _) in zip(rounds, results[rival])]
                numbers = [statistics.median(ratios), min(ratios), max(ratios)]
                table[name][f"times_{rival}"] = numbers
    return table


def markdown(measured):
    """A table of what is in a file, by lines."""
    yield "| task | workers | | images/s | images/s of CPU | times timm | times tf.data |"
    yield "|---|---|---|---|---|---|---|"
    for entry in measured.values():
        for name, row in entry["contenders"].items():
            cells = [entry["task"], entry["workers"], f"`{name}`"]
            for key in ("images_per_second", "images_per_cpu_second"):
                cells.append(f"{row[key]:,.0f}")
            for rival in ("timm", "tf.data"):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=10, help="in each turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", default=["crop", "full"])
    parser.add_argument("--images", type=pathlib.Path, help="an image folder of JPEGs")
    parser.add_argument("--json", type=pathlib.Path, help="where to add the results")
    parser.add_argument("--table", action="store_true", help="print it, measure nothing")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        name, task, workers = args.contender
        contend(name, task, int(workers), args.images)
        return
    if args.table:
        print(*markdown(json.loads((args.json or RESULTS).read_text())), sep="\n")
        return
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"error: the contenders need {', '.join(missing)}, which is not there:\n"
            "  pip install '.[fast,test]' scikit-image"
        )

    with tempfile.TemporaryDirectory() as directory:
        images = args.images
        if images is None:
            from photographs import make

            images = pathlib.Path(directory)
            make(images)
        for task in args.tasks:
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
