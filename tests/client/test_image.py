from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from client.errors import InputError, MetadataError
from client.image import FORMATS, MAX_PIXELS, Color, ImageSpec, Interpolation, Layout, load_image, to_dtype

RAW = ImageSpec("image", scale=1.0)  # the picture's own values, 0 to 255


def pattern(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    channels = [(x * 7 + y * 3) % 256, (x * y) % 256, (x * x + y * 5) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(source: Image.Image | bytes | Path, spec: ImageSpec = RAW) -> npt.NDArray[np.int64]:
    """Height, width, channel; whole numbers."""
    values = load_image(source, spec)
    assert values.dtype == np.float32
    return values.transpose(1, 2, 0).astype(np.int64)


class TestTorchvisionRules:
    """Expected values were computed with torchvision 0.29.2 (PIL back end) from the same pattern."""

    @pytest.mark.parametrize(
        ("size", "resize", "crop", "interpolation", "sums", "pixel", "checksum"),
        [
            ((53, 37), 16, (16, 16), "bilinear", [32402, 30426, 33261], [160, 211, 114], 389584),
            ((37, 53), 21, (16, 15), "bicubic", [35364, 31390, 31861], [142, 221, 237], 364673),
            ((53, 37), (20, 31), None, "lanczos", [75338, 68896, 78147], [121, 142, 222], 917706),
            ((53, 37), 19, (25, 40), "nearest", [61932, 54228, 63814], [86, 80, 114], 721264),
            ((30, 41), None, (29, 30), "bilinear", [122329, 99724, 111863], [94, 105, 124], 1277517),
            ((33, 20), None, (45, 50), "bilinear", [87098, 59872, 75318], [37, 12, 31], 964600),
            ((100, 75), 25, (24, 24), "bilinear", [73434, 71474, 73514], [38, 101, 113], 882992),
        ],
    )
    def test_resize_and_crop(
        self,
        size: tuple[int, int],
        resize: int | tuple[int, int] | None,
        crop: tuple[int, int] | None,
        interpolation: str,
        sums: list[int],
        pixel: list[int],
        checksum: int,
    ) -> None:
        spec = ImageSpec("image", resize, Interpolation(interpolation), crop, scale=1.0)
        values = pixels(pattern(*size), spec)
        height, width, _ = values.shape
        weights = np.arange(1, values.size + 1).reshape(values.shape)
        assert values.sum(axis=(0, 1)).tolist() == sums
        assert values[height // 3, width // 4].tolist() == pixel
        assert (values * weights % 997).sum() == checksum

    def test_normalise(self) -> None:
        spec = ImageSpec("image", 16, crop=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        values = load_image(pattern(53, 37), spec)
        expected = [0.6220567226409912, 1.6582633256912231, 0.1824837327003479]
        np.testing.assert_allclose(values[:, 5, 4], expected, rtol=0, atol=5e-7)


class TestLayoutAndColor:
    def test_nchw_and_nhwc(self) -> None:
        image = pattern(5, 4)
        first = load_image(image, ImageSpec("x", layout=Layout.NCHW, scale=1.0))
        last = load_image(image, ImageSpec("x", layout=Layout.NHWC, scale=1.0))
        assert first.shape == (3, 4, 5)
        assert last.shape == (4, 5, 3)
        assert np.array_equal(first, last.transpose(2, 0, 1))
        assert np.array_equal(last, np.asarray(image))

    def test_bgr_statistics_are_in_bgr_order(self) -> None:
        spec = ImageSpec("x", color=Color.BGR, scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
        values = load_image(Image.new("RGB", (1, 1), (103, 102, 101)), spec)
        assert values.reshape(-1).tolist() == [100.0, 50.0, 25.0]

    @pytest.mark.parametrize(("layout", "shape"), [(Layout.NCHW, (1, 4, 5)), (Layout.NHWC, (4, 5, 1))])
    def test_gray(self, layout: Layout, shape: tuple[int, ...]) -> None:
        spec = ImageSpec("x", color=Color.GRAY, layout=layout, scale=1.0, mean=(0.0,), std=(1.0,))
        image = pattern(5, 4)
        values = load_image(image, spec)
        assert values.shape == shape
        assert np.array_equal(values.reshape(4, 5), np.asarray(image.convert("L")))

    def test_gray_picture_fills_three_channels(self) -> None:
        assert pixels(Image.new("L", (2, 2), 77)).tolist() == [[[77] * 3] * 2] * 2


class TestModes:
    @pytest.mark.parametrize("file_format", FORMATS)
    def test_every_format(self, file_format: str) -> None:
        image = Image.new("RGB", (9, 7), (200, 100, 50))
        options = {"lossless": True} if file_format == "WEBP" else {}
        values = pixels(encode(image, file_format, **options))
        assert values.shape == (7, 9, 3)
        tolerance = 2 if file_format == "JPEG" else 0
        assert abs(values - [200, 100, 50]).max() <= tolerance

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
    def test_16_bits_are_scaled_and_not_clipped(self, file_format: str) -> None:
        samples = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
        values = pixels(encode(Image.fromarray(samples), file_format))
        assert values[:, :, 0].tolist() == [[0, 0, 1, 1], [4, 128, 254, 255]]

    def test_16_bit_big_endian(self) -> None:
        image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 257, 65535))
        assert pixels(encode(image, "TIFF"))[0, :, 0].tolist() == [1, 255]

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_32_bit_samples_have_no_known_range(self, mode: str) -> None:
        with pytest.raises(InputError, match="32-bit samples"):
            load_image(encode(Image.new(mode, (2, 2)), "TIFF"), RAW)

    def test_cmyk(self) -> None:
        data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
        assert abs(pixels(data) - [255, 0, 0]).max() <= 2

    def test_alpha_is_laid_over_white(self) -> None:
        image = Image.new("RGBA", (3, 1))
        for x, alpha in enumerate((255, 0, 128)):
            image.putpixel((x, 0), (10, 20, 30, alpha))
        values = pixels(encode(image, "PNG"))[0]
        assert values[0].tolist() == [10, 20, 30]
        assert values[1].tolist() == [255, 255, 255]
        assert abs(values[2] - [132, 137, 142]).max() <= 1

    def test_gray_with_alpha(self) -> None:
        image = Image.new("LA", (2, 1), (40, 255))
        image.putpixel((1, 0), (40, 0))
        assert pixels(encode(image, "PNG"))[0].tolist() == [[40] * 3, [255] * 3]

    def test_palette(self) -> None:
        image = Image.new("RGB", (2, 1), (1, 2, 3))
        image.putpixel((1, 0), (250, 0, 9))
        assert pixels(encode(image.quantize(4), "PNG"))[0].tolist() == [[1, 2, 3], [250, 0, 9]]

    @pytest.mark.parametrize("file_format", ["PNG", "GIF"])
    def test_palette_with_transparency(self, file_format: str) -> None:
        image = Image.new("P", (2, 1), 0)
        image.putpalette([10, 20, 30, 200, 0, 0])
        image.putpixel((1, 0), 1)
        values = pixels(encode(image, file_format, transparency=0))
        assert values[0].tolist() == [[255, 255, 255], [200, 0, 0]]

    def test_one_color_of_rgb_is_transparent(self) -> None:
        image = Image.new("RGB", (2, 1), (10, 20, 30))
        image.putpixel((1, 0), (9, 9, 9))
        values = pixels(encode(image, "PNG", transparency=(9, 9, 9)))
        assert values[0].tolist() == [[10, 20, 30], [255, 255, 255]]

    def test_bilevel(self) -> None:
        image = Image.new("1", (2, 1), 1)
        image.putpixel((0, 0), 0)
        assert pixels(encode(image, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]

    def test_gif_gives_its_first_frame(self) -> None:
        frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_exif_orientation(self, orientation: int, file_format: str) -> None:
        # An F in 16-pixel blocks, stored as a camera held in that orientation would store it.
        upright = Image.fromarray(
            np.kron([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.full((16, 16), 255)).astype(np.uint8)
        )
        stored = upright
        for method in {
            2: [Image.Transpose.FLIP_LEFT_RIGHT],
            3: [Image.Transpose.ROTATE_180],
            4: [Image.Transpose.FLIP_TOP_BOTTOM],
            5: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90],
            6: [Image.Transpose.ROTATE_90],
            7: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_270],
            8: [Image.Transpose.ROTATE_270],
        }.get(orientation, []):
            stored = stored.transpose(method)
        exif = Image.Exif()
        exif[0x0112] = orientation
        values = pixels(encode(stored, file_format, exif=exif))[:, :, 0]
        assert values.shape == (64, 48)
        assert ((values > 128) == (np.asarray(upright) > 128)).mean() > 0.99

    def test_broken_exif_is_ignored(self) -> None:
        data = encode(Image.new("RGB", (4, 4), "red"), "PNG", exif=b"Exif\x00\x00nonsense")
        assert pixels(data).shape == (4, 4, 3)


class TestBadPictures:
    def check(self, source: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load_image(source, RAW)
        assert str(source) in caught.value.message
        assert "\n" not in caught.value.message

    def test_missing(self, tmp_path: Path) -> None:
        self.check(tmp_path / "cat.jpg", "No such file")

    def test_folder(self, tmp_path: Path) -> None:
        self.check(tmp_path, "is a folder")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "cat.jpg").touch()
        self.check(tmp_path / "cat.jpg", "is empty")

    @pytest.mark.parametrize(
        "content", [b"hello", b"\x00" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
    )
    def test_not_a_picture(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "cat.jpg").write_bytes(content)
        self.check(tmp_path / "cat.jpg", "is not a JPEG, PNG")

    @pytest.mark.parametrize("file_format", FORMATS)
    @pytest.mark.parametrize("part", [0.3, 0.9])
    def test_truncated(self, tmp_path: Path, file_format: str, part: float) -> None:
        rng = np.random.default_rng(0)
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        data = encode(noise, file_format)
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError, match="cut"):
            load_image(path, RAW)

    def test_damage_never_raises_anything_else(self) -> None:
        rng = random.Random(7)
        sound = [encode(pattern(24, 20), file_format) for file_format in FORMATS]
        refused = 0
        for _ in range(600):
            data = bytearray(rng.choice(sound))
            for _ in range(rng.choice([1, 3, 20])):
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            try:
                load_image(bytes(data), ImageSpec("x", 16, crop=(16, 16)))
            except InputError:
                refused += 1
        assert 0 < refused < 600

    def test_bomb_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        # A PNG header that claims 60000 x 60000 pixels, and almost no data.
        def chunk(kind: bytes, content: bytes) -> bytes:
            import zlib

            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c") + chunk(b"IEND", b""))
        self.check(path, "too many pixels")

    def test_size_limit_without_pillows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        image = Image.new("1", (20000, MAX_PIXELS // 20000 + 1))
        with pytest.raises(InputError, match="the limit is"):
            load_image(encode(image, "PNG"), RAW)

    def test_resize_of_a_long_strip(self) -> None:
        with pytest.raises(InputError, match="would be resized to"):
            load_image(Image.new("L", (1, 60000)), ImageSpec("x", 256))


class TestSpec:
    def test_defaults(self) -> None:
        spec = ImageSpec.from_json('{"input": "x"}')
        assert spec == ImageSpec("x")
        assert spec.mean == (0.0, 0.0, 0.0)

    def test_everything(self) -> None:
        fields = {
            "input": "x",
            "resize": [10, 20],
            "interpolation": "bicubic",
            "crop": [8, 9],
            "color": "GRAY",
            "layout": "NHWC",
            "scale": 2,
            "mean": 0.5,
            "std": [0.25],
        }
        assert ImageSpec.from_json(json.dumps(fields)) == ImageSpec(
            "x", (10, 20), Interpolation.BICUBIC, (8, 9), Color.GRAY, Layout.NHWC, 2.0, (0.5,), (0.25,)
        )

    def test_one_number_stands_for_every_channel(self) -> None:
        assert ImageSpec.from_json('{"input": "x", "mean": 127.5, "std": [2]}').mean == (127.5,) * 3

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "doesn't name its input"),
            ('{"input": ""}', "doesn't name its input"),
            ('{"input": "x", "rezise": 256}', "unknown key 'rezise'"),
            ('{"input": "x", "resize": 0}', "resize 0"),
            ('{"input": "x", "resize": true}', "resize True"),
            ('{"input": "x", "resize": [1, 2, 3]}', "resize"),
            ('{"input": "x", "crop": 224}', "crop 224"),
            ('{"input": "x", "color": "HSV"}', "color 'HSV' is none of RGB, BGR, GRAY"),
            ('{"input": "x", "layout": ["NCHW"]}', "layout"),
            ('{"input": "x", "mean": [1, 2]}', "mean"),
            ('{"input": "x", "mean": [1, 2, NaN]}', "mean"),
            ('{"input": "x", "std": [1, 0, 1]}', "std"),
            ('{"input": "x", "scale": "1/255"}', "scale"),
        ],
    )
    def test_refused(self, fields: str, message: str) -> None:
        with pytest.raises(MetadataError, match=message):
            ImageSpec.from_json(fields)


class TestToDtype:
    def test_integers_are_rounded_and_clipped(self) -> None:
        values = np.array([-3.0, 0.4, 1.5, 2.5, 254.6, 300.0], np.float32)
        assert to_dtype(values, np.uint8).tolist() == [0, 0, 2, 2, 255, 255]
        assert to_dtype(values * 100, np.int8).tolist() == [-128, 40, 127, 127, 127, 127]

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float16, np.float64])
    def test_dtypes(self, dtype: npt.DTypeLike) -> None:
        values = to_dtype(np.array([0.0, 2.0], np.float32), dtype)
        assert values.dtype == dtype
        assert values.tolist() == [0, 2]
