"""What a user sends is kept by its content; archives that are not what they seem are refused, and leave nothing behind."""

import errno
import io
import stat
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import modhifi
from app.store import Store
from app.uploads import keep_checkpoint, keep_images
from modhifi.errors import Cancelled, UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def picture(value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def left(store: Store) -> list[Path]:
    """What the uploads left; the folder of uploads itself may stay."""
    return list(store.uploads.rglob("*"))


def parquet(images: list[bytes], labels: list[int]) -> io.BytesIO:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": images, "label": pa.array(labels, pa.uint64())}), buffer)
    buffer.seek(0)
    return buffer


def test_class_folders_in_a_folder(store: Store) -> None:
    files = {"My photos/cat/1.png": picture(1), "My photos/dog/2.PNG": picture(2), "My photos/readme.txt": b"x"}
    files |= {"My photos/.DS_Store": b"x", "__MACOSX/My photos/cat/._1.png": b"x"}
    path = keep_images(store, "My photos (1).zip", zipped(files))
    data = modhifi.load_data(str(path))
    assert (len(data), data.classes) == (2, ("cat", "dog"))
    assert path.parent.name == "my-photos-1"
    assert len([path for path in left(store) if path.is_file()]) == 2
    assert keep_images(store, "other.zip", zipped({"a.png": picture()})) != path
    assert keep_images(store, "My photos (1).zip", zipped(files)) == path


def test_plain_images(store: Store) -> None:
    path = keep_images(store, "some.zip", zipped({"a/1.png": picture(1), "a/2.png": picture(2)}))
    data = modhifi.load_data(str(path))
    assert (len(data), data.labels) == (2, None)


def test_checkpoints_keep_their_content_and_their_ending(store: Store) -> None:
    path = keep_checkpoint(store, "C:\\somewhere\\My Net.PTH", io.BytesIO(b"weights"))
    assert path.name == "my-net.pth"
    assert path.read_bytes() == b"weights"
    assert keep_checkpoint(store, "My Net.pth", io.BytesIO(b"weights")) == path
    with pytest.raises(UserError, match="must end in"):
        keep_checkpoint(store, "net.exe", io.BytesIO(b"weights"))


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "C:\\out.png", "a\\..\\..\\out.png"])
def test_names_that_lead_out_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="leads out of the folder"):
        keep_images(store, "bad.zip", zipped({"fine.png": picture(), name: picture()}))
    assert left(store) == []


def test_links_are_refused(store: Store) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="a link"):
        keep_images(store, "bad.zip", buffer)


def test_a_damaged_member_is_told(store: Store) -> None:
    whole = bytearray(zipped({"a.bmp": bytes(range(256)) * 40}).getvalue())
    whole[40:60] = bytes(20)
    with pytest.raises(UserError, match="create the archive again"):
        keep_images(store, "cut.zip", io.BytesIO(bytes(whole)))
    assert left(store) == []


def test_bombs_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="expands to far more"):
        keep_images(store, "bomb.zip", zipped({"a.bmp": bytes(50 << 20)}))
    assert left(store) == []


def test_what_a_member_says_of_its_size_is_not_believed(store: Store) -> None:
    honest = zipped({"a.bmp": bytes(30 << 20)}).getvalue()
    size = (30 << 20).to_bytes(4, "little")
    assert honest.count(size) == 2
    with pytest.raises(UserError):
        keep_images(store, "bomb.zip", io.BytesIO(honest.replace(size, (64).to_bytes(4, "little"))))
    assert left(store) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zip", b"not a zip", "damaged or not a readable .zip"),
        ("a.tar", b"", "a .zip of images"),
        ("My data.parquet", b"junk", "^My data.parquet is truncated, damaged or not a parquet file"),
        ("a.parquet", parquet([picture()], [2**64 - 1]).getvalue(), "^a.parquet has the label 18446744073709551615"),
        ("a.zip", zipped({"a.png": picture(), "a.png/b.png": picture()}).getvalue(), "damaged or not a readable .zip"),
        ("a.zip", zipped({"x" * 300 + ".png": picture()}).getvalue(), "damaged or not a readable .zip"),
        ("a.zip", zipped({"a.txt": b"x"}).getvalue(), "contains no images"),
        ("a.zip", zipped({"a.png": picture()}).getvalue()[:-30], "damaged or not a readable .zip"),
    ],
)
def test_what_does_not_fit_is_explained(store: Store, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        keep_images(store, name, io.BytesIO(content))
    assert left(store) == []


def test_a_parquet_file_is_kept(store: Store) -> None:
    path = keep_images(store, "My data.parquet", parquet([picture(1), picture(2)], [1, 0]))
    assert path.name == "my-data.parquet"
    data = modhifi.load_data(str(path))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]
    assert len(left(store)) == 2  # the file and its folder


def test_a_member_that_is_there_twice(store: Store) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", picture(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", picture(2))
    with pytest.raises(UserError, match="create the archive again"):
        keep_images(store, "twice.zip", buffer)
    assert left(store) == []


def test_an_encrypted_member(store: Store) -> None:
    whole = bytearray(zipped({"a.png": picture()}).getvalue())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(signature) + at] |= 1
    with pytest.raises(UserError, match="is encrypted"):
        keep_images(store, "secret.zip", io.BytesIO(bytes(whole)))
    assert left(store) == []


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_progress_is_told_and_may_cancel(store: Store, kind: str) -> None:
    def content() -> io.BytesIO:
        if kind == "zip":
            return zipped({f"{i}.png": picture(i) for i in range(5)})
        return parquet([picture(i) for i in range(5)], list(range(5)))

    def cancel(done: int, total: int, what: str) -> None:
        assert what.endswith(f"my.{kind}")
        raise Cancelled

    with pytest.raises(Cancelled):
        keep_images(store, f"my.{kind}", content(), cancel)
    assert left(store) == []
    told: list[tuple[int, int]] = []
    keep_images(store, f"my.{kind}", content(), lambda done, total, _: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    if kind == "zip":
        assert told == [(i, 5) for i in range(6)]


def test_what_a_killed_upload_left_is_removed(store: Store) -> None:
    dead = [store.uploads / f".incoming.{digit * 16}.tmp" for digit in "ab"]
    dead[0].mkdir(parents=True)
    (dead[0] / "a.png").write_bytes(b"half")
    dead[1].write_bytes(b"half")
    path = keep_checkpoint(store, "a.pt", io.BytesIO(b"weights"))
    assert sorted(left(store)) == sorted([path.parent, path])


def test_a_full_disk_is_no_damaged_archive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.uploads._unpack_member", full)
    with pytest.raises(OSError, match="No space left"):
        keep_images(store, "a.zip", zipped({"a.png": picture()}))
    assert left(store) == []


def test_two_sessions_may_keep_the_same_archive(store: Store) -> None:
    kept: list[Path] = []

    def other(done: int, total: int, what: str) -> None:
        if not kept:
            kept.append(keep_images(store, "a.zip", zipped({"a.png": picture()})))

    assert keep_images(store, "a.zip", zipped({"a.png": picture()}), other) == kept[0]
    assert len(left(store)) == 3  # the folder of the digest, the folder of the images, the image
