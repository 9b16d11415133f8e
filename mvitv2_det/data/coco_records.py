"""The lists of a COCO json file: their records and ids."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import UserError
from .annotations import Odd
from .findings import Findings

# Checks a record, given what it is called, and returns it as it is to be used.
Check = Callable[[dict[str, Any], str], dict[str, Any] | None]


def load_json(json_file: str) -> Any:
    """Reads a json file.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        with open(json_file, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {json_file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_file} is no json: {error}") from error


def load_coco(json_file: str) -> dict[str, Any]:
    """Reads a COCO json file.

    Raises:
        UserError: it cannot be read, or lacks one of COCO's lists.
    """
    content = load_json(json_file)
    if not isinstance(content, dict):
        raise UserError(
            f"{json_file} is not in COCO's format: expected an object with 'images', "
            f"'annotations' and 'categories', got a {type(content).__name__}"
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{json_file} is not in COCO's format: it has no list {key!r}")
    return content


def sound_records(
    content: dict[str, Any], key: str, fields: Iterable[str], findings: Findings, check: Check
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Collects the records of a list that can be used.

    Ids may be numbers or texts. Those of categories become numbers, as do those of annotations,
    which may have none, and are numbered anew if two are the same or one is 0: pycocotools takes
    that for none.

    Args:
        content: of the file.
        key: the list's.
        fields: what each record must have besides an id.
        findings: what is wrong or odd is noted here.
        check: called for each record; None leaves it out.

    Returns:
        the records with their new ids; and these by :func:`id_key` of the old ones, in which
        those of wrong records are None.
    """
    kept: list[dict[str, Any]] = []
    ids: dict[str, Any] = {}
    of_annotations = key == "annotations"
    one = {"images": "image", "categories": "category"}.get(key, "annotation")
    keys: list[str] = []
    for number, record in enumerate(content[key]):
        place = f"{key}[{number}]"
        name = place
        try:
            _check_fields(record, place, fields if of_annotations else ("id", *fields))
            if of_annotations and "id" not in record:
                own_key = place
            else:
                own_key = _checked_id(record["id"], place)
                name = f"{one} {record['id']!r}"
            if own_key in ids and not of_annotations:
                raise UserError(f"the id {record['id']!r} stands twice in {key!r}")
            ids[own_key] = None
            if (right := check(record, name)) is not None:
                kept.append(right)
                keys.append(own_key)
        except Odd as error:
            findings.odd(key, str(error), "left out", name.removeprefix(f"{one} "))
        except UserError as error:
            findings.wrong(f"{findings.source}: {error}")
    new = _numbers(kept, key)
    for index, (record, own) in enumerate(zip(kept, new, strict=True)):
        if record.get("id") != own:
            kind = "ids that are texts, 0, missing or not their own"
            findings.note(key, kind, "numbered", str(record.get("id", keys[index])))
            kept[index] = {**record, "id": own}
    ids.update(zip(keys, new, strict=True))
    return kept, ids


def id_key(value: object) -> str | None:
    """What an id is found by, whether it is a number or the same as a text; None if it is none."""
    # 1 and 1.0 and true are equal, and one of another type is found nowhere later.
    if isinstance(value, str) or type(value) is int:
        return str(value)
    return None


def check_text(name: str, field: str, value: object) -> None:
    """Checks a name: files and logs have no NUL and no halves of letters.

    Raises:
        UserError: it is none, or has them.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{name} has a {field!r} that is no text but {value!r}")
    if "\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise UserError(f"{name} has letters in its {field!r} that no file has: {value!a}")


def _check_fields(record: object, place: str, fields: Iterable[str]) -> None:
    for field in fields:
        if not isinstance(record, dict) or field not in record:
            raise UserError(f"{place} has no {field!r}, as records of COCO's format have")


def _checked_id(value: object, place: str) -> str:
    key = id_key(value)
    if key is None:
        raise UserError(
            f"the id {value!r} of {place} is a {type(value).__name__}: ids must be whole numbers "
            f"or texts"
        )
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        raise UserError(f"the id {value} of {place} is too large")
    return key


def _numbers(records: list[dict[str, Any]], key: str) -> list[Any]:
    """The ids that the records are to have: their own where these will do."""
    own: list[Any] = [record.get("id") for record in records]
    if key == "annotations":
        fine = all(type(one) is int and one for one in own) and len(set(own)) == len(own)
        return own if fine else list(range(1, len(own) + 1))
    if len({type(one) for one in own}) <= 1 and (key == "images" or not _has_text(own)):
        return own  # images may be named by texts
    if all(map(_is_digits, own)) and len(set(map(int, own))) == len(own):
        return list(map(int, own))
    return list(map(str, own)) if key == "images" else list(range(1, len(own) + 1))


def _has_text(ids: list[Any]) -> bool:
    return any(isinstance(one, str) for one in ids)


def _is_digits(value: Any) -> bool:
    return type(value) is int or (value.isascii() and value.isdigit() and len(value) < 16)
