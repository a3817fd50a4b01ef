"""What a file is, by its first bytes: an image, a video, or something else with a name.

Names say little: .jfif, .jpe and no extension at all are JPEGs too, and a .jpg from a phone may be
a HEIC. Only camera raws are known by their extension, as inside they are TIFFs that begin with a
thumbnail.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Literal

HEAD = 352
"""Bytes of a file's beginning that are enough; the mark of NIfTI lies deepest."""

_RAW = frozenset(
    f".{name}" for name in ("arw", "cr2", "dng", "erf", "kdc", "mef", "nef", "nrw", "pef", "raw")
) | {".rwl", ".sr2", ".srf", ".srw"}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is.

    Attributes:
        name: as people say it: "PNG", "PDF", "text".
        use: "image" and "video" are read; "other" is not.
        way: how an image is made of what is not read; empty where there is none.
    """

    name: str
    use: Literal["image", "video", "other"] = "other"
    way: str = ""


_UNPACK = "unpack it first"
_IMAGE = "save it as PNG first"
_SLICES = "save its slices as PNG first"
EMPTY, _TEXT, _UNKNOWN = Kind("empty file"), Kind("text"), Kind("unknown kind")
CAMERA = Kind("camera raw", way="develop it to TIFF or JPEG first")

_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (rb"\xff\xd8\xff", Kind("JPEG", "image")),
    (rb"\x89PNG\r\n\x1a\n", Kind("PNG", "image")),
    (rb"GIF8[79]a", Kind("GIF", "image")),
    (rb"RIFF....WEBP", Kind("WebP", "image")),
    (rb"BM.{4}.{8}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", Kind("BMP", "image")),
    (rb"P[1-6][\s#]|Pf\n", Kind("PPM", "image")),
    (rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", Kind("HEIC", way=_IMAGE)),
    (rb".{4}ftyp(avif|avis)", Kind("AVIF", way=_IMAGE)),
    (rb".{4}ftypcrx ", CAMERA),
    (rb".{4}(ftyp(?!M4[ABP] )|moov|mdat|wide|pnot)", Kind("MP4 or MOV", "video")),
    (rb"II\x2a\0.{4}CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW", CAMERA),
    (rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b", Kind("TIFF", "image")),
    (rb"\x1a\x45\xdf\xa3", Kind("Matroska or WebM", "video")),
    (rb"RIFF....AVI ", Kind("AVI", "video")),
    (rb"FLV\x01", Kind("FLV", "video")),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("WMV", "video")),
    (rb"\0\0\x01[\xba\xb3]", Kind("MPEG", "video")),
    (rb"G.{187}G|.{4}G.{191}G", Kind("MPEG-TS", "video")),
    (rb"OggS.{24,60}(\x80theora|OVP80|BBCD)", Kind("Ogg video", "video")),
    (rb"YUV4MPEG2 ", Kind("YUV4MPEG", "video")),
    (rb"%PDF-", Kind("PDF", way="save its pages as images first, as pdftoppm -png does")),
    (rb"PK(\x03\x04|\x05\x06)", Kind("ZIP", way=_UNPACK)),
    (rb"\x1f\x8b", Kind("gzip", way=_UNPACK)),
    (rb"7z\xbc\xaf\x27\x1c", Kind("7z", way=_UNPACK)),
    (rb"Rar!\x1a\x07", Kind("RAR", way=_UNPACK)),
    (rb"BZh[1-9]1AY", Kind("bzip2", way=_UNPACK)),
    (rb"\xfd7zXZ\0", Kind("xz", way=_UNPACK)),
    (rb"\x28\xb5\x2f\xfd", Kind("zstd", way=_UNPACK)),
    (rb".{257}ustar", Kind("tar", way=_UNPACK)),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind("JPEG XL", way=_IMAGE)),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Kind("JPEG 2000", way=_IMAGE)),
    (rb"8BPS", Kind("Photoshop file", way=_IMAGE)),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Kind("PostScript", way=_IMAGE)),
    (rb"\0\0[\x01\x02]\0[^\0]", Kind("icon", way=_IMAGE)),
    (rb"\x76\x2f\x31\x01", Kind("OpenEXR", way=_IMAGE)),
    (rb"#\?RADIANCE|#\?RGBE", Kind("Radiance HDR", way=_IMAGE)),
    (rb"II\xbc", Kind("JPEG XR", way=_IMAGE)),
    (rb"qoif", Kind("QOI", way=_IMAGE)),
    (rb"gimp xcf", Kind("GIMP file", way=_IMAGE)),
    (rb"DDS ", Kind("DDS texture", way=_IMAGE)),
    (rb"P[7F]\n", Kind("PAM or PFM", way=_IMAGE)),
    (rb".{128}DICM", Kind("DICOM", way=_IMAGE)),
    (rb".{344}n[+i]1\0|.{4}n[+i]2\0", Kind("NIfTI", way=_SLICES)),
    (rb"NRRD000", Kind("NRRD", way=_SLICES)),
    (rb"ZISRAWFILE", Kind("CZI", way=_SLICES)),
    (rb"\xda\xce\xbe\x0a", Kind("ND2", way=_SLICES)),
    (rb"version https://git-lfs", Kind("Git LFS pointer", way="git lfs pull fetches the file")),
    (rb"\x89HDF\r\n", Kind("HDF5", way="save its images as PNG first")),
    (
        rb"\x93NUMPY",
        Kind("NumPy array", way="give it to autotimm.predict in Python"),
    ),
    (rb"SIMPLE  =", Kind("FITS", way=_IMAGE)),
    (rb"\xd7\xcd\xc6\x9a", Kind("WMF drawing", way=_IMAGE)),
    (rb"ID3|\xff[\xfb\xf3\xf2]|RIFF....WAVE|fLaC|OggS|.{4}ftyp", Kind("audio")),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", Kind("program")),
    (rb"SQLite format 3", Kind("SQLite")),
)
_DRAWING = Kind("SVG", way="draw it as PNG first, as rsvg-convert does")


def kind_of(head: bytes, name: str = "") -> Kind:
    """Says what a file is.

    Args:
        head: its first ``HEAD`` bytes, or all where it has fewer.
        name: the file's, which distinguishes a camera's raw from a TIFF.
    """
    if not head:
        return EMPTY
    for mark, kind in _marks():
        if mark.match(head):
            raw = kind.name == "TIFF" and PurePath(name).suffix.lower() in _RAW
            return CAMERA if raw else kind
    return _of_text(head)


@cache
def _marks() -> list[tuple[re.Pattern[bytes], Kind]]:
    """Compiled when they are first needed: a data set of sound JPEGs needs none."""
    return [(re.compile(mark, re.DOTALL), kind) for mark, kind in _STARTS]


def refusal(kind: Kind) -> str:
    """The words that refuse a file which is no readable image; they follow its name."""
    if kind.use == "video":
        return f"is a video ({kind.name}), not an image"
    return f"is not an image ({kind.name}){kind.way and f': {kind.way}'}"


def _of_text(head: bytes) -> Kind:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if b"\0" in head or not text:
        return _UNKNOWN
    if text.startswith((b"{", b"[")):
        return Kind("JSON")
    if b"<svg" in text or text.startswith(b"<!DOCTYPE svg"):
        return _DRAWING
    if text.startswith(b"<"):
        return Kind("XML or HTML")
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return _UNKNOWN if control else _TEXT
