"""The handwritten digits that scikit-learn carries, as a TFDS data set.

They are 1,797 images of 8 x 8 grey pixels, written by 43 people: the test part of
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI, 1998). They lie
inside the scikit-learn package, so nothing is downloaded.
"""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

# The images for testing are one fifth of each digit, drawn once by scikit-learn's
# `train_test_split(arange(1797), test_size=360, stratify=target, random_state=0)`. All
# other images are for training.
_TEST_INDICES = """
21 24 28 34 35 37 39 42 45 51 57 77 78 81 87 96 99 102 103 105 110 117 119 131 132 134
148 159 170 173 186 188 197 198 202 204 205 211 214 227 240 243 245 252 254 264 267
275 276 279 283 286 293 298 304 305 306 307 308 312 314 326 328 335 339 344 346 364
372 374 376 380 386 393 397 403 405 407 410 413 417 420 423 425 430 433 440 442 452
454 481 493 496 497 499 500 520 527 528 538 553 556 565 567 568 569 573 587 593 604
608 610 619 637 639 641 649 652 666 667 675 694 700 701 702 704 705 709 716 719 734
738 741 744 749 760 766 767 768 770 772 783 786 787 788 789 794 800 802 805 806 808
811 812 820 822 852 854 855 860 865 876 885 888 890 899 900 905 908 918 926 929 937
943 944 945 951 960 973 977 985 989 990 992 997 1002 1003 1005 1006 1007 1009 1010
1012 1014 1016 1023 1030 1035 1037 1038 1049 1053 1056 1073 1081 1086 1088 1090 1096
1098 1101 1107 1108 1116 1118 1121 1123 1136 1141 1148 1150 1151 1152 1157 1159 1161
1162 1167 1168 1169 1173 1174 1180 1187 1192 1204 1217 1220 1221 1224 1232 1233 1242
1253 1261 1262 1264 1268 1269 1270 1287 1292 1296 1302 1312 1319 1330 1331 1332 1340
1350 1351 1352 1353 1364 1371 1372 1375 1395 1404 1405 1406 1415 1424 1429 1435 1440
1442 1450 1455 1466 1467 1470 1471 1474 1476 1482 1484 1487 1493 1496 1497 1505 1509
1512 1513 1520 1529 1530 1532 1540 1541 1542 1551 1558 1560 1566 1567 1576 1582 1592
1596 1602 1606 1608 1610 1613 1614 1617 1626 1628 1629 1634 1637 1645 1650 1655 1660
1664 1666 1668 1673 1674 1680 1688 1691 1696 1703 1704 1706 1716 1717 1726 1728 1734
1742 1745 1750 1755 1758 1767 1770 1771 1772 1776 1778 1781 1787 1789 1791
"""
TEST_INDICES = frozenset(map(int, _TEST_INDICES.split()))


class Digits(tfds.core.GeneratorBasedBuilder):
    """The splits `train`, 1,437 images, and `test`, 360 images.

    Both have all ten digits in the same proportions.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # There is nothing to download.
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, *, test: bool):
        import sklearn.datasets  # This takes a second, and is needed only once.

        digits = sklearn.datasets.load_digits()
        # scikit-learn stores grey levels from 0 to 16.
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index, (image, label) in enumerate(zip(images, digits.target)):
            if (index in TEST_INDICES) == test:
                yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}
