"""What a user sends is kept by its content; archives that are not what they seem are refused, and leave nothing behind."""

import io
import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import modhifi
from app.store import Store
from app.uploads import keep_checkpoint, keep_images
from modhifi.errors import UserError


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
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_class_folders_in_a_folder(store: Store) -> None:
    files = {"My photos/cat/1.png": picture(1), "My photos/dog/2.PNG": picture(2), "My photos/readme.txt": b"x"}
    files |= {"My photos/.DS_Store": b"x", "__MACOSX/My photos/cat/._1.png": b"x"}
    path = keep_images(store, "My photos (1).zip", zipped(files))
    data = modhifi.load_data(str(path))
    assert (len(data), data.classes) == (2, ("cat", "dog"))
    assert path.parent.name == "my-photos-1"
    assert len(left(store)) == 2
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
        ("a.zip", zipped({"a.txt": b"x"}).getvalue(), "contains no images"),
        ("a.zip", zipped({"a.png": picture()}).getvalue()[:-30], "damaged or not a readable .zip"),
    ],
)
def test_what_does_not_fit_is_explained(store: Store, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        keep_images(store, name, io.BytesIO(content))
    assert left(store) == []
