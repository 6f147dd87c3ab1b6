"""Suffixes of picture files, and of what lies beside them; what is not among them is told by its first bytes."""

from ..modeling.captioner_image_format import UNREAD_FORMATS


def _suffixes(names: str) -> list[str]:
    return [f".{name}" for name in names.split()]


IMAGE_SUFFIXES = {
    **dict.fromkeys(_suffixes("jpg jpeg jpe jfif jif pjpeg pjp jpg_large mpo"), "JPEG"),
    **dict.fromkeys(_suffixes("png apng"), "PNG"),
    **dict.fromkeys(_suffixes("bmp"), "BMP"),
    **dict.fromkeys(_suffixes("tif tiff"), "TIFF"),
    **dict.fromkeys(_suffixes("jp2 j2k jpc j2c jpf jpx"), "JPEG2000"),
    **dict.fromkeys(_suffixes("ppm pgm pbm pnm pfm"), "PPM"),
    **dict.fromkeys(_suffixes("avif avifs"), "AVIF"),
    **dict.fromkeys(_suffixes("heic heif hif"), "HEIF"),
    ".webp": "WEBP",
    ".gif": "GIF",
}
"""Suffixes of pictures that are opened, in lower case, with the format that must be readable."""

_RAW = _suffixes("dng raw cr2 cr3 crw nef nrw arw sr2 raf orf rw2 pef srw 3fr dcr kdc")  # begin like TIFF
_DRAWN = _suffixes(
    "svg svgz eps ps ai psd psb xcf ico icns cur tga pcx dds exr hdr qoi sgi xbm xpm wmf emf fits jxr wdp"
)
UNREAD_SUFFIXES = {
    ".jxl": UNREAD_FORMATS["JXL"],
    **dict.fromkeys(_RAW, "of a camera, not developed; convert to PNG or JPEG"),
    **dict.fromkeys(_DRAWN, "a format that is not read; convert to PNG or JPEG"),
}
"""Suffixes of pictures that are not opened, with the reason."""

OTHER_SUFFIXES = frozenset(
    _suffixes(
        "txt caption tags md rst csv tsv json jsonl ndjson xml yaml yml toml html htm pdf doc docx db ini log lock py "
        "ipynb npy npz pt pth safetensors h5 hdf5 arrow parquet zip tar gz tgz bz2 xz 7z rar md5 aae xmp thm lrv "
        "mp4 mov m4v avi mkv webm mpg mpeg 3gp mp3 wav m4a aac flac ogg "
        "part crdownload download tmp temp bak old orig swp"
    )
)
"""Suffixes of what lies beside pictures: their captions and metadata, features, videos, archives, unfinished copies."""
