"""Archives: what is in them comes out, whatever their packing, and nothing leads out or grows beyond a limit."""

import gzip
import io
import os
import random
import stat
import tarfile
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import pytest

from hf_captioners.data import archive as archives
from hf_captioners.data import limits
from hf_captioners.data.archive import (
    ARCHIVE_SUFFIXES,
    ArchiveError,
    Member,
    archive_suffix,
    inner_name,
    opened_archive,
    unpacked,
)
from hf_captioners.data.limits import LimitError

CONTENT = {"a.txt": b"a dog", "b/c.bin": bytes(range(256)) * 6, "b/empty": b""}


def make_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, content: dict[str, bytes]) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".txz": "w:xz"}.get(path.suffix, "w:bz2")
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make(path: Path, content: dict[str, bytes]) -> Path:
    return make_zip(path, content) if path.suffix == ".zip" else make_tar(path, content)


def read(path: Path) -> dict[str, bytes]:
    with opened_archive(path) as members:
        return {member.name: member.read(10**6) for member in members}


class TestReading:
    @pytest.mark.parametrize("suffix", ARCHIVE_SUFFIXES)
    def test_every_packing(self, tmp_path, suffix):
        assert read(make(tmp_path / f"x{suffix}", CONTENT)) == CONTENT
        assert archive_suffix(f"X{suffix.upper()}") == suffix

    def test_the_content_decides(self, tmp_path):
        make_zip(tmp_path / "x.tar", CONTENT)
        assert read(tmp_path / "x.tar") == CONTENT
        make_tar(tmp_path / "x.zip", CONTENT)
        assert read(tmp_path / "x.zip") == CONTENT
        assert archive_suffix("photo.zip.jpg") == ""

    def test_folders_are_left_out_and_names_are_plain(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            folder = tarfile.TarInfo("./pictures/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            archive.addfile(tarfile.TarInfo("./pictures//a.png"))
        assert list(read(tmp_path / "x.tar")) == ["pictures/a.png"]
        make_zip(tmp_path / "x.zip", {"pictures/": b"", "pictures\\a.png": b""})
        assert list(read(tmp_path / "x.zip")) == ["pictures/a.png"]

    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
    def test_first_bytes_stay_part_of_the_content(self, tmp_path, suffix):
        with opened_archive(make(tmp_path / f"x{suffix}", CONTENT)) as members:
            found = {member.name: (member.first_bytes(3), member.read(10**6)) for member in members}
        assert found == {name: (data[:3], data) for name, data in CONTENT.items()}

    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
    def test_members_may_be_passed_over_and_read_later(self, tmp_path, suffix):
        with opened_archive(make(tmp_path / f"x{suffix}", CONTENT)) as members:
            listed = list(members)
            assert {member.name: member.read(10**6) for member in reversed(listed)} == CONTENT

    def test_memory_does_not_grow_with_a_tar(self, tmp_path):
        few, many = (
            make_tar(tmp_path / f"{count}.tar", {f"{number}.txt": bytes(1000) for number in range(count)})
            for count in (50, 1000)
        )

        def peak(path: Path) -> int:
            tracemalloc.start()
            with opened_archive(path) as members:
                assert sum(len(member.read(1000)) for member in members) == 1000 * int(path.stem)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        peak(few)  # what is imported at first
        assert peak(many) < peak(few) + 100_000

    @pytest.mark.parametrize(
        ("name", "hidden"), [("a/.x/b", True), ("__MACOSX/._a", True), ("a..b", False), ("../x", False)]
    )
    def test_hidden(self, tmp_path, name, hidden):
        with opened_archive(make_tar(tmp_path / "x.tar", {name: b""})) as members:
            assert next(members).is_hidden is hidden


NAMES_THAT_LEAD_OUT = ["../x", "a/../../x", "/x", "\\x", "C:\\x", "C:x", "\\\\host\\x", "..\\x", "", "."]


class TestRefused:
    @pytest.mark.parametrize("name", NAMES_THAT_LEAD_OUT)
    def test_names_that_lead_out(self, name):
        assert inner_name(name) is None

    def test_names_that_stay(self):
        assert [inner_name(name) for name in ("a/b", "./a//b", "a\\b", "..a/b..", "12:30.png")] == [
            *["a/b"] * 3,
            "..a/b..",
            "12:30.png",
        ]

    def refused(self, path: Path, message: str) -> None:
        with opened_archive(path) as members:
            member = next(members)
            assert message in member.problem
            with pytest.raises(ArchiveError, match=rf"{path.name}: the member .* {message}"):
                member.read(100)

    @pytest.mark.parametrize("suffix", [".zip", ".tar"])
    def test_a_member_that_leads_out(self, tmp_path, suffix):
        self.refused(make(tmp_path / f"x{suffix}", {"../../x": b"x"}), "leads out of the archive")

    def test_links_devices_and_sparse_files(self, tmp_path):
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
            info = tarfile.TarInfo("a")
            info.type, info.linkname = kind, "/etc/passwd"
            with tarfile.open(tmp_path / "x.tar", "w") as archive:
                archive.addfile(info)
            self.refused(tmp_path / "x.tar", "is a link, a device or a sparse file")
        link = zipfile.ZipInfo("a")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(link, "/etc/passwd")
        self.refused(tmp_path / "x.zip", "is a link, a device or a sparse file")

    def test_encrypted(self, tmp_path):
        path = make_zip(tmp_path / "x.zip", {"a": b"x"})
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + offset] |= 1
        path.write_bytes(data)
        self.refused(path, "is encrypted")

    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
    def test_cut_anywhere(self, tmp_path, suffix):
        """Of a tar what comes before is read; nothing that is cut off passes for the end."""
        path = make(tmp_path / f"x{suffix}", {name: os.urandom(1000) for name in ("a", "b", "c")})
        whole = path.read_bytes()
        path = tmp_path / f"cut{suffix}"
        end = len(whole) if suffix != ".tar" else 3 * 1536 + 1  # zeros may be cut off down to a part of a block
        for size in [*range(1, end - 1, 97), end - 1]:
            path.write_bytes(whole[:size])
            with pytest.raises(ArchiveError, match=rf"cut{suffix}: "):
                read(path)

    def test_a_damaged_header_in_the_middle(self, tmp_path):
        """`tarfile` takes it for the end."""
        path = make_tar(tmp_path / "x.tar", {name: bytes(10) for name in ("a", "b", "c")})
        data = bytearray(path.read_bytes())
        data[1024 + 150] ^= 1  # the checksum of the second header
        path.write_bytes(data)
        with tarfile.open(path) as archive:
            assert archive.getnames() == ["a"]
        with pytest.raises(ArchiveError, match="is cut off or damaged behind its first 1 members"):
            read(path)

    def test_a_flipped_bit(self, tmp_path):
        for suffix in (".zip", ".tar.gz"):
            path = make(tmp_path / f"x{suffix}", {"a": random.Random(0).randbytes(10_000)})
            data = bytearray(path.read_bytes())
            data[5000] ^= 16
            path.write_bytes(data)
            with pytest.raises(ArchiveError, match="cannot be read as an archive"):
                read(path)

    @pytest.mark.parametrize("content", [b"no archive at all", b"", gzip.compress(b"[1]", mtime=0), b"PK", b"BZh"])
    def test_no_archive(self, tmp_path, content):
        (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(ArchiveError, match=r"x\.zip: "), opened_archive(tmp_path / "x.zip"):
            pass

    def test_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "x.tar")
        for path in (tmp_path / "x.tar", tmp_path):
            with pytest.raises(OSError, match="expected a archive, found something that is not a regular file"):
                opened_archive(path).__enter__()
        with pytest.raises(FileNotFoundError, match=r"archive not found: .*y\.zip"):
            opened_archive(tmp_path / "y.zip").__enter__()


class TestLimits:
    @pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
    def test_bombs(self, tmp_path, suffix, monkeypatch):
        monkeypatch.setattr(limits, "FREE_BYTES", 10_000)
        path = make(tmp_path / f"x{suffix}", {"a": bytes(10**6), "b": bytes(10**6)})
        message = rf"x{suffix}: more than 2000000 members or \d+ bytes in it \(HF_CAPTIONERS_MAX_ARCHIVE_BYTES sets"
        with pytest.raises(LimitError, match=message):
            read(path)
        monkeypatch.setenv("HF_CAPTIONERS_MAX_ARCHIVE_BYTES", "2000000")
        assert len(read(path)) == 2

    def test_a_member_that_declares_gigabytes(self, tmp_path):
        info = tarfile.TarInfo("a")
        info.size = 2**36 - 1
        (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
        with pytest.raises(LimitError, match="more than 2000000 members or 67108864 bytes"):
            read(tmp_path / "x.tar")

    def test_members(self, tmp_path):
        for suffix in (".zip", ".tar"):
            path = make(tmp_path / f"x{suffix}", CONTENT)
            with opened_archive(path, max_members=2) as members, pytest.raises(LimitError, match="more than 2 members"):
                list(members)

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_headers_of_a_tar(self, tmp_path, kind):
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, 5_000_000
        (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(5_000_192))
        with pytest.raises(LimitError, match=r"a header of \d+ bytes; the limit is 4194304"):
            read(tmp_path / "x.tar")

    def test_many_headers_in_front_of_one_member(self, tmp_path):
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1_000_000
        (tmp_path / "x.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + bytes(1_000_448)) * 6)
        with pytest.raises(LimitError, match="the limit is 4194304"):
            read(tmp_path / "x.tar")

    def test_global_headers_are_not_kept(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(40):
                header = tarfile.TarInfo.create_pax_global_header({f"key{number}": "x" * 100_000})
                archive.fileobj.write(header)
                archive.offset += len(header)
                archive.addfile(tarfile.TarInfo(f"{number}"))
        tracemalloc.start()
        assert len(read(tmp_path / "x.tar")) == 40
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()

    def test_a_sparse_map_without_end(self, tmp_path):
        info = tarfile.TarInfo("a")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
        content = b"9000000\n" + (b"0" * 199 + b"1\n") * 30_000
        info.size = len(content)
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(content))
        with pytest.raises(LimitError, match="the limit is 4194304"):
            read(tmp_path / "x.tar")

    def test_the_directory_of_a_zip(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archives, "MAX_DIRECTORY", 10_000)
        path = make_zip(tmp_path / "x.zip", {f"{number}.png": b"" for number in range(300)})
        with pytest.raises(LimitError, match=r"a header of \d+ bytes; the limit is 10000"):
            read(path)

    def test_what_is_behind_the_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archives, "FREE_BYTES", 10_000)
        path = make_tar(tmp_path / "x.tar", CONTENT)
        with path.open("ab") as file:
            file.write(bytes(20_000))
        with pytest.raises(LimitError, match="more than 10000 bytes behind its end"):
            read(path)

    def test_a_member_larger_than_asked_for_is_not_read(self, tmp_path):
        path = make_tar(tmp_path / "x.tar", {"a": bytes(11)})
        message = "11 bytes, more than the 10 allowed"
        with opened_archive(path) as members, pytest.raises(LimitError, match=message):
            next(members).read(10)

    def test_a_size_that_is_a_lie(self, tmp_path):
        stream = archives._BoundedReads(tmp_path / "x.zip", io.BytesIO(), 100)
        member = Member(stream, "a", 10, partial(io.BytesIO, bytes(11)), "")
        with pytest.raises(ArchiveError, match="'a' has more than its 10 bytes"):
            member.read(100)


class TestUnpacked:
    def test_files_alone_and_once(self, tmp_path):
        content = {**CONTENT, ".hidden": b"x", "__MACOSX/._a.txt": b"x"}
        path = make_zip(tmp_path / "x.zip", content)
        folder = unpacked(path, tmp_path / "cache")
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert found == CONTENT
        before = folder.stat().st_mtime_ns
        assert unpacked(path.rename(tmp_path / "y.zip"), tmp_path / "cache") == folder
        assert folder.stat().st_mtime_ns == before
        assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]

    def test_another_content_of_the_same_size_and_time(self, tmp_path):
        folders = []
        for content in (b"a dog", b"a cat"):
            path = make_tar(tmp_path / "x.tar", {"a.txt": content})
            os.utime(path, ns=(10**18, 10**18))
            folders.append(unpacked(path, tmp_path / "cache"))
        assert [(folder / "a.txt").read_bytes() for folder in folders] == [b"a dog", b"a cat"]

    def test_permissions_are_the_users(self, tmp_path):
        info = tarfile.TarInfo("a")
        info.mode = 0o7777
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.addfile(info)
        mode = (unpacked(tmp_path / "x.tar", tmp_path / "cache") / "a").stat().st_mode
        assert not mode & 0o7111

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"../x": b""}, "leads out of the archive"),
            ({"a": b"", "a/b": b""}, "'a/b' is there twice, or its name is none of a file"),
            ({"a/b": b"", "a": b""}, "'a' is there twice"),
            ({"a": b"", "./a": b""}, "'a' is there twice"),
            ({"x" * 300: b""}, "its name is none of a file"),
        ],
    )
    def test_nothing_is_left_of_what_is_refused(self, tmp_path, content, message):
        with pytest.raises(ArchiveError, match=message):
            unpacked(make_tar(tmp_path / "x.tar", content), tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.tar"]

    def test_what_a_killed_process_left_is_removed(self, tmp_path):
        left = tmp_path / "cache" / f".{'0' * 32}.new"
        left.mkdir(parents=True)
        (left / "a").write_bytes(b"half")
        unpacked(make_tar(tmp_path / "x.tar", CONTENT), tmp_path / "cache")
        assert not left.exists()

    def test_the_cache_is_that_of_hugging_face(self, tmp_path, monkeypatch):
        monkeypatch.setattr(archives.constants, "HF_HOME", str(tmp_path / "hf"))
        folder = unpacked(make_tar(tmp_path / "x.tar", CONTENT))
        assert folder.parent == tmp_path / "hf" / "hf_captioners" / "archives"
