"""Parse Pascal VOC's XML files, in the encodings that tools write."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from datasets.annotations import MAX_BOX_COORDINATE
from util.errors import InputError

from .coco_json import decode, describe_guess

DECLARATION = re.compile(r"\A\s*<\?xml[^>]*>")
ENCODING = re.compile(r"""[^<]*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)""", re.ASCII)


def parse_xml(path, errors, guessed):
    """Return (path, image name, [(class name, (xmin, ymin, xmax, ymax), is difficult)]).

    Append a message to `errors` for each invalid object, and one to `guessed` if the encoding is
    a guess; return None if the file cannot be parsed.
    """
    try:
        root = parse_root(path, guessed)
    except OSError as error:
        errors.append(f"{path}: cannot be read ({error.strerror}); check its permissions")
        return None
    except ET.ParseError as error:
        errors.append(f"{path}: invalid XML ({error}); export it again")
        return None
    except InputError as error:
        errors.append(str(error))
        return None
    objects = []
    for number, element in enumerate(root.iter("object"), 1):
        name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        try:
            corners = [float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
        except (AttributeError, TypeError, ValueError):
            corners = None
        place = f"{path}, object {number}"
        if not name:
            errors.append(f"{place}: has no name; add it")
        elif corners is None:
            errors.append(f"{place}: has no bndbox with four numbers; correct it")
        elif not all(
            -MAX_BOX_COORDINATE < low <= high < MAX_BOX_COORDINATE
            for low, high in (corners[::2], corners[1::2])
        ):
            errors.append(f"{place}: its bndbox is reversed or far outside the image; correct it")
        else:
            objects.append((name, corners, element.findtext("difficult") == "1"))
    return path, Path((root.findtext("filename") or path.stem).strip()).name, objects


def parse_root(path, guessed):
    """Parse an XML file, also if its declared encoding is wrong or one that expat does not know."""
    content = path.read_bytes()
    try:
        return ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError):
        declared = ENCODING.match(content.decode("latin-1"))
        declared = declared[1] if declared else "utf-8"
        text, encoding = decode(content, path, declared)
        if encoding == "gb18030" and not declared.lower().startswith("gb"):
            guessed.append(describe_guess(path, text))
        return ET.fromstring(DECLARATION.sub("", text))
