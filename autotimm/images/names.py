"""The files that an annotation file's names mean: found in the image folder and nowhere else.

Invariants: a name that is there is taken as it is. Any other is compared with the files in the
folder in fixed steps, from the likeliest reading to the loosest; the first step that fits one file
decides, and one that fits several is refused. Whatever is found lies inside the folder, links
followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autotimm.images.file_tree import FileTree
from autotimm.images.spellings import (
    SPELLINGS,
    URL,
    Spelling,
    before_upload,
    plain_path,
    same,
    trimmed,
)
from autotimm.structures import InputError

__all__ = ["ImageFolder", "Match"]

_MISSING = "image file missing"
_LEAVES = "file_name leaves the image folder"
# Errors of a folder's name in an annotation file that mean that there is no such folder.
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

_DOTS = "file_name has folders called '.' or '..' (resolved)"
_OWN_NAME = "file_name has the image folder's own name (left off)"
_ABSOLUTE = "file_name is an absolute path in the image folder (shortened)"
_ELSEWHERE = "file_name is an absolute path from elsewhere (its end taken)"
_FOLDERS = "file_name has folders that the image folder lacks (left off)"
_NO_FOLDERS = "file_name lacks its file's folder (the only file of that name taken)"
_TRIMMED = "file_name has a query, blanks or quotes around it (left off)"
_STEM = "file_name lacks its file's extension or has another one (file's taken)"
_UPLOAD = "file_name or its file has what an upload adds to it (left off)"


class Match(NamedTuple):  # made for every image: a dataclass takes three times as long
    """The file that a name means.

    Attributes:
        name: of the file, in the image folder.
        mended: what was wrong with the name given, in words; None for nothing.
        doubt: None where the name can mean no other file; else what to say of it where another
            image has that file, too.
    """

    name: str
    mended: str | None = None
    doubt: str | None = None


class ImageFolder:
    """The names in a folder of images, listed by directory: quicker than asking file by file."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._given = os.path.abspath(root)  # noqa: PTH100 (links are kept)
        # folder -> file -> is it a link; None: a folder outside, a file that cannot be looked at
        self.folders: dict[str, dict[str, bool | None] | None] = {}
        self._tree: FileTree | None = None

    def find(self, name: str) -> Match:
        """Finds the file that an image's file name means.

        A name that is not there is read as exporters on other machines mean it: with backslashes, a
        URL, an absolute path, with the split's folder in front, in another case or Unicode form,
        percent-encoded, with folders that are not there or without those that are, with what an
        upload adds.

        Raises:
            ValueError: no such file can be used; the message is a short reason.
            UnicodeEncodeError: as from ``problem``.
        """
        reason = self.problem(name)
        if reason is None:
            return Match(name)
        plain, mended = plain_path(name)
        if mended != URL:
            reason = self.problem(plain)
            if reason is None:
                return Match(plain, mended)
        if reason not in (_MISSING, _LEAVES):
            raise ValueError(reason)
        bare = trimmed(plain)
        if bare != plain and self.problem(bare) is None:
            return Match(bare, mended or _TRIMMED, reason)
        tree = self._tree = self._tree or FileTree(self.root)
        for path, why, certain in self._readings(plain, mended):
            found, spelled, sure = self._spelled(path, tree)
            if found is not None:
                return Match(found, why or spelled, None if certain and sure else reason)
            if certain and os.path.dirname(path) in tree.folders:  # noqa: PTH120
                raise ValueError(reason)  # its folder is there, and lacks it
        base = plain.rpartition("/")[2]
        elsewhere = _ELSEWHERE if plain.startswith("/") else _NO_FOLDERS
        spellings: list[Spelling] = [(same, elsewhere, False), *SPELLINGS]
        spellings.append((before_upload, _UPLOAD, False))
        for spelling, why, _ in spellings:
            file = tree.by_base(spelling, base)
            if file is not None:
                return Match(self._usable(file), mended or why, reason)
        file = tree.by_stem(base)
        if file is not None:
            return Match(self._usable(file), mended or _STEM, reason)
        raise ValueError(reason)

    def _spelled(self, path: str, tree: FileTree) -> tuple[str | None, str | None, bool]:
        """Finds the file of a path, however that is spelled; with what is mended by it, and whether
        it can be no other."""
        reason = self.problem(path)
        if reason is None:
            return path, None, True
        if reason not in (_MISSING, _LEAVES):
            raise ValueError(reason)
        for spelling, mended, sure in SPELLINGS:
            file = tree.by_path(spelling, path)
            if file is not None:
                return self._usable(file), mended, sure
        return None, None, False

    def _usable(self, file: str) -> str:
        reason = self.problem(file)
        if reason is not None:
            raise ValueError(reason)
        return file

    def _readings(self, plain: str, mended: str | None) -> Iterator[tuple[str, str | None, bool]]:
        """Yields the paths in the folder that a name may mean, likeliest first, with what is mended
        by that and whether it can mean no other."""
        path = plain
        if path.startswith("/"):
            for root in (self.root, self._given):
                if path.startswith(root.rstrip("/") + "/"):
                    yield path[len(root.rstrip("/")) + 1 :], mended or _ABSOLUTE, True
            folder, base = os.path.split(path)
            real = os.path.realpath(folder)
            if self._inside(real):
                inner = os.path.relpath(os.path.join(real, base), self.root)  # noqa: PTH118
                yield inner, mended or _ABSOLUTE, True
        else:
            path = os.path.normpath(path)
            yield path, mended or (_DOTS if path != plain else None), True
        parts = [part for part in path.split("/") if part not in ("", "..")]
        loose = mended or (_ELSEWHERE if plain.startswith("/") else _FOLDERS)
        for count in range(len(parts)):
            front = "/" + "/".join(parts[:count])
            own = not plain.startswith("/") and any(
                root.endswith(front) for root in (self.root, self._given)
            )
            if count and own:
                yield "/".join(parts[count:]), _OWN_NAME, True
            elif count or len(parts) < path.count("/") + 1:
                yield "/".join(parts[count:]), loose, False
        bare = trimmed(plain)
        if bare not in ("", plain):
            yield bare, _TRIMMED, False

    def problem(self, name: str) -> str | None:
        """Says what is wrong with an image's file name, if anything is.

        Raises:
            UnicodeEncodeError: the locale's encoding lacks a character of it.
        """
        beside = self.folders.get("")
        if beside is not None and beside.get(name) is False:
            return None  # nearly all: a file of the folder itself, no link
        os.fsencode(name)
        folder, base = os.path.split(name)
        if "\0" in name:
            return "file_name holds a NUL character"
        if name.startswith("/") or ".." in name.split("/"):
            return _LEAVES
        if folder not in self.folders:
            self.folders[folder] = self._list(folder)
        entries = self.folders[folder]
        if entries is None:
            return "link leaves the image folder"
        if base not in entries:
            return _MISSING
        if entries[base] is None:
            return "image cannot be opened"
        if entries[base] and not self._inside(os.path.join(self.root, name)):  # noqa: PTH118
            return "link leaves the image folder"
        return None

    def _list(self, folder: str) -> dict[str, bool | None] | None:
        place = os.path.join(self.root, folder)  # noqa: PTH118
        if not self._inside(place):
            return None
        found: dict[str, bool | None] = {}
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    try:
                        if entry.is_file():
                            found[entry.name] = entry.is_symlink()
                    except OSError:  # a link to itself, one into a folder that is closed to us
                        found[entry.name] = None
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise InputError(f"{place}: cannot be read: {error.strerror}") from None
        return found

    def _inside(self, place: str) -> bool:
        real = os.path.realpath(place)
        return real == self.root or real.startswith(self.root.rstrip("/") + "/")
