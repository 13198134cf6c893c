from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from client.client import check_inputs
from client.errors import ClientError, InputError, UsageError
from client.inputs import find_pictures, parse_assignments, parse_shape, random_arrays, read_arrays
from client.metadata import ModelMetadata, TensorMetadata
from client.outputs import OutputFolder, storable
from client.tensors import numpy_dtype


def model(*inputs: TensorMetadata, max_batch_size: int = 8) -> ModelMetadata:
    return ModelMetadata("net", "1", max_batch_size, inputs, ())


X = TensorMetadata("x", "FP32", (3, 4))


class TestFindPictures:
    def test_files_as_given_and_folders_sorted_and_deep(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpg", "notes.txt", "sub/deep/c.webp", ".hidden.jpg", "sub/._a.jpg"):
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "pictures" / "folder.jpg").mkdir()
        given = [tmp_path / "z.dat", tmp_path / "pictures"]
        found = list(find_pictures(given, lambda *_: pytest.fail("no error was expected")))
        names = [str(path.relative_to(tmp_path)) for path in found]
        assert names == ["z.dat", "pictures/a.jpg", "pictures/b.PNG", "pictures/sub/deep/c.webp"]

    def test_folder_without_pictures(self, tmp_path: Path) -> None:
        errors: list[tuple[Path, InputError]] = []
        assert list(find_pictures([tmp_path], lambda *pair: errors.append(pair))) == []
        ((path, error),) = errors
        assert path == tmp_path
        assert f"{tmp_path} is a folder without pictures" in error.message


class TestAssignments:
    def test_first_equals_sign_ends_the_name(self) -> None:
        assert parse_assignments(["a=b=c", "x:0=f.npy"], "--input") == {"a": "b=c", "x:0": "f.npy"}

    @pytest.mark.parametrize("arguments", [["x"], ["=x"], ["x="], ["x=1", "x=2"]])
    def test_refused(self, arguments: list[str]) -> None:
        with pytest.raises(UsageError, match="--shape"):
            parse_assignments(arguments, "--shape")

    def test_shapes(self) -> None:
        assert parse_shape("1x3x224x224") == parse_shape("1,3,224,224") == (1, 3, 224, 224)
        assert parse_shape("7") == (7,)
        for text in ("", "x", "3x", "3x-1", "axb", "3.5"):
            with pytest.raises(UsageError, match="not a shape"):
                parse_shape(text)


class TestReadArrays:
    def save(self, path: Path, array: npt.NDArray[Any]) -> str:
        np.save(path, array)
        return str(path)

    @pytest.mark.parametrize(
        ("max_batch_size", "shape", "given", "sent"),
        [
            (8, (3, 4), (2, 3, 4), (2, 3, 4)),
            (8, (3, 4), (3, 4), (1, 3, 4)),
            (8, (), (), (1,)),
            (8, (1,), (), (1, 1)),
            (8, (1,), (1,), (1, 1)),
            (8, (1,), (5,), (5, 1)),
            (0, (1,), (), (1,)),
            (0, (3, 4), (3, 4), (3, 4)),
            (0, (1, 3, 4), (3, 4), (1, 3, 4)),
            (0, (-1, 3, 4), (3, 4), (1, 3, 4)),
            (0, (2, 3, 4), (3, 4), (3, 4)),  # left to the check, which says what is expected
        ],
    )
    def test_batch_axis(
        self,
        tmp_path: Path,
        max_batch_size: int,
        shape: tuple[int, ...],
        given: tuple[int, ...],
        sent: tuple[int, ...],
    ) -> None:
        file = self.save(tmp_path / "x.npy", np.ones(given, np.float32))
        described = model(TensorMetadata("x", "FP32", shape), max_batch_size=max_batch_size)
        assert read_arrays(described, {"x": file})["x"].shape == sent

    def test_unknown_input(self) -> None:
        with pytest.raises(UsageError, match="has no input 'y'; it has x"):
            read_arrays(model(X), {"y": "y.npy"})

    @pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", b"PK\x03\x04"])
    def test_broken_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.npy"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npy"):
            read_arrays(model(X), {"x": str(path)})

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="No such file"):
            read_arrays(model(X), {"x": str(tmp_path / "x.npy")})

    def test_pickles_are_never_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
        with pytest.raises(InputError, match=r"holds Python objects$") as caught:
            read_arrays(model(X), {"x": str(path)})
        assert "NumPy string array" in str(caught.value.hint)

    def test_files_that_are_something_else(self, tmp_path: Path) -> None:
        for name, hint in (("cat.jpg", "python -m client.infer"), ("x.npy", "np.save")):
            (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0 JFIF")
            with pytest.raises(InputError, match=r"is not a sound \.npy file$") as caught:
                read_arrays(model(X), {"x": str(tmp_path / name)})
            assert hint in str(caught.value.hint)

    @pytest.mark.parametrize(
        ("given", "datatype", "note"),
        [
            (np.array([[1.5, -2, np.inf]], np.float64), "FP32", "float64 of FILE is sent as FP32"),
            (np.array([[1.5, -2, np.nan]], np.float32), "FP64", "float32 of FILE is sent as FP64"),
            (np.array([[1.5, -2, 0]], np.float64), "FP16", "float64 of FILE is sent as FP16"),
            (np.array([[1.5, -2, 0]], np.float64), "BF16", "float64 of FILE is sent as BF16"),
            (np.array([[1.5, -2, 0]], np.float16), "BF16", "float16 of FILE is sent as BF16"),
            (np.array([[1.5, -2, 0]], np.float32), "BF16", "float32 of FILE is sent as BF16"),
            (np.array([[1.5, -2, 0]], ml_dtypes.bfloat16), "BF16", None),
            (np.array([[1, -2, 127]], np.int64), "INT8", "int64 of FILE is sent as INT8"),
            (np.array([[1, 2, 255]], np.int32), "UINT8", "int32 of FILE is sent as UINT8"),
            (np.array([[1, 2, 3]], np.uint8), "INT64", "uint8 of FILE is sent as INT64"),
            (np.array([[1, 2, 2**64 - 1]], np.uint64), "UINT64", None),
            (np.zeros((1, 0), np.int64), "INT32", "int64 of FILE is sent as INT32"),
            (np.array([[1.5, -2, 0]], ">f4"), "FP32", None),
            (np.array([[1.5, -2, 0]], ">f8"), "FP32", "float64 of FILE is sent as FP32"),
            (np.asfortranarray([[1.5, -2], [3, 4]], np.float32), "FP32", None),
        ],
    )  # fmt: skip
    def test_dtypes_that_hold_the_values(
        self,
        tmp_path: Path,
        given: npt.NDArray[Any],
        datatype: str,
        note: str | None,
    ) -> None:
        file = self.save(tmp_path / "x.npy", given)
        notes: list[str] = []
        tensor = TensorMetadata("x", datatype, (-1,))
        (sent,) = check_inputs(model(tensor), read_arrays(model(tensor), {"x": file}, notes.append))
        assert sent.array.dtype == numpy_dtype(datatype)
        assert np.array_equal(sent.array.astype(np.float64), given.astype(np.float64), equal_nan=True)
        assert [text.replace(file, "FILE") for text in notes] == ([f"input 'x': {note}"] if note else [])

    @pytest.mark.parametrize(
        ("given", "datatype", "message"),
        [
            (np.array([1e5]), "FP16", "is float64 with values from 100000.0 to 100000.0: more than FP16 can hold"),
            (np.array([1e300, 0]), "FP32", "more than FP32 can hold"),
            (np.array([300]), "UINT8", "is int64 with values from 300 to 300: more than UINT8 can hold"),
            (np.array([-1]), "UINT64", "more than UINT64 can hold"),
            (np.array([2**63], np.uint64), "INT64", "more than INT64 can hold"),
        ],
    )
    def test_values_that_do_not_fit(
        self,
        tmp_path: Path,
        given: npt.NDArray[Any],
        datatype: str,
        message: str,
    ) -> None:
        file = self.save(tmp_path / "x.npy", given)
        with pytest.raises(InputError, match=message):
            read_arrays(model(TensorMetadata("x", datatype, (-1,))), {"x": file})

    @pytest.mark.parametrize(
        ("given", "datatype"),
        [
            (np.array([[1, 2]], np.uint8), "FP32"),
            (np.array([[1.0, 2.0]]), "INT64"),
            (np.array([[0, 1]]), "BOOL"),
            (np.array([[True]]), "INT8"),
            (np.array([["1.5"]]), "FP32"),
            (np.array([[1.5]]), "BYTES"),
            (np.array([[1j]]), "FP32"),
            (np.zeros((1, 1), "V2"), "FP16"),
            (np.zeros((1, 1), [("a", "f4")]), "FP32"),
        ],
    )  # fmt: skip
    def test_another_kind_of_values_is_never_cast(
        self,
        tmp_path: Path,
        given: npt.NDArray[Any],
        datatype: str,
    ) -> None:
        tensor = TensorMetadata("x", datatype, (-1,))
        arrays = read_arrays(model(tensor), {"x": self.save(tmp_path / "x.npy", given)})
        with pytest.raises(InputError, match=f"takes {datatype} .* but the array is ") as caught:
            check_inputs(model(tensor), arrays)
        assert "array.astype(np." in str(caught.value.hint)

    def test_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, x=np.ones(3))
        with pytest.raises(InputError, match="npz archive"):
            read_arrays(model(X), {"x": str(path)})


class TestRandomArrays:
    def test_every_datatype_in_a_sensible_range(self) -> None:
        inputs = [
            TensorMetadata(name.lower(), name, (500,))
            for name in ("FP32", "FP16", "BF16", "INT64", "UINT8", "BOOL", "BYTES")
        ]
        arrays = random_arrays(model(*inputs), {}, {}, None, seed=0)
        for name in ("fp32", "fp16", "bf16"):
            values = arrays[name].astype(np.float32)
            assert 0 <= values.min() < 0.1
            assert 0.9 < values.max() <= 1
        for name in ("int64", "uint8"):
            assert set(arrays[name].reshape(-1).tolist()) == set(range(10))
        assert set(arrays["bool"].reshape(-1).tolist()) == {False, True}
        assert arrays["bytes"].dtype == np.object_
        assert all(array.shape == (1, 500) for array in arrays.values())

    def test_seed(self) -> None:
        first, again, other = (random_arrays(model(X), {}, {}, None, seed=s)["x"] for s in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_batch_size(self) -> None:
        assert random_arrays(model(X), {}, {}, 5, seed=0)["x"].shape == (5, 3, 4)
        given = {"y": np.zeros((3, 2))}
        described = model(X, TensorMetadata("y", "FP64", (2,)))
        assert random_arrays(described, given, {}, None, seed=0)["x"].shape == (3, 3, 4)
        assert random_arrays(model(X, max_batch_size=0), {}, {}, None, seed=0)["x"].shape == (3, 4)
        with pytest.raises(UsageError, match=r"--batch 2: model '.*' has no batch axis"):
            random_arrays(model(X, max_batch_size=0), {}, {}, 2, seed=0)

    def test_free_axes_need_a_shape(self) -> None:
        free = model(TensorMetadata("x", "FP32", (3, -1, -1)))
        two = model(*free.inputs, TensorMetadata("y", "INT64", (-1,)))
        with pytest.raises(UsageError, match=r"free axes: x \(FP32 \[3, -1, -1\]\), y \(INT64 \[-1\]\)$") as caught:
            random_arrays(two, {}, {}, None, seed=0)
        assert caught.value.hint == "--shape x=3xSIZExSIZE --shape y=SIZE"
        assert random_arrays(free, {}, {"x": "3x8x9"}, 2, seed=0)["x"].shape == (2, 3, 8, 9)
        assert random_arrays(free, {}, {"x": "4x3x8x9"}, None, seed=0)["x"].shape == (4, 3, 8, 9)

    @pytest.mark.parametrize(
        ("shape", "own", "batch", "message", "hint"),
        [
            ("5x4", (3, 4), None, r"doesn't fit input 'x': FP32 \[3, 4\]$", "its shape is fixed: leave --shape x out"),
            ("1x5x4", (3, 4), None, r"doesn't fit input 'x': FP32 \[3, 4\]$", "its shape is fixed"),
            ("1x1x3x4", (3, 4), None, r"doesn't fit input 'x': FP32 \[3, 4\]$", "its shape is fixed"),
            ("4x8", (3, -1), None, r"doesn't fit input 'x': FP32 \[3, -1\]$", "-1 is a free axis: --shape x=3xSIZE"),
            ("2x3x8", (3, -1), 4, "is a batch of 2, and this one is to have 4", "--shape x=3x8 leaves it open"),
        ],
    )
    def test_a_shape_that_can_not_be(
        self, shape: str, own: tuple[int, ...], batch: int | None, message: str, hint: str
    ) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            random_arrays(model(TensorMetadata("x", "FP32", own)), {}, {"x": shape}, batch, seed=0)
        assert str(caught.value.hint).startswith(hint)

    def test_optional_inputs_are_left_out(self) -> None:
        described = model(X, TensorMetadata("m", "BOOL", (2,), optional=True))
        assert list(random_arrays(described, {}, {}, None, seed=0)) == ["x"]
        assert list(random_arrays(described, {}, {"m": "2"}, None, seed=0)) == ["x", "m"]

    def test_refused(self) -> None:
        with pytest.raises(UsageError, match="has no input 'z'"):
            random_arrays(model(X), {}, {"z": "1"}, None, seed=0)
        with pytest.raises(UsageError, match="larger than 1 GiB"):
            random_arrays(model(TensorMetadata("x", "FP32", (-1, -1))), {}, {"x": "99999x99999x99999"}, None, seed=0)


class TestOutputFolder:
    def test_saved_and_named(self, tmp_path: Path) -> None:
        folder = OutputFolder(tmp_path / "new" / "folder")
        array = np.arange(6, dtype=np.int64).reshape(2, 3)
        saved = folder.save({"y": array}, "cat")
        assert saved == {"y": tmp_path / "new" / "folder" / "cat.y.npy"}
        assert np.array_equal(np.load(saved["y"], allow_pickle=False), array)
        assert [path.name for path in folder.path.iterdir()] == ["cat.y.npy"]

    @pytest.mark.parametrize(
        "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b:0", "x" * 5000, "nul\x00", "-rf", "ü\n"]
    )
    def test_names_can_not_leave_the_folder(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "out"
        (path,) = OutputFolder(folder).save({name: np.ones(2)}).values()
        assert path.resolve().parent == folder.resolve()
        assert [entry.name for entry in folder.iterdir()] == [path.name]
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
        assert not path.name.startswith(".")

    def test_names_that_become_the_same_stay_apart(self, tmp_path: Path) -> None:
        folder = OutputFolder(tmp_path)
        saved = folder.save({"a/b": np.zeros(1), "a:b": np.ones(1), "A_B": np.full(1, 2.0)})
        saved |= {"later": folder.save({"a/b": np.full(1, 3.0)})["a/b"]}
        assert [np.load(path).item() for path in saved.values()] == [0, 1, 2, 3]

    def test_dtypes_that_npy_lacks(self) -> None:
        text = storable(np.array([b"a", "ü".encode()], object))
        assert text.dtype.kind == "S"
        assert text.tolist() == [b"a", "ü".encode()]
        assert storable(np.array([1.5], ml_dtypes.bfloat16)).dtype == np.float32
        with pytest.raises(ClientError, match="NUL"):
            storable(np.array([b"a", b"b\0"], object))

    def test_folder_that_can_not_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ClientError, match=r"File exists|Not a directory") as caught:
            OutputFolder(tmp_path / "file" / "sub").save({"y": np.ones(1)})
        assert "--output-dir" in str(caught.value.hint)

    def test_nothing_half_written_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(file: object, *_: object, **__: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        with pytest.raises(ClientError, match="No space left on device"):
            OutputFolder(tmp_path).save({"y": np.ones(1)})
        assert list(tmp_path.iterdir()) == []
